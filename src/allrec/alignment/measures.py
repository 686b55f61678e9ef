"""Measures of stage 1: how well e and q match in the joint space, and what it keeps of the spaces of E and Q.

Similarity is the cosine throughout, of e around the mean of all e and of q around that of all q: a sigmoid puts them
all into one corner of the space, where every cosine is nearly 1, and recipes with and without it could not be compared.
How far the two means lie apart is measured by itself.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from allrec import seeds
from allrec.alignment.losses import is_matchable
from allrec.alignment.model import Alignment, NoAlignment

MAX_ITEMS = 20_000
"""More items are sampled: the measures compare every item with every other."""
CHUNK = 1024
NUM_NEIGHBOURS = 10
CUTOFFS = (1, 10)
COUNT_BUCKETS = ((0, 0), (1, 1), (2, 5), (6, 20), (21, None))
"""Training interactions of an item, both ends included."""
ROUNDING = 1e-9
"""Cosines of float64 closer than this are equal: equal texts may differ in their last bits."""


@torch.no_grad()
def measure_alignment(
    alignment: Alignment | NoAlignment,
    item_embeddings: Float[Tensor, "items dim"],
    text_embeddings: Float[Tensor, "items text_dim"],
    train_counts: Int[ndarray, "items"],
) -> dict[str, Any] | None:
    """All measures of a trained stage 1; None where there is none.

    Distances are measured over all items with a text, everything else over those that were seen in training as well,
    since E of an unseen item says nothing.

    Args:
        alignment: frozen.
        item_embeddings: E.
        text_embeddings: Q.
        train_counts: training interactions of each item.
    """
    if isinstance(alignment, NoAlignment):
        return None
    counts = torch.from_numpy(train_counts)
    exact = deepcopy(alignment).double()
    with_text = _sampled((text_embeddings != 0).any(1).nonzero()[:, 0])
    seen = _sampled(is_matchable(counts, text_embeddings).nonzero()[:, 0])
    if len(seen) < 2:
        return None
    item_joint = exact.items.encode(item_embeddings.double())
    text_joint = exact.texts.encode(text_embeddings.double())
    gap = mean_gap(item_joint[seen], text_joint[seen])
    item_joint, text_joint = item_joint - item_joint[seen].mean(0), text_joint - text_joint[seen].mean(0)
    measures = space_measures(item_embeddings[seen], text_embeddings[seen], item_joint[seen], text_joint[seen])
    distances = distances_by_count(item_joint[with_text], text_joint[with_text], counts[with_text])
    return {"items": len(seen), "gap": gap, **measures, "distance": distances}


def space_measures(
    item_embeddings: Float[Tensor, "items dim"],
    text_embeddings: Float[Tensor, "items text_dim"],
    item_joint: Float[Tensor, "items joint"],
    text_joint: Float[Tensor, "items joint"],
) -> dict[str, Any]:
    """Retrieval, effective ranks, alignment, uniformity and kept neighbours of E, Q, e and q of the same items."""
    spaces = {"E": item_embeddings, "Q": text_embeddings, "e": item_joint, "q": text_joint}
    near = {name: neighbours(space, NUM_NEIGHBOURS) for name, space in spaces.items()}
    return {
        "retrieval": {
            "q to e": recalls(retrieval_ranks(text_joint, item_joint)),
            "e to q": recalls(retrieval_ranks(item_joint, text_joint)),
        },
        "effective_rank": {name: effective_rank(space) for name, space in spaces.items()},
        "alignment": alignment_distance(item_joint, text_joint),
        "uniformity": {"e": uniformity(item_joint), "q": uniformity(text_joint)},
        "neighbours": {
            "k": min(NUM_NEIGHBOURS, len(item_joint) - 1),
            **{f"{a} and {b}": overlap(near[a], near[b]) for a, b in (("E", "e"), ("Q", "q"), ("E", "Q"), ("e", "q"))},
        },
    }


def mean_gap(first: Float[Tensor, "items joint"], second: Float[Tensor, "items joint"]) -> float:
    """Distance between the means of two spaces, over the root mean square distance of the first's items from its mean.

    0 where that is 0: items that are all the same are measured elsewhere.
    """
    spread = float((first - first.mean(0)).square().sum(-1).mean().sqrt())
    return float((first.mean(0) - second.mean(0)).norm()) / spread if spread > ROUNDING else 0.0


def retrieval_ranks(queries: Float[Tensor, "items joint"], keys: Float[Tensor, "items joint"]) -> Int[ndarray, "items"]:
    """0-based rank of each item's own key among all keys by cosine with its query; ties count against it.

    A hit is the item itself: another item of equal text is no hit, and ranks before it.
    """
    queries, keys = functional.normalize(queries, dim=-1), functional.normalize(keys, dim=-1)
    own = (queries * keys).sum(-1, keepdim=True)
    counts = [((queries[rows] @ keys.T) >= own[rows] - ROUNDING).sum(1) - 1 for rows in _chunks(len(queries))]
    return torch.cat(counts).numpy()


def recalls(ranks: Int[ndarray, "items"]) -> dict[str, float]:
    """Share of ranks under each cut-off; by chance it is the cut-off over the number of items."""
    return {f"recall@{k}": float((ranks < k).mean()) for k in CUTOFFS}


def effective_rank(space: Float[Tensor, "items dim"]) -> float:
    """In how many dimensions the rows lie: exp of the entropy of their singular values' shares, from 1 to the width.

    Rows are centred first, or the mean of a sigmoid's outputs would drown the rest. Rows that are all the same lie in
    no dimension: 0.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(space.double() - space.double().mean(0))
    if values.sum() <= ROUNDING:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def alignment_distance(first: Float[Tensor, "items joint"], second: Float[Tensor, "items joint"]) -> float:
    """Mean squared distance on the unit sphere between an item's two embeddings: 0 where they meet, 4 at most.

    Source: arXiv:2005.10242, equation 1, with exponent 2.
    """
    squares = (functional.normalize(first, dim=-1) - functional.normalize(second, dim=-1)).square()
    return float(squares.sum(-1).mean())


def uniformity(space: Float[Tensor, "items joint"]) -> float:
    """log of the mean over pairs of distinct items of exp(-2 · squared distance) on the unit sphere.

    0 where all items are one point; the lower, the more evenly they are spread.

    Source: arXiv:2005.10242, equation 2, with t = 2.
    """
    unit = functional.normalize(space.double(), dim=-1)
    # A unit vector's squared distance is 2 - 2 · cosine; an item's potential with itself is 1.
    total = sum(float((4 * (unit[rows] @ unit.T) - 4).exp().sum()) for rows in _chunks(len(unit)))
    return float(np.log((total - len(unit)) / (len(unit) * (len(unit) - 1))))


def neighbours(space: Float[Tensor, "items dim"], k: int) -> Int[Tensor, "items neighbours"]:
    """Each item's k nearest others by cosine, or all others where there are fewer."""
    unit = functional.normalize(space, dim=-1)
    nearest = []
    for rows in _chunks(len(unit)):
        cosines = unit[rows] @ unit.T
        own = torch.arange(rows.start, rows.start + len(cosines))
        cosines[torch.arange(len(cosines)), own] = -torch.inf
        nearest.append(cosines.topk(min(k, len(unit) - 1), dim=1).indices)
    return torch.cat(nearest)


def overlap(first: Int[Tensor, "items neighbours"], second: Int[Tensor, "items neighbours"]) -> float:
    """Mean share of an item's neighbours in one space that are its neighbours in another."""
    return float((first[:, :, None] == second[:, None, :]).any(-1).double().mean())


def distances_by_count(
    item_joint: Float[Tensor, "items joint"],
    text_joint: Float[Tensor, "items joint"],
    train_counts: Int[Tensor, "items"],
) -> list[dict[str, Any]]:
    """Distance between e_i and q_i by how often an item was seen; a row a bucket, empty ones left out.

    ``distance`` is the mean of 1 - cosine; ``relative`` is that over the same mean between e_i and q_j of every item j:
    1 where an item's own text is no nearer than any.
    """
    items, texts = functional.normalize(item_joint, dim=-1), functional.normalize(text_joint, dim=-1)
    own, other = 1 - (items * texts).sum(-1), 1 - items @ texts.mean(0)
    rows = []
    for low, high in COUNT_BUCKETS:
        inside = (train_counts >= low) & (train_counts <= (torch.inf if high is None else high))
        if inside.any():
            mean, mean_other = float(own[inside].mean()), float(other[inside].mean())
            rows.append({
                "seen": str(low) if low == high else f"{low} or more" if high is None else f"{low} to {high}",
                "items": int(inside.sum()), "distance": mean, "relative": mean / max(mean_other, ROUNDING),
            })  # fmt: skip
    return rows


def _sampled(items: Int[Tensor, "items"]) -> Int[Tensor, "sample"]:
    if len(items) <= MAX_ITEMS:
        return items
    chosen = np.sort(seeds.rng(0, "alignment measures").choice(len(items), MAX_ITEMS, replace=False))
    return items[torch.from_numpy(chosen)]


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, length, CHUNK))
