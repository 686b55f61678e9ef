"""Ranking the whole catalogue: retrieval finds the candidates, fusion orders them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from allrec.data.dataset import Dataset, Targets
from allrec.evidence.evidence import Evidence
from allrec.evidence.histories import Histories, histories_before

USERS_TOGETHER = 512
"""Users whose retrieved candidates are scored at one time."""

Score = Callable[[Float[ndarray, "rows candidates evidence"]], Float[ndarray, "rows candidates"]]


class RetrievedRanks(NamedTuple):
    """Ranks over the catalogue, and where retrieval found the target.

    Attributes:
        ranks: 0-based; a target that was not retrieved stands last.
        is_retrieved: the mean of it is the recall of retrieval.
    """

    ranks: Int[ndarray, "rows"]
    is_retrieved: Bool[ndarray, "rows"]


def retrieved_ranks(
    evidence: Evidence, score: Score, dataset: Dataset, targets: Targets, depth: int, *, excludes_history: bool
) -> RetrievedRanks:
    """Ranks of the targets among what retrieval finds; ties count against the target.

    Args:
        evidence: retrieves, and gives what is scored.
        score: such as ``partial(fused_scores, fusion)``.
        dataset: whose histories are read.
        targets: what is to be found.
        depth: see ``Evidence.retrieve``.
        excludes_history: True is protocol ``full``, False is ``full-repeat``.
    """
    ranks = np.full(len(targets), dataset.num_items - 1, np.int64)
    is_retrieved = np.zeros(len(targets), bool)
    histories = histories_before(dataset, targets)
    for start in range(0, len(targets), USERS_TOGETHER):
        part = slice(start, start + USERS_TOGETHER)
        own, wanted = histories.part(part), targets.items[part]
        candidates = evidence.retrieve(own, depth)
        is_target = candidates == wanted[:, None]
        if excludes_history:
            candidates[is_in_history(own, candidates, dataset.num_items) & ~is_target] = -1
        scores = score(evidence.features(own, candidates))
        target_scores = np.where(is_target, scores, -np.inf).max(axis=1)
        is_before = (scores >= target_scores[:, None]) & (candidates >= 0) & ~is_target
        found = is_retrieved[part] = is_target.any(axis=1)
        ranks[part] = np.where(found, is_before.sum(axis=1), ranks[part])
    return RetrievedRanks(ranks, is_retrieved)


def catalogue_lists(
    evidence: Evidence,
    histories: Histories,
    targets: Int[ndarray, "rows"],
    rng: np.random.Generator,
    *,
    depth: int,
    num_candidates: int,
    excludes_history: bool,
) -> Int[ndarray, "rows candidates"]:
    """Lists to fit fusion for the whole catalogue on: the target and a sample of what retrieval finds, shuffled.

    Args:
        evidence: retrieves.
        histories: before each target.
        targets: of validation.
        rng: draws the sample and the order.
        depth: see ``Evidence.retrieve``.
        num_candidates: sampled a row, the target not counted.
        excludes_history: whether items of the history stay out, the target excepted.
    """
    retrieved = evidence.retrieve(histories, depth)
    retrieved[retrieved == targets[:, None]] = -1
    if excludes_history:
        retrieved[is_in_history(histories, retrieved, evidence.num_items)] = -1
    keys = np.where(retrieved < 0, 2.0, rng.random(retrieved.shape))
    sampled = np.take_along_axis(retrieved, np.argsort(keys, axis=1)[:, :num_candidates], axis=1)
    lists = np.column_stack([targets, sampled])
    order = np.argsort(np.where(lists < 0, 2.0, rng.random(lists.shape)), axis=1)
    return np.take_along_axis(lists, order, axis=1)


def is_in_history(
    histories: Histories, candidates: Int[ndarray, "rows candidates"], num_items: int
) -> Bool[ndarray, "rows candidates"]:
    """Whether each candidate stands anywhere in its row's history."""
    lengths = histories.ends - histories.starts
    rows = np.repeat(np.arange(histories.num_rows), lengths)
    places = np.arange(lengths.sum()) + np.repeat(histories.starts - (np.cumsum(lengths) - lengths), lengths)
    owned = rows * num_items + histories.items[places]
    wanted = np.arange(histories.num_rows)[:, None] * num_items + candidates
    return np.isin(wanted, owned) & (candidates >= 0)
