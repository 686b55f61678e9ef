"""Training losses of a backbone, functions of one signature: states against the items that came next.

All take ``(states, targets, item_embeddings, negatives)`` and give the mean over tokens, in nats.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from allrec.training.layers import look_up
from allrec.training.row_shards import RowShard

# Logits held at one time, 128 MiB of float32; beyond it they are computed in chunks, and again for the gradient.
MAX_LOGITS = 1 << 25


class Negatives(NamedTuple):
    """Sampled items.

    Attributes:
        items: one for each token (binary cross-entropy), or shared by all tokens (sampled softmax).
        log_expected: for the shared ones, log of how often each of them was expected in the sample.
    """

    items: Int[Tensor, "negatives"]
    log_expected: Float[Tensor, "negatives"] | None = None


BackboneLoss = Callable[[Tensor, Tensor, Tensor, Negatives | None], Tensor]


def binary_cross_entropy(
    states: Float[Tensor, "tokens dim"],
    targets: Int[Tensor, "tokens"],
    item_embeddings: Float[Tensor, "items dim"],
    negatives: Negatives | None,
) -> Float[Tensor, ""]:
    """Target against one negative, each a yes-or-no question: -log s(x · E_target) - log(1 - s(x · E_negative)).

    Source:
        Kang and McAuley, arXiv:1808.09781, section III-E. As in its code the two terms are means, added.
    """
    if negatives is None or negatives.items.shape != targets.shape:
        raise ValueError("binary cross-entropy needs one negative for each token")
    positive = (states * look_up(targets, item_embeddings)).sum(dim=1)
    negative = (states * look_up(negatives.items, item_embeddings)).sum(dim=1)
    return -(functional.logsigmoid(positive) + functional.logsigmoid(-negative)).mean()


def softmax(
    states: Float[Tensor, "tokens dim"],
    targets: Int[Tensor, "tokens"],
    item_embeddings: Float[Tensor, "items dim"],
    negatives: Negatives | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy over the whole catalogue; ``negatives`` are ignored.

    Source:
        Klenitskiy and Vasilev, arXiv:2309.07602, who found it to lift SASRec above BERT4Rec.
    """
    chunk = max(1, MAX_LOGITS // len(item_embeddings))
    if len(states) <= chunk:
        return _summed_softmax(states, targets, item_embeddings) / len(states)
    sums = [
        checkpoint(_summed_softmax, part, part_targets, item_embeddings, use_reentrant=False, preserve_rng_state=False)
        for part, part_targets in zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True)
    ]
    return torch.stack(sums).sum() / len(states)


def sampled_softmax(
    states: Float[Tensor, "tokens dim"],
    targets: Int[Tensor, "tokens"],
    item_embeddings: Float[Tensor, "items dim"],
    negatives: Negatives | None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the target against shared negatives, each weighed by one over its expected count.

    The weighed negatives sum, in expectation, to what all other items would: the loss nears ``softmax`` as the
    sample grows. The target is always there, so it is not weighed; where it is among the negatives it is masked.

    Source:
        Jean et al., arXiv:1412.2007, section 3.1.
    """
    if negatives is None or negatives.log_expected is None:
        raise ValueError("sampled softmax needs shared negatives and the logarithm of their expected counts")
    target_logits = (states * look_up(targets, item_embeddings)).sum(dim=1, keepdim=True)
    logits = states @ look_up(negatives.items, item_embeddings).T - negatives.log_expected
    logits = logits.masked_fill(negatives.items == targets[:, None], -torch.inf)
    return (torch.cat([target_logits, logits], dim=1).logsumexp(dim=1) - target_logits[:, 0]).mean()


def _summed_softmax(
    states: Float[Tensor, "tokens dim"], targets: Int[Tensor, "tokens"], item_embeddings: Float[Tensor, "items dim"]
) -> Float[Tensor, ""]:
    if isinstance(item_embeddings, RowShard):
        return item_embeddings.softmax_sum(states, targets)
    return functional.cross_entropy(states @ item_embeddings.T, targets, reduction="sum")
