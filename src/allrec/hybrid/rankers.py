"""Scorers ``text``, ``fusion`` and ``allround`` in an evaluation: from evidence to the ranks of targets."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from allrec import seeds
from allrec.data.dataset import Dataset, Targets
from allrec.evaluation.evaluate import Plan, Ranked, Ranker, Task
from allrec.evaluation.llm_scores import Asked, LlmScorers, stored_llm_scores
from allrec.evaluation.ranks import candidate_ranks, catalogue_ranks, excluded_history
from allrec.hybrid.features import histories_before, largest_similarity
from allrec.hybrid.fused import Fused, best_of
from allrec.hybrid.fusion_training import fold_of, fused_scores
from allrec.hybrid.similarity import DenseSpace
from allrec.hybrid.whole_catalogue import Retrieved, retrieved_ranks
from allrec.parallel import OnProgress

TEXT = "text"


class FusedSystem(LlmScorers, Protocol):
    """A trained system with a fusion."""

    fused: Fused | None
    recipe: Any


class Rankers(Mapping[str, Ranker]):
    """The scorers of a system's fusion, by name; none where it has no fusion.

    On validation each user is ranked by the members that were fitted without them; on test by all members, which met
    the user's validation target and never the test target.
    """

    def __init__(self, system: FusedSystem) -> None:
        self.system = system
        self.known: dict[str, Ranker] = {}
        if system.fused is not None:
            self.known = {"text": self.text, "fusion": self.fusion}
            if system.fused.with_llm:
                self.known["allround"] = self.allround

    def __getitem__(self, scorer: str) -> Ranker:
        return self.known[scorer]

    def __iter__(self) -> Any:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    @property
    def fused(self) -> Fused:
        """The system's fusion."""
        if self.system.fused is None:
            raise ValueError("the system has no fusion")
        return self.system.fused

    def text(self, dataset: Dataset, task: Task, plan: Plan, on_progress: OnProgress) -> Ranked:
        """By the largest cosine of texts with the latest items; nothing of it was trained."""
        targets = dataset.targets[task.split]
        rows = plan.rows(task, len(targets))
        targets = targets.take(rows)
        histories, space = histories_before(dataset, targets), self.fused.evidence.spaces[TEXT]
        if task.protocol.startswith("full") and isinstance(space, DenseSpace):
            everyone = np.arange(len(rows))
            excluded = excluded_history(dataset, targets, everyone) if task.protocol == "full" else None
            ranks = catalogue_ranks(
                lambda part: largest_similarity(histories.part(part), space), targets.items, len(space.unit), excluded
            )
            return Ranked(rows, ranks)
        column = self.fused.evidence.names.index(f"{TEXT}_largest")
        candidates = targets.candidates[task.protocol]
        scores = self.fused.score_lists(histories, candidates, lambda features, part: features[:, :, column])
        return Ranked(rows, candidate_ranks(scores, candidates, targets.items))

    def fusion(self, dataset: Dataset, task: Task, plan: Plan, on_progress: OnProgress) -> Ranked:
        """By all evidence but the language model's."""
        targets, fused = dataset.targets[task.split], self.fused
        rows, folds = plan.rows(task, len(targets)), self._folds(task.split, len(targets))
        targets, folds = targets.take(rows), None if folds is None else folds[rows]
        if task.protocol.startswith("full"):
            found = retrieved_ranks(
                fused.evidence, fused.score("catalogue", folds), dataset, targets, fused.depth,
                excludes_history=task.protocol == "full", num_fused=fused.num_fused,
            )  # fmt: skip
            return Ranked(rows, *found)
        candidates = targets.candidates[task.protocol]
        scores = fused.score_lists(histories_before(dataset, targets), candidates, fused.score("lists", folds))
        return Ranked(rows, candidate_ranks(scores, candidates, targets.items))

    def allround(self, dataset: Dataset, task: Task, plan: Plan, on_progress: OnProgress) -> Ranked:
        """By all evidence, for the users whom the language model reads."""
        targets = dataset.targets[task.split]
        rows = plan.rows(task, len(targets))
        folds = self._folds(task.split, len(targets))
        ask = _Ask(self.system, dataset, task, rows, None if folds is None else folds[rows], plan, on_progress)
        if task.protocol.startswith("full"):
            return self._whole_catalogue(ask, targets)
        candidates, histories = targets.candidates[task.protocol][rows], histories_before(dataset, targets, rows)
        features = self.fused.evidence.features(histories, candidates)
        scores = fused_scores(self.fused.models["lists"], features, ask.folds)
        scores += self.fused.added_by_llm("lists", features, ask.read(candidates, "lists", self.fused), ask.folds)
        return Ranked(rows, candidate_ranks(scores, candidates, targets.items[rows]))

    def _whole_catalogue(self, ask: "_Ask", targets: Targets) -> Ranked:
        """The language model reads the best few of what fusion finds; the rest stay as fusion has them."""
        fused, wanted = self.fused, targets.items[ask.rows]
        histories = histories_before(ask.dataset, targets, ask.rows)
        excepted = wanted if ask.task.protocol == "full" else None
        rng = seeds.rng(self.system.recipe.seed, "ranking", "listed", len(ask.rows))
        parts = []
        for found in fused.find(histories, ask.folds, excepted):
            before = found.ranks(wanted[found.part], fused.evidence.num_items - 1)
            listed, places = best_of(found, fused.num_ranked, rng)
            best = Retrieved(found.part, listed, *_taken(found, places))
            read = ask.part(found.part).read(listed, "catalogue", fused)
            folds = None if ask.folds is None else ask.folds[found.part]
            added = fused.added_by_llm("catalogue", best.features, read, folds)
            again = best._replace(scores=best.scores + added).ranks(wanted[found.part], -1)
            parts.append((np.where(again.is_retrieved, again.ranks, before.ranks), before.is_retrieved))
        ranks, is_retrieved = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Ranked(ask.rows, ranks, is_retrieved)

    def _folds(self, split: str, num_rows: int) -> Int[ndarray, "rows"] | None:
        if split != "valid":
            return None
        return fold_of(num_rows, len(self.fused.models["lists"].members), self.system.recipe.seed)


class _Ask:
    """What the language model is asked for some rows of a task."""

    def __init__(
        self,
        system: LlmScorers,
        dataset: Dataset,
        task: Task,
        rows: Int[ndarray, "rows"],
        folds: Int[ndarray, "rows"] | None,
        plan: Plan,
        on_progress: OnProgress,
    ) -> None:
        self.system, self.dataset, self.task, self.rows, self.folds = system, dataset, task, rows, folds
        self.plan, self.on_progress = plan, on_progress

    def part(self, part: slice) -> "_Ask":
        """For some of the rows."""
        folds = None if self.folds is None else self.folds[part]

        def on_progress(share: float, values: dict[str, float]) -> None:
            done = part.start + values["users"]
            self.on_progress(done / len(self.rows), {"users": done})

        return _Ask(self.system, self.dataset, self.task, self.rows[part], folds, self.plan, on_progress)

    def read(self, candidates: ndarray, scope: Any, fused: Fused) -> dict[str, ndarray]:
        """The language model's scores by name."""
        name = self.task.protocol if scope == "lists" else f"{self.task.protocol}-best"
        return {
            each: stored_llm_scores(
                self.system, self.dataset, Asked(self.task.split, name, each, self.rows, candidates),
                self.plan.folders, self.on_progress,
            )
            for each in fused.llm_names(scope)
        }  # fmt: skip


def _taken(found: Retrieved, places: ndarray) -> tuple[ndarray, ndarray]:
    features = np.take_along_axis(found.features, places[:, :, None], axis=1)
    return features, np.take_along_axis(found.scores, places, axis=1)
