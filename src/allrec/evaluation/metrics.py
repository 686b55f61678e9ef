"""Ranking metrics: pure functions of 0-based ranks, one a user.

A rank counts the candidates before the target, so 0 is the best; a target that was not ranked at all (an answer that
names no item, say) has the number of candidates as its rank. Every function refuses empty and negative ranks.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


def hits_at(ranks: Int[np.ndarray, "users"], k: int) -> Float[np.ndarray, "users"]:
    """1.0 for each user whose target is among the first ``k``, else 0.0."""
    return (_checked(ranks, k) < k).astype(np.float64)


def gains_at(ranks: Int[np.ndarray, "users"], k: int) -> Float[np.ndarray, "users"]:
    """Discounted gain of each user: 1 / log2(rank + 2) among the first ``k``, else 0.

    With one relevant item the ideal gain is 1, so this is NDCG already.
    """
    ranks = _checked(ranks, k)
    return np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)


def reciprocal_ranks(ranks: Int[np.ndarray, "users"]) -> Float[np.ndarray, "users"]:
    """1 / (rank + 1) of each user, without a cut-off; never 0."""
    return 1.0 / (_checked(ranks, 1) + 1.0)


def hit_rate_at(ranks: Int[np.ndarray, "users"], k: int) -> float:
    """Share of users whose target is among the first ``k``; 1 where ``k`` reaches the number of candidates.

    Example:
        >>> hit_rate_at(np.array([0, 3]), 3)
        0.5
    """
    return float(hits_at(ranks, k).mean())


def ndcg_at(ranks: Int[np.ndarray, "users"], k: int) -> float:
    """Mean discounted gain among the first ``k``, one relevant item a user; equal to the hit rate at k = 1.

    Example:
        >>> ndcg_at(np.array([0, 2]), 10)
        0.75
    """
    return float(gains_at(ranks, k).mean())


def mrr(ranks: Int[np.ndarray, "users"]) -> float:
    """Mean reciprocal rank, without a cut-off.

    Example:
        >>> mrr(np.array([0, 1]))
        0.75
    """
    return float(reciprocal_ranks(ranks).mean())


class Metric(NamedTuple):
    """A metric of ``metrics.json``.

    Attributes:
        by_user: its value for each user, from their 0-based ranks.
        has_interval: whether it gets a confidence interval and paired tests.
    """

    by_user: Callable[[Int[np.ndarray, "users"]], Float[np.ndarray, "users"]]
    has_interval: bool = False


METRICS: dict[str, Metric] = {
    "HR@1": Metric(partial(hits_at, k=1), has_interval=True),
    "HR@5": Metric(partial(hits_at, k=5)),
    "HR@10": Metric(partial(hits_at, k=10)),
    "NDCG@5": Metric(partial(gains_at, k=5)),
    "NDCG@10": Metric(partial(gains_at, k=10), has_interval=True),
    "MRR": Metric(reciprocal_ranks),
}
"""Every metric by its name in ``metrics.json``: rows, chance levels, intervals and tests are made from this table."""


def tested_metrics() -> dict[str, Metric]:
    """The metrics that get an interval and a paired test."""
    return {name: metric for name, metric in METRICS.items() if metric.has_interval}


def chance(name: str, num_candidates: int) -> float:
    """What a metric gives on average when the target's rank is uniform among ``num_candidates``.

    Example:
        >>> chance("HR@5", 20)
        0.25
    """
    if num_candidates < 1:
        raise ValueError(f"got {num_candidates} candidates, expected at least the target itself")
    return float(METRICS[name].by_user(np.arange(num_candidates)).mean())


def summary(ranks: Int[np.ndarray, "users"]) -> dict[str, float]:
    """Every metric of ``metrics.json`` by its name there."""
    return {name: float(metric.by_user(ranks).mean()) for name, metric in METRICS.items()}


def _checked(ranks: Int[np.ndarray, "users"], k: int) -> Int[np.ndarray, "users"]:
    if k < 1:
        raise ValueError(f"got a cut-off of {k}, expected at least 1")
    if ranks.size == 0:
        raise ValueError("got no ranks: a metric over no users has no value; leave the segment out")
    if not np.issubdtype(ranks.dtype, np.integer) or ranks.min() < 0:
        raise ValueError(f"got ranks of type {ranks.dtype} from {ranks.min()}, expected whole numbers from 0")
    return ranks
