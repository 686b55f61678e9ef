"""Ranking the whole catalogue: retrieval finds the candidates, fusion orders them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from allrec.data.dataset import Dataset, Targets, flat
from allrec.hybrid.features import Evidence, Histories, histories_before
from allrec.parallel import ordered_map

USERS_TOGETHER = 512
"""Users whose retrieved candidates are scored at one time, by one thread."""

Score = Callable[[Float[ndarray, "part candidates evidence"], slice], Float[ndarray, "part candidates"]]
"""Scores some rows by their evidence; which rows is told, for a model may be one of several by row."""


class Retrieved(NamedTuple):
    """What retrieval found for some rows, scored.

    Attributes:
        part: the rows.
        candidates: item positions, -1 pads.
        features: the evidence of the first so many candidates, which were fused.
        scores: larger is better; of padding without meaning. Candidates that were not fused stand behind those that
            were, in the order in which retrieval has them.
    """

    part: slice
    candidates: Int[ndarray, "part candidates"]
    features: Float[ndarray, "part fused evidence"]
    scores: Float[ndarray, "part candidates"]

    def ranks(self, targets: Int[ndarray, "part"], last: int) -> "RetrievedRanks":
        """Ranks of the targets, ties against them; ``last`` where one was not retrieved."""
        is_target = self.candidates == targets[:, None]
        target_scores = np.where(is_target, self.scores, -np.inf).max(axis=1)
        is_before = (self.scores >= target_scores[:, None]) & (self.candidates >= 0) & ~is_target
        found = is_target.any(axis=1)
        return RetrievedRanks(np.where(found, is_before.sum(axis=1), last), found)

    def best(self, k: int) -> Int[ndarray, "part best"]:
        """Places of the k best candidates of each row, best first; places of padding come last."""
        return np.argsort(np.where(self.candidates < 0, np.inf, -self.scores), axis=1, kind="stable")[:, :k]


class RetrievedRanks(NamedTuple):
    """Ranks over the catalogue, and where retrieval found the target.

    Attributes:
        ranks: 0-based; a target that was not retrieved stands last.
        is_retrieved: the mean of it is the recall of retrieval.
    """

    ranks: Int[ndarray, "rows"]
    is_retrieved: Bool[ndarray, "rows"]


def retrieve_scored(
    evidence: Evidence,
    score: Score,
    histories: Histories,
    depth: int,
    excepted: Int[ndarray, "rows"] | None = None,
    num_fused: int | None = None,
) -> Iterator[Retrieved]:
    """What retrieval finds for every row, scored, some rows at a time, ``ordered_map``.

    Args:
        evidence: retrieves, and gives what is scored.
        score: scores by evidence; several threads call it.
        histories: before each target.
        depth: see ``Evidence.retrieve``.
        excepted: given, items of a row's history are left out but for this one: protocol ``full``. None keeps them:
            ``full-repeat``.
        num_fused: so many of a row, those that retrieval has first, are scored by their evidence; None is all.
    """

    def retrieved(start: int) -> Retrieved:
        part = slice(start, start + USERS_TOGETHER)
        own = histories.part(part)
        candidates, users = evidence.find(own, depth, histories.num_rows)
        if excepted is not None:
            is_owned = is_in_history(own, candidates, evidence.num_items)
            candidates = packed(np.where(is_owned & (candidates != excepted[part][:, None]), -1, candidates))
        features = evidence.features(own, candidates[:, :num_fused], users)
        fused = score(features, part)
        return Retrieved(part, candidates, features, np.concatenate([fused, behind(fused, candidates)], axis=1))

    return ordered_map(retrieved, range(0, histories.num_rows, USERS_TOGETHER))


def packed(candidates: Int[ndarray, "rows candidates"]) -> Int[ndarray, "rows fewer"]:
    """The same candidates in the same order, padding at the end and cut where all rows have it."""
    order = np.argsort(candidates < 0, axis=1, kind="stable")
    widest = max(1, int((candidates >= 0).sum(axis=1).max(initial=0)))
    return np.take_along_axis(candidates, order[:, :widest], axis=1)


def behind(
    fused: Float[ndarray, "rows fused"], candidates: Int[ndarray, "rows candidates"]
) -> Float[ndarray, "rows rest"]:
    """Scores of the candidates that were not fused: below all that were, and falling."""
    num_fused, places = fused.shape[1], np.arange(1, 1 + candidates.shape[1] - fused.shape[1], dtype=np.float32)
    least = np.where(candidates[:, :num_fused] >= 0, fused, np.inf).min(axis=1, initial=0)
    return least[:, None] - places


def retrieved_ranks(
    evidence: Evidence,
    score: Score,
    dataset: Dataset,
    targets: Targets,
    depth: int,
    *,
    excludes_history: bool,
    num_fused: int | None = None,
) -> RetrievedRanks:
    """Ranks of the targets among what retrieval finds; ties count against the target.

    Args:
        evidence: retrieves, and gives what is scored.
        score: scores by evidence.
        dataset: whose histories are read.
        targets: what is to be found.
        depth: see ``Evidence.retrieve``.
        excludes_history: True is protocol ``full``, False is ``full-repeat``.
        num_fused: see ``retrieve_scored``.
    """
    histories = histories_before(dataset, targets)
    excepted = targets.items if excludes_history else None
    parts = [
        found.ranks(targets.items[found.part], evidence.num_items - 1)
        for found in retrieve_scored(evidence, score, histories, depth, excepted, num_fused)
    ]
    return RetrievedRanks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def catalogue_lists(
    evidence: Evidence,
    histories: Histories,
    targets: Int[ndarray, "rows"],
    rng: np.random.Generator,
    *,
    depth: int,
    num_candidates: int,
    excludes_history: bool,
) -> tuple[Int[ndarray, "kept candidates"], Int[ndarray, "kept"]]:
    """Lists to fit fusion for the whole catalogue on: the target and a sample of what retrieval finds, shuffled.

    Rows whose target retrieval does not find are left out: nothing will have to rank such a target.

    Args:
        evidence: retrieves.
        histories: before each target.
        targets: of validation.
        rng: draws the sample and the order.
        depth: see ``Evidence.retrieve``.
        num_candidates: sampled a row, the target not counted.
        excludes_history: whether items of the history stay out, the target excepted.

    Returns:
        The lists, and which rows they are of.
    """
    retrieved = evidence.retrieve(histories, depth)
    is_target = retrieved == targets[:, None]
    kept = np.flatnonzero(is_target.any(axis=1))
    retrieved[is_target] = -1
    if excludes_history:
        retrieved[is_in_history(histories, retrieved, evidence.num_items)] = -1
    retrieved = retrieved[kept]
    keys = np.where(retrieved < 0, 2.0, rng.random(retrieved.shape))
    sampled = np.take_along_axis(retrieved, np.argsort(keys, axis=1)[:, :num_candidates], axis=1)
    lists = np.column_stack([targets[kept], sampled])
    order = np.argsort(np.where(lists < 0, 2.0, rng.random(lists.shape)), axis=1)
    return np.take_along_axis(lists, order, axis=1), kept


def is_in_history(
    histories: Histories, candidates: Int[ndarray, "rows candidates"], num_items: int
) -> Bool[ndarray, "rows candidates"]:
    """Whether each candidate stands anywhere in its row's history."""
    rows, places = flat(histories.starts, histories.ends)
    owned = rows * num_items + histories.items[places]
    wanted = np.arange(histories.num_rows)[:, None] * num_items + candidates
    return np.isin(wanted, owned) & (candidates >= 0)
