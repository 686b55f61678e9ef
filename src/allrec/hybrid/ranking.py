"""The one ranking: retrieve candidates, score them by all evidence, fuse, and let the language model order the best.

``recommend``, ``rank``, evaluation, the fitting of fusion and the baselines all call it for a batch of users, each with
its own depths and the same steps, so that what is served is what was measured. The language model is an argument.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.backbones.base import Backbone, encode_histories
from allrec.evaluation.ranks import Ranked
from allrec.hybrid.features import CONTEXT, Evidence, Histories, Users
from allrec.hybrid.fusion import INTERPLAY, Fusion, Scope, fused_scores, llm_features
from allrec.hybrid.retrieval import scan
from allrec.parallel import ordered_map

if TYPE_CHECKING:
    from allrec.hybrid.fitting import FusionStageConfig

USERS_TOGETHER = 512
"""Users who are ranked for at one time, by one thread."""
LLM = "llm"


class LlmReader(NamedTuple):
    """A language model as ranking uses it.

    Attributes:
        score: (rows of the task, candidates, -1 pads, evidence name) -> score of each candidate, larger is better.
        fits: (candidates) -> whether each row's candidates fit into its prompt.
    """

    score: Callable[[Int[ndarray, "rows"], Int[ndarray, "rows listed"], str], Float[ndarray, "rows listed"]]
    fits: Callable[[Int[ndarray, "rows listed"]], Bool[ndarray, "rows"]]


class Scored(NamedTuple):
    """Candidates of some rows and the scores that order them.

    Items that the language model read come before all others, whatever their scores.

    Attributes:
        rows: these rows, of all rows of the task.
        items: candidates as item positions, -1 pads.
        scores: larger is better; of padding without meaning.
        features: evidence of the first candidates, those that were fused; None where nothing is fused.
        llm: the language model's score of each candidate, nan where it did not read it; None where it read none.
    """

    rows: slice
    items: Int[ndarray, "rows candidates"]
    scores: Float[ndarray, "rows candidates"]
    features: Float[ndarray, "rows fused evidence"] | None = None
    llm: Float[ndarray, "rows candidates"] | None = None

    @property
    def is_read(self) -> Bool[ndarray, "rows candidates"]:
        """Which candidates the language model read."""
        return np.zeros(self.items.shape, bool) if self.llm is None else ~np.isnan(self.llm)

    def best(self, k: int | None = None) -> Int[ndarray, "rows best"]:
        """Places of the k best candidates, best first; ties in list order, padding last."""
        keys = (-self.scores, ~self.is_read, self.items < 0)
        return np.lexsort(keys, axis=1)[:, :k]

    def row(self, row: int) -> "Scored":
        """One of the rows."""
        part, start = slice(row, row + 1), self.rows.start + row
        features, llm = (None if one is None else one[part] for one in (self.features, self.llm))
        return Scored(slice(start, start + 1), self.items[part], self.scores[part], features, llm)

    def ranks(self, targets: Int[ndarray, "rows"], last: int) -> Ranked:
        """0-based ranks of the targets, ties against them; ``last`` where a target is no candidate."""
        is_target = self.items == targets[:, None]
        is_read = self.is_read
        target_scores = np.where(is_target, self.scores, -np.inf).max(axis=1, initial=-np.inf)[:, None]
        target_read = (is_target & is_read).any(axis=1)[:, None]
        is_before = (is_read > target_read) | ((is_read == target_read) & (self.scores >= target_scores))
        is_before &= (self.items >= 0) & ~is_target
        is_retrieved = is_target.any(axis=1)
        return Ranked(np.where(is_retrieved, is_before.sum(axis=1), last), is_retrieved)


class Listed(NamedTuple):
    """The candidates that the language model reads.

    Attributes:
        rows: which rows of ``Scored``: those with two candidates at least, as one needs no order.
        places: of the candidates among the scored ones, in the order of the prompt; -1 pads.
        items: the same as item positions.
        values: the language model's scores of them, by evidence name.
    """

    rows: Int[ndarray, "read"]
    places: Int[ndarray, "read listed"]
    items: Int[ndarray, "read listed"]
    values: dict[str, Float[ndarray, "read listed"]]

    def take(self, rows: ndarray) -> "Listed":
        """Some of the rows."""
        values = {name: scores[rows] for name, scores in self.values.items()}
        return Listed(self.rows[rows], self.places[rows], self.items[rows], values)


class Ranker(ABC):
    """The steps that every ranking shares; a subclass scores candidates before the language model.

    Args:
        train_counts: training interactions of every item, which rank for users without a history.
        num_ranked: the number of best candidates that the language model orders.
        seed: of the order in which a prompt lists them.
    """

    def __init__(self, train_counts: Int[ndarray, "items"], num_ranked: int, seed: int) -> None:
        self.train_counts, self.num_ranked, self.seed = train_counts, num_ranked, seed

    def rank_catalogue(
        self,
        histories: Histories,
        excepted: Int[ndarray, "rows"] | None,
        reader: LlmReader | None = None,
        *,
        folds: Int[ndarray, "rows"] | None = None,
        depth: int = 0,
        num_ranked: int | None = None,
        allowed: Bool[ndarray, "rows items"] | None = None,
    ) -> Iterator[Scored]:
        """Ranks the whole catalogue for every row, some rows at a time, in order.

        Args:
            histories: of users.
            excepted: the one item of a row's history that stays a candidate, -1 for none (protocol ``full``); None
                keeps the whole history (``full-repeat``).
            reader: the language model; None leaves it out.
            folds: each row is scored by the members fitted without its fold; None scores by all members.
            depth: minimal number of candidates, where the recipe's retrieval does not decide it.
            num_ranked: in place of the ranker's own.
            allowed: which items are candidates of each row, all where None. Retrieval skips the others, so that a
                strict mask leaves as many candidates; no evidence of an item depends on it.
        """
        num_read = self.num_ranked if num_ranked is None else num_ranked

        def scored(start: int) -> Scored:
            part = slice(start, min(start + USERS_TOGETHER, histories.num_rows))
            own = (None if folds is None else folds[part], None if allowed is None else allowed[part])
            task = Task(histories.part(part), part, histories.num_rows, *own)
            spared = None if excepted is None else excepted[part]
            return self.score_catalogue(task, spared, max(depth, num_read))

        for one in ordered_map(scored, range(0, histories.num_rows, USERS_TOGETHER)):
            yield self.with_llm(one, histories, reader, "catalogue", folds, num_read)

    def rank_lists(
        self,
        histories: Histories,
        lists: Int[ndarray, "rows candidates"],
        reader: LlmReader | None = None,
        *,
        folds: Int[ndarray, "rows"] | None = None,
    ) -> Iterator[Scored]:
        """Ranks given candidates, -1 pads, some rows at a time; the rest as in ``rank_catalogue``."""

        def scored(start: int) -> Scored:
            part = slice(start, min(start + USERS_TOGETHER, len(lists)))
            task = Task(histories.part(part), part, len(lists), None if folds is None else folds[part])
            return self.score_lists(task, lists[part])

        for one in ordered_map(scored, range(0, len(lists), USERS_TOGETHER)):
            yield self.with_llm(one, histories, reader, "lists", folds, self.num_read_of(lists.shape[1]))

    @abstractmethod
    def score_catalogue(self, task: "Task", excepted: Int[ndarray, "rows"] | None, depth: int) -> Scored:
        """Retrieves candidates and scores them, without a language model."""

    @abstractmethod
    def score_lists(self, task: "Task", lists: Int[ndarray, "rows candidates"]) -> Scored:
        """Scores given candidates, without a language model."""

    @abstractmethod
    def rescore(self, scored: Scored, listed: Listed, scope: Scope, folds: Int[ndarray, "rows"] | None) -> ndarray:
        """Scores [read, listed] of what the language model read; ``folds`` are those of the rows read."""

    @abstractmethod
    def llm_names(self, scope: Scope) -> list[str]:
        """Names of the language model's evidence; empty where it adds nothing."""

    def num_read_of(self, width: int) -> int:
        """The number of a given list's candidates that the language model reads."""
        return min(width, self.num_ranked)

    def read_best(
        self,
        scored: Scored,
        histories: Histories,
        reader: LlmReader,
        scope: Scope,
        names: Sequence[str],
        num_ranked: int,
    ) -> Listed:
        """The language model's scores of the best candidates, as many of them as fit into its prompt.

        A given list that is read whole is read in its own order. The best of more are shuffled by the user's history,
        so that the prompt does not reveal their ranks. For users without a history nothing is read.

        Args:
            scored: of ``rank_catalogue`` or ``rank_lists``.
            histories: of all rows.
            reader: the language model.
            scope: of the candidates.
            names: of the evidence to compute.
            num_ranked: candidates that are read, at most.
        """
        own = histories.part(scored.rows)
        num_rows, width = scored.items.shape
        is_whole = scope == "lists" and width <= num_ranked
        places = np.tile(np.arange(width), (num_rows, 1)) if is_whole else scored.best(num_ranked)
        places = cut_to_fit(places, scored.items, reader.fits)
        if not is_whole:
            places = shuffled(places, scored.items, own, self.seed)
        rows = np.flatnonzero(((places >= 0).sum(axis=1) > 1) & (own.ends > own.starts))
        places, items = places[rows], _taken(scored.items[rows], places[rows])
        values = {name: reader.score(rows + scored.rows.start, items, name) if len(rows) else items for name in names}
        return Listed(rows, places, items, values)

    def with_llm(
        self,
        scored: Scored,
        histories: Histories,
        reader: LlmReader | None,
        scope: Scope,
        folds: Int[ndarray, "rows"] | None = None,
        num_ranked: int | None = None,
    ) -> Scored:
        """The same candidates, the best of them reordered by the language model; see ``rank_catalogue``."""
        num_ranked = self.num_ranked if num_ranked is None else num_ranked
        names = self.llm_names(scope)
        if reader is None or not names or num_ranked < 2:
            return scored
        listed = self.read_best(scored, histories, reader, scope, names, num_ranked)
        known = None if folds is None else folds[scored.rows][listed.rows]
        scores, llm = scored.scores.astype(np.float64), np.full(scored.items.shape, np.nan)
        is_listed = listed.places >= 0
        at = (np.broadcast_to(listed.rows[:, None], is_listed.shape)[is_listed], listed.places[is_listed])
        scores[at] = self.rescore(scored, listed, scope, known)[is_listed]
        llm[at] = listed.values[names[0]][is_listed]
        return scored._replace(scores=scores, llm=llm)


class Task(NamedTuple):
    """Some rows of a ranking.

    Attributes:
        histories: of these rows.
        rows: their positions among all rows.
        num_rows: of all rows; a large task may pay for an index.
        folds: of these rows, see ``Ranker.rank_catalogue``.
        allowed: of these rows, see ``Ranker.rank_catalogue``.
    """

    histories: Histories
    rows: slice
    num_rows: int
    folds: Int[ndarray, "rows"] | None = None
    allowed: Bool[ndarray, "rows items"] | None = None


class BackboneRanker(Ranker):
    """Ranks by x_u · E_i, and by the language model's score instead where it reads; given lists are read whole.

    Args:
        backbone: frozen.
        train_counts: see ``Ranker``.
        num_ranked: see ``Ranker``.
        seed: see ``Ranker``.
    """

    def __init__(self, backbone: Backbone, train_counts: Int[ndarray, "items"], num_ranked: int, seed: int) -> None:
        super().__init__(train_counts, num_ranked, seed)
        self.backbone, self.item_embeddings = backbone, backbone.item_embeddings().detach()

    def score_catalogue(self, task: Task, excepted: Int[ndarray, "rows"] | None, depth: int) -> Scored:
        """The items nearest to x_u."""
        histories, users = task.histories, self._represent(task.histories)
        longest = int((histories.ends - histories.starts).max(initial=0))
        items = scan(users, self.item_embeddings, depth if excepted is None else depth + longest, 0, task.allowed)[0]
        items = with_popular(items, histories, self.train_counts, depth, task.allowed)
        items = without_history(items, histories, excepted, len(self.item_embeddings))
        return Scored(task.rows, items, popular_last(self._dot_products(users, items), histories))

    def score_lists(self, task: Task, lists: Int[ndarray, "rows candidates"]) -> Scored:
        """See ``Ranker``."""
        return Scored(task.rows, lists, self._dot_products(self._represent(task.histories), lists))

    def rescore(self, scored: Scored, listed: Listed, scope: Scope, folds: Int[ndarray, "rows"] | None) -> ndarray:
        """See ``Ranker``."""
        return listed.values[LLM]

    def llm_names(self, scope: Scope) -> list[str]:
        """See ``Ranker``."""
        return [LLM]

    def num_read_of(self, width: int) -> int:
        """See ``Ranker``."""
        return width

    def filled(
        self,
        scored: Scored,
        histories: Histories,
        excepted: Int[ndarray, "rows"] | None,
        allowed: Bool[ndarray, "rows items"] | None = None,
    ) -> Scored:
        """The same candidates followed by the rest of the catalogue, in the backbone's order."""
        mask = None if allowed is None else allowed[scored.rows]
        task = Task(histories.part(scored.rows), scored.rows, histories.num_rows, allowed=mask)
        spared = None if excepted is None else excepted[scored.rows]
        others = self.score_catalogue(task, spared, len(self.item_embeddings)).items
        is_known = (others[:, :, None] == scored.items[:, None]).any(axis=2)
        rest = compact(np.where(is_known, -1, others))
        items = np.concatenate([scored.items, rest], axis=1)
        scores = np.concatenate([scored.scores, scores_below(scored.scores, items)], axis=1)
        llm = None if scored.llm is None else np.pad(scored.llm, ((0, 0), (0, rest.shape[1])), constant_values=np.nan)
        return scored._replace(items=items, scores=scores, llm=llm)

    def _represent(self, histories: Histories) -> Float[Tensor, "rows dim"]:
        return encode_histories(self.backbone, histories.items, histories.starts, histories.ends)

    def _dot_products(
        self, users: Float[Tensor, "rows dim"], items: Int[ndarray, "rows candidates"]
    ) -> Float[ndarray, "rows candidates"]:
        wanted = self.item_embeddings[torch.from_numpy(items.clip(min=0).astype(np.int64))]
        return torch.einsum("ud,ucd->uc", users, wanted).numpy()


class FusedRanker(Ranker):
    """Ranks by a fusion of all evidence, to whose score the language model's evidence is added.

    The addition is fitted separately on top of the fusion, so that rankings with and without the language model differ
    by it alone.

    Args:
        evidence: all but the language model's.
        fusions: of that evidence, by scope.
        additions: fusions of the language model's evidence, by scope; None where it gained nothing on validation.
        depth: number of items that each scorer and each retrieving space retrieves.
        num_fused: number of retrieved candidates that are fused, those ranked high in many lists; the rest follow.
        num_ranked: see ``Ranker``.
        seed: see ``Ranker``.
    """

    def __init__(
        self,
        evidence: Evidence,
        fusions: Mapping[Scope, Fusion],
        additions: Mapping[Scope, Fusion | None],
        *,
        depth: int,
        num_fused: int,
        num_ranked: int,
        seed: int,
    ) -> None:
        super().__init__(evidence.train_counts, num_ranked, seed)
        self.evidence, self.fusions, self.additions = evidence, dict(fusions), dict(additions)
        self.depth, self.num_fused = depth, max(num_fused, num_ranked)

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        fusions: Mapping[Scope, Fusion],
        additions: Mapping[Scope, Fusion | None],
        config: "FusionStageConfig",
        seed: int,
    ) -> "FusedRanker":
        """With the depths of a recipe."""
        return cls(
            evidence, fusions, additions,
            depth=config.evidence.depth, num_fused=config.num_fused, num_ranked=config.num_ranked, seed=seed,
        )  # fmt: skip

    def score_catalogue(self, task: Task, excepted: Int[ndarray, "rows"] | None, depth: int) -> Scored:
        """The union of what scorers and spaces retrieve, of which the first candidates are fused."""
        items, users = retrieve(self.evidence, task.histories, self.depth, excepted, task.num_rows, task.allowed)
        features = self.evidence.features(task.histories, items[:, : self.num_fused], users)
        fused = fused_scores(self.fusions["catalogue"], features, task.folds)
        scores = np.concatenate([fused, scores_below(fused, items)], axis=1)
        return Scored(task.rows, items, popular_last(scores, task.histories), features)

    def score_lists(self, task: Task, lists: Int[ndarray, "rows candidates"]) -> Scored:
        """See ``Ranker``."""
        features = self.evidence.features(task.histories, lists)
        return Scored(task.rows, lists, fused_scores(self.fusions["lists"], features, task.folds), features)

    def rescore(self, scored: Scored, listed: Listed, scope: Scope, folds: Int[ndarray, "rows"] | None) -> ndarray:
        """See ``Ranker``."""
        return listed_scores(scored, listed) + self.added_by_llm(scored, listed, scope, folds)

    def llm_names(self, scope: Scope) -> list[str]:
        """See ``Ranker``."""
        model = self.additions.get(scope)
        return [] if model is None else [name for name in model.names if name not in CONTEXT]

    def added_by_llm(
        self, scored: Scored, listed: Listed, scope: Scope, folds: Int[ndarray, "rows"] | None = None
    ) -> Float[ndarray, "read listed"]:
        """The language model's addition to the fused scores of the candidates that it read; zeros without one."""
        model = self.additions.get(scope)
        if model is None:
            return np.zeros(listed.places.shape, np.float32)
        features = listed_features(scored, listed)
        return fused_scores(model, llm_features(self.evidence.names, model.names, features, listed.values), folds)

    def contributions(
        self, scored: Scored, row: int, places: Int[ndarray, "places"], scope: Scope
    ) -> list[dict[str, float]]:
        """Contributions of each evidence to the scores of some candidates of a row; they sum to it.

        A candidate that was not fused has none: retrieval alone ranks it.
        """
        table = self.contribution_table(scored.row(row), places[None], scope)[0]
        names = self.contribution_names
        return [
            {name: float(value) for name, value in zip(names, values, strict=True) if not np.isnan(value)}
            for values in table
        ]

    @property
    def contribution_names(self) -> list[str]:
        """What ``contribution_table`` has columns of: all evidence, its interplay, and the language model."""
        return [*self.evidence.names, INTERPLAY, LLM]

    def contribution_table(
        self, scored: Scored, places: Int[ndarray, "rows places"], scope: Scope
    ) -> Float[ndarray, "rows places evidence"]:
        """See ``contributions``; nan of what the language model did not read, and all nan of what was not fused."""
        table = np.full((*places.shape, len(self.contribution_names)), np.nan)
        if scored.features is None:
            return table
        num_fused = scored.features.shape[1]
        taken = np.take_along_axis(scored.features, places.clip(max=num_fused - 1)[:, :, None], axis=1)
        with torch.no_grad():
            table[:, :, :-1] = self.fusions[scope].contributions(torch.from_numpy(taken)).numpy()
        if scored.llm is not None:
            is_read = ~np.isnan(np.take_along_axis(scored.llm, places, axis=1))
            scores = np.take_along_axis(scored.scores, places, axis=1)
            table[:, :, -1] = np.where(is_read, scores - table[:, :, :-1].sum(axis=2), np.nan)
        table[places >= num_fused] = np.nan
        return table


def retrieve(
    evidence: Evidence,
    histories: Histories,
    depth: int,
    excepted: Int[ndarray, "rows"] | None = None,
    num_queries: int | None = None,
    allowed: Bool[ndarray, "rows items"] | None = None,
) -> tuple[Int[ndarray, "rows candidates"], Users]:
    """Candidates from the whole catalogue, -1 pads, and the users as the scorers represent them.

    Args:
        evidence: its scorers and spaces retrieve.
        histories: of users; one without any is given the most popular items.
        depth: number of items that each scorer and each space retrieves.
        excepted: see ``Ranker.rank_catalogue``.
        num_queries: rows of the whole task, of which these are a part; None is these alone.
        allowed: see ``Ranker.rank_catalogue``.
    """
    items, users = evidence.retrieve(histories, depth, num_queries, allowed)
    items = with_popular(items, histories, evidence.train_counts, depth, allowed)
    return without_history(items, histories, excepted, evidence.num_items), users


def with_popular(
    items: Int[ndarray, "rows candidates"],
    histories: Histories,
    train_counts: Int[ndarray, "items"],
    depth: int,
    allowed: Bool[ndarray, "rows items"] | None = None,
) -> Int[ndarray, "rows at_least"]:
    """The same candidates, and for users without a history the ``depth`` most popular ones, ties by position."""
    is_empty = histories.ends == histories.starts
    if not is_empty.any():
        return items
    popular = np.argsort(-train_counts, kind="stable")
    depth = min(depth, len(popular))
    items = np.pad(items, ((0, 0), (0, max(0, depth - items.shape[1]))), constant_values=-1)
    for row in np.flatnonzero(is_empty):
        best = (popular if allowed is None else popular[allowed[row, popular]])[:depth]
        items[row] = np.pad(best, (0, items.shape[1] - len(best)), constant_values=-1)
    return items


def popular_last(scores: Float[ndarray, "rows candidates"], histories: Histories) -> Float[ndarray, "rows candidates"]:
    """The same scores, and for users without a history descending ones, so that popularity decides."""
    is_empty = (histories.ends == histories.starts)[:, None]
    return np.where(is_empty, -np.arange(scores.shape[1], dtype=np.float32), scores)


def without_history(
    items: Int[ndarray, "rows candidates"], histories: Histories, excepted: Int[ndarray, "rows"] | None, num_items: int
) -> Int[ndarray, "rows fewer"]:
    """Candidates without those of their row's history, the excepted one kept; all with None. Padding at the end."""
    if excepted is None:
        return items
    is_owned = is_in_history(histories, items, num_items) & (items != excepted[:, None])
    return compact(np.where(is_owned, -1, items))


def compact(items: Int[ndarray, "rows candidates"]) -> Int[ndarray, "rows fewer"]:
    """The same candidates in the same order, padding at the end, and cut to the widest row."""
    order = np.argsort(items < 0, axis=1, kind="stable")
    widest = max(1, int((items >= 0).sum(axis=1).max(initial=0)))
    return np.take_along_axis(items, order[:, :widest], axis=1)


def is_in_history(
    histories: Histories, items: Int[ndarray, "rows candidates"], num_items: int
) -> Bool[ndarray, "rows candidates"]:
    """Whether each candidate is anywhere in its row's history."""
    items_of = [histories.items[start:end] for start, end in zip(histories.starts, histories.ends, strict=True)]
    rows = np.repeat(np.arange(histories.num_rows), histories.ends - histories.starts)
    owned = rows * num_items + np.concatenate([histories.items[:0], *items_of])
    wanted = np.arange(histories.num_rows)[:, None] * num_items + items
    return np.isin(wanted, owned) & (items >= 0)


def scores_below(
    fused: Float[ndarray, "rows fused"], items: Int[ndarray, "rows candidates"]
) -> Float[ndarray, "rows rest"]:
    """Scores of the candidates that were not fused: below all fused ones, and descending."""
    num_fused, places = fused.shape[1], np.arange(1, 1 + items.shape[1] - fused.shape[1], dtype=np.float32)
    least = np.where(items[:, :num_fused] >= 0, fused, np.inf).min(axis=1, initial=0)
    return least[:, None] - places


def cut_to_fit(
    places: Int[ndarray, "rows listed"],
    items: Int[ndarray, "rows candidates"],
    fits: Callable[[Int[ndarray, "rows listed"]], Bool[ndarray, "rows"]],
) -> Int[ndarray, "rows listed"]:
    """The same places without those of padding, the last ones dropped until the rest fits into a row's prompt."""
    places = np.where(_taken(items, places) < 0, -1, places)
    rows = np.arange(len(places))
    while len(rows := rows[~fits(_taken(items[rows], places[rows]))]):
        last = (places[rows] >= 0).sum(axis=1) - 1
        rows, last = rows[last >= 0], last[last >= 0]
        places[rows, last] = -1
    return places


def first_that_fit(
    scored: Scored, num_listed: int, fits: Callable[[Int[ndarray, "rows listed"]], Bool[ndarray, "rows"]]
) -> Int[ndarray, "rows listed"]:
    """The best candidates, best first, at most ``num_listed`` and as many as fit into a prompt; -1 pads."""
    places = cut_to_fit(scored.best(num_listed), scored.items, fits)
    return compact(_taken(scored.items, places))


def shuffled(
    places: Int[ndarray, "rows listed"], items: Int[ndarray, "rows candidates"], histories: Histories, seed: int
) -> Int[ndarray, "rows listed"]:
    """The same places in an order that depends on the user's history and the set of items alone, padding last."""
    listed = _taken(items, places)
    keys = np.full(places.shape, 2.0)
    for row, (start, end) in enumerate(zip(histories.starts, histories.ends, strict=True)):
        known = np.argsort(listed[row], kind="stable")[(listed[row] < 0).sum() :]
        history = histories.items[start:end].astype(np.int64).tobytes()
        keys[row, known] = seeds.rng(seed, "ranking", "listed", crc32(history)).random(len(known))
    return np.take_along_axis(places, np.argsort(keys, axis=1, kind="stable"), axis=1)


def listed_features(scored: Scored, listed: Listed) -> Float[ndarray, "read listed evidence"]:
    """The other evidence of the candidates that the language model read."""
    if scored.features is None:
        raise ValueError("candidates have no evidence: nothing was fused")
    places = listed.places.clip(min=0)[:, :, None]
    return np.take_along_axis(scored.features[listed.rows], places, axis=1)


def listed_scores(scored: Scored, listed: Listed) -> Float[ndarray, "read listed"]:
    """The scores without the language model of the candidates that it read."""
    return _taken(scored.scores[listed.rows], listed.places)


def _taken(values: ndarray, places: Int[ndarray, "rows places"]) -> ndarray:
    """Values at some places of each row, -1 at padding."""
    return np.where(places < 0, -1, np.take_along_axis(values, np.maximum(places, 0), axis=1))
