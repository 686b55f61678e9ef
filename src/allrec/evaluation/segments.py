"""Segments of the evaluated users by their target: warm, cold, unseen, head, tail, repeat; and samples of users."""

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from allrec import seeds
from allrec.data.dataset import Dataset, Targets, flat

EXTREME_SHARE = 0.35
"""Share of items that the paper calls warm (the most seen) and cold (the least seen)."""
RARE = 5
"""Most training interactions of a target in segment ``cold5``."""


def segments(dataset: Dataset, targets: Targets) -> dict[str, Bool[ndarray, "rows"]]:
    """A mask over the rows of ``targets`` for each segment; one may be empty.

    ``warm`` and ``cold`` hold the targets in the top and bottom 35% of items by training interactions, ties by
    position; ``cold5`` and ``warm5`` those seen at most, and more than, 5 times; ``unseen`` never; ``head``, ``torso``
    and ``tail`` share the training interactions in thirds, most popular items first; ``repeat`` are already in the
    history.

    Source: arXiv:2404.11343, section 5.2 (warm and cold).
    """
    counts = dataset.train_counts()
    order = np.argsort(-counts, kind="stable")
    seen, place = counts[targets.items], np.argsort(order)[targets.items]
    extreme = int(EXTREME_SHARE * len(counts))
    before = np.cumsum(counts[order]) - counts[order]
    third = np.minimum(3 * before // max(1, counts.sum()), 2)[place]
    is_repeat = repeats(dataset, targets)
    return {
        "all": np.ones(len(targets.items), bool),
        "warm": place < extreme,
        "cold": place >= len(counts) - extreme,
        "cold5": seen <= RARE,
        "warm5": seen > RARE,
        "unseen": seen == 0,
        "head": third == 0,
        "torso": third == 1,
        "tail": third == 2,
        "repeat": is_repeat,
        "new": ~is_repeat,
    }


def repeats(dataset: Dataset, targets: Targets) -> Bool[ndarray, "rows"]:
    """Whether the target is already in the history before it."""
    starts = dataset.offsets[targets.users]
    rows, places = flat(starts, starts + targets.positions)
    is_same = dataset.items[places] == targets.items[rows]
    return np.bincount(rows[is_same], minlength=len(starts)) > 0


def sample_rows(num_rows: int, size: int | None, seed: int) -> Int[ndarray, "scored"]:
    """A fixed random sample of a split's rows, ascending; all of them where ``size`` is None or not smaller.

    A smaller sample is part of every larger one, so that two scorers share as many users as possible.
    """
    if size is None or size >= num_rows:
        return np.arange(num_rows)
    return np.sort(seeds.rng(seed, "sample of users", num_rows).permutation(num_rows)[:size])
