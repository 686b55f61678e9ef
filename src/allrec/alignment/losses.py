"""Losses of stage 1: two matching losses and the recommendation loss."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

FIRST_TEMPERATURE, LEAST_TEMPERATURE = 0.07, 0.01


def matching_loss(
    item_joint: Float[Tensor, "rows joint"], text_joint: Float[Tensor, "rows joint"]
) -> Float[Tensor, ""]:
    """Mean squared distance between an item's two joint embeddings, over rows and coordinates.

    Source: arXiv:2404.11343, equation 2.
    """
    return functional.mse_loss(item_joint, text_joint)


def infonce_loss(
    item_joint: Float[Tensor, "items joint"],
    text_joint: Float[Tensor, "items joint"],
    text_groups: Int[Tensor, "items"],
    scale: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: each e_i picks its q_i among the batch's, and each q_i its e_i; the mean of both, in nats.

    Args:
        item_joint: e of distinct items.
        text_joint: q of the same items.
        text_groups: items of the same number have equal texts, and are never each other's negatives.
        scale: one over the temperature; it multiplies cosines.

    Source: arXiv:2103.00020, figure 3, but for equal texts.
    """
    cosines = functional.normalize(item_joint, dim=-1) @ functional.normalize(text_joint, dim=-1).T
    logits = (scale * cosines).masked_fill(_is_twin(text_groups), -math.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


class Matching(NamedTuple):
    """A matching loss, a mean over rows.

    Attributes:
        loss: of (e, q) of the batch's positives and negatives; of one that contrasts, of (e, q, groups of equal text,
            one over a learned temperature) of distinct items.
        is_contrastive: whether it contrasts the items of a batch.
    """

    loss: Callable[..., Float[Tensor, ""]]
    is_contrastive: bool = False


MATCHING: dict[str, Matching] = {
    "mse": Matching(matching_loss),
    "infonce": Matching(infonce_loss, is_contrastive=True),
    "none": Matching(lambda item_joint, text_joint: item_joint.new_zeros(())),
}
"""Every matching loss by its name in a recipe."""


def recommendation_loss(
    users: Float[Tensor, "batch dim"], positives: Float[Tensor, "batch dim"], negatives: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of dot products: mean over positives plus mean over negatives.

    The score is the dot product, as the backbone was trained; the public code averages over coordinates instead.

    Args:
        users: x, or W·x where there are no decoders.
        positives: Ê of the next items, or e.
        negatives: the same of the sampled negatives.

    Source: arXiv:2404.11343, equation 5.
    """
    positive_logits = (users * positives).sum(-1)
    negative_logits = (users * negatives).sum(-1)
    return functional.softplus(-positive_logits).mean() + functional.softplus(negative_logits).mean()


def is_matchable(
    train_counts: Int[Tensor, "items"], text_embeddings: Float[Tensor, "items text_dim"]
) -> Bool[Tensor, "items"]:
    """Whether both embeddings of an item say something: it was seen in training, and has a text."""
    return (train_counts > 0) & (text_embeddings != 0).any(dim=1)


class Temperature(nn.Module):
    """A learned temperature, from 0.07, never below 0.01: the scale it gives stays at or under 100.

    Source: arXiv:2103.00020, section 2.5.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

    def forward(self) -> Float[Tensor, ""]:
        """One over the temperature; a step that went too far is taken back first, so that the next can return."""
        with torch.no_grad():
            self.log_scale.clamp_(max=-math.log(LEAST_TEMPERATURE))
        return self.log_scale.exp()


def _is_twin(groups: Int[Tensor, "items"]) -> Bool[Tensor, "items items"]:
    is_equal = groups[:, None] == groups[None, :]
    return is_equal & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
