"""Measures beyond accuracy: coverage, novelty, diversity and popularity lift of recommendation lists; -1 pads them."""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

ROWS = 4096
"""Lists compared with themselves at one time."""


def beyond_accuracy(
    lists: Int[ndarray, "users k"],
    histories: Int[ndarray, "interactions"],
    train_counts: Int[ndarray, "items"],
    vectors: Float[Tensor, "items dim"],
) -> dict[str, float]:
    """All four measures by the name that tables have for them.

    Args:
        lists: item positions, best first.
        histories: the items of the same users' histories, in any order.
        train_counts: training interactions of every item.
        vectors: item vectors for cosine similarity, such as text embeddings; zeros are similar to nothing.
    """
    return {
        "coverage": coverage(lists, len(train_counts)),
        "novelty": novelty(lists, train_counts),
        "diversity": intra_list_diversity(lists, vectors),
        "popularity_lift": popularity_lift(lists, histories, train_counts),
    }


def coverage(lists: Int[ndarray, "users k"], num_items: int) -> float:
    """Share of the catalogue that is in at least one list; 0 where all lists are empty.

    Source: Ge, Delgado-Battenfeld and Jannach, RecSys 2010, catalogue coverage.

    Example:
        >>> coverage(np.array([[0, 1], [1, -1]]), 8)
        0.25
    """
    return len(np.unique(_listed(lists))) / num_items


def novelty(lists: Int[ndarray, "users k"], train_counts: Int[ndarray, "items"]) -> float:
    """Mean self-information of the listed items, in bits: -log2 of an item's share of the training interactions.

    One is added to every count, so that an item never seen has a finite novelty: the largest there is.

    Source: Zhou et al., PNAS 107 (2010), who take shares of users and add nothing.

    Raises:
        ValueError: all lists are empty.
    """
    bits = np.log2(train_counts.sum() + len(train_counts)) - np.log2(train_counts + 1.0)
    return float(bits[_some(lists)].mean())


def intra_list_diversity(lists: Int[ndarray, "users k"], vectors: Float[Tensor, "items dim"]) -> float:
    """Mean over lists of the mean of 1 - cosine over a list's pairs of items: 0 where all are alike, 2 at most.

    An item without a vector (zeros) has a cosine of 0 with every other. Lists of fewer than two items are left out.

    Source: Ziegler et al., WWW 2005, as one minus their intra-list similarity.

    Raises:
        ValueError: no list has two items.
    """
    long = lists[(lists >= 0).sum(axis=1) > 1]
    if len(long) == 0:
        raise ValueError("got no list of two items, expected at least one: a single item has no diversity")
    unit = functional.normalize(vectors.double(), dim=1)
    totals = []
    for chunk in torch.split(torch.from_numpy(np.asarray(long, np.int64)), ROWS):
        is_item = (chunk >= 0).double()
        listed = unit[chunk.clamp(min=0)] * is_item[:, :, None]
        # The sum over all pairs, both ways, is the sum's squared length less every item with itself.
        cosines = listed.sum(dim=1).square().sum(dim=1) - listed.square().sum(dim=(1, 2))
        numbers = is_item.sum(dim=1)
        totals.append(1 - cosines / (numbers * (numbers - 1)))
    return float(torch.cat(totals).mean())


def popularity_lift(
    lists: Int[ndarray, "users k"], histories: Int[ndarray, "interactions"], train_counts: Int[ndarray, "items"]
) -> float:
    """How much more popular the recommended items are than those of the users' histories; 0 is without bias.

    Mean training count of the listed items over that of the histories' items, less 1: 0.5 is half as much again.

    Source: Abdollahpouri et al., RecSys 2019 workshop (arXiv:1907.13286), as one mean over all users.

    Raises:
        ValueError: all lists are empty, or nothing in the histories was seen in training.
    """
    usual = float(train_counts[histories].mean()) if len(histories) else 0.0
    if usual == 0:
        raise ValueError("got histories without a training interaction, expected some to compare with")
    return float(train_counts[_some(lists)].mean()) / usual - 1


def _listed(lists: Int[ndarray, "users k"]) -> Int[ndarray, "listed"]:
    return np.asarray(lists[lists >= 0])


def _some(lists: Int[ndarray, "users k"]) -> Int[ndarray, "listed"]:
    listed = _listed(lists)
    if len(listed) == 0:
        raise ValueError("got empty lists alone, expected at least one recommended item")
    return listed
