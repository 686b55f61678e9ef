"""Scores a trained system under every protocol: from scores to ranks, resumed where it was killed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.dataset import Dataset, Targets
from allrec.errors import InputError
from allrec.evaluation.llm_scores import Asked, LlmScorers, histories_before, stored_llm_scores
from allrec.evaluation.ranks import candidate_ranks, dot_product_ranks
from allrec.evaluation.results import Ranking
from allrec.evaluation.segments import sample_rows
from allrec.parallel import OnProgress, no_progress

LLM_SCORERS = ("llm", "llm-random-items", "llm-no-soft")
READ_BY_LLM = (*LLM_SCORERS, "readout", "allround")
"""What the language model reads every user for."""
RANKED_BY_THEMSELVES = ("text", "fusion", "readout", "allround")
"""What a system with a fusion, or with a read-out head, ranks by itself."""


class Task(NamedTuple):
    """One scorer under one protocol on one split."""

    split: str
    protocol: str
    scorer: str


class Ranked(NamedTuple):
    """What a system ranked by itself.

    Attributes:
        rows: rows of the split's targets.
        ranks: 0-based, ties against the target.
        is_retrieved: whether retrieval found the target; None where there was none.
    """

    rows: Int[ndarray, "rows"]
    ranks: Int[ndarray, "rows"]
    is_retrieved: Bool[ndarray, "rows"] | None = None


class Scorers(LlmScorers, Protocol):
    """What an evaluation asks of a system."""

    item_embeddings: Float[Tensor, "items dim"]
    joint_embeddings: Float[Tensor, "items dim"]

    @property
    def rankers(self) -> Mapping[str, "Ranker"]:
        """Scorers that the system ranks by itself, by name; may be none."""
        ...

    def can_list(self, candidates: Int[ndarray, "rows candidates"]) -> bool:
        """Whether a prompt has room for each row of candidates."""
        ...


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and where partial scores are kept.

    Attributes:
        protocols: of ``metrics.json``.
        splits: "valid", "test".
        llm_users: how many rows of each split the language model scores; 0 is all.
        ablation_users: how many its ablations score at most; 0 is as many.
        catalogue_users: how many rows of each split any scorer ranks the whole catalogue for; 0 is all.
        scorers: which scorers, of all protocols that they can do.
        folder: partial scores lie here; None keeps none.
        read_folders: further folders in which the language model's scores may lie already.
        seed: of the sample of users.
        on_progress: called with the share done, and how many users were scored so far, each scorer's counted.
    """

    protocols: tuple[str, ...]
    splits: tuple[str, ...]
    llm_users: dict[str, int]
    ablation_users: int = 0
    catalogue_users: int = 0
    scorers: tuple[str, ...] = ("cf", "joint", "text", "fusion", *LLM_SCORERS, "readout", "allround")
    folder: Path | None = None
    read_folders: tuple[Path, ...] = ()
    seed: int = 0
    on_progress: OnProgress = no_progress

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the language model's scores are looked for; the first is written to."""
        return () if self.folder is None else (self.folder, *self.read_folders)

    def sample_of(self, task: Task) -> int | None:
        """How many rows a task ranks; None is all."""
        asked = [
            self.llm_users.get(task.split, 0) if task.scorer in READ_BY_LLM else 0,
            self.ablation_users if task.scorer in LLM_SCORERS[1:] else 0,
            self.catalogue_users if task.protocol.startswith("full") else 0,
        ]
        return min((size for size in asked if size), default=None)

    def rows(self, task: Task, num_rows: int) -> Int[ndarray, "rows"]:
        """Which rows of a split a task ranks: a fixed sample, or all of them."""
        return sample_rows(num_rows, self.sample_of(task), self.seed)


Ranker = Callable[[Dataset, Task, Plan, OnProgress], Ranked]


def evaluate(system: Scorers, dataset: Dataset, plan: Plan) -> list[Ranking]:
    """Ranks of every scorer under every protocol of the plan; a split without targets is left out.

    Language-model scorers take part where a list of candidates is stored and fits into the prompt.
    """
    rankings: list[Ranking] = []
    tasks = [
        Task(split, protocol, scorer)
        for split in plan.splits
        for protocol in plan.protocols
        for scorer in plan.scorers
        if len(dataset.targets[split]) and _takes_part(system, dataset.targets[split], protocol, scorer)
    ]
    for done, task in enumerate(tasks):
        start = time.perf_counter()
        users_before = sum(len(ranking.rows) for ranking in rankings)

        def report(share: float, values: dict[str, float], done: int = done, before: int = users_before) -> None:
            plan.on_progress((done + share) / len(tasks), {"users": before + values["users"]})

        ranked = _ranked(system, dataset, task, plan, report)
        seconds = time.perf_counter() - start
        rankings.append(Ranking(*task, ranked.rows, ranked.ranks, seconds, ranked.is_retrieved))
        report(1.0, {"users": float(len(ranked.rows))})
    if not rankings:
        raise InputError(f"{dataset.name} has nobody to evaluate: no user has three interactions.")
    return rankings


def _ranked(system: Scorers, dataset: Dataset, task: Task, plan: Plan, on_progress: OnProgress) -> Ranked:
    if task.scorer in system.rankers:
        return system.rankers[task.scorer](dataset, task, plan, on_progress)
    if task.scorer in LLM_SCORERS:
        return Ranked(*_llm_ranks(system, dataset, task, plan, on_progress))
    rows = plan.rows(task, len(dataset.targets[task.split]))
    return Ranked(rows, _dot_product_ranks(system, dataset, dataset.targets[task.split].take(rows), task))


def _takes_part(system: Scorers, targets: Targets, protocol: str, scorer: str) -> bool:
    if scorer in RANKED_BY_THEMSELVES and scorer not in system.rankers:
        return False
    if scorer not in (*LLM_SCORERS, "allround") or (scorer == "allround" and protocol.startswith("full")):
        return True
    return protocol in targets.candidates and system.can_list(targets.candidates[protocol])


def _dot_product_ranks(system: Scorers, dataset: Dataset, targets: Targets, task: Task) -> Int[ndarray, "rows"]:
    items = system.item_embeddings if task.scorer == "cf" else system.joint_embeddings
    users = system.represent(histories_before(dataset, targets, np.arange(len(targets))))
    return dot_product_ranks(users, items, dataset, targets, task.protocol)


def _llm_ranks(
    system: Scorers, dataset: Dataset, task: Task, plan: Plan, on_progress: OnProgress
) -> tuple[Int[ndarray, "rows"], Int[ndarray, "rows"]]:
    split, protocol, scorer = task
    targets = dataset.targets[split]
    rows = plan.rows(task, len(targets))
    asked = Asked(split, protocol, scorer, rows, targets.candidates[protocol][rows])
    scores = stored_llm_scores(system, dataset, asked, plan.folders, on_progress)
    return rows, candidate_ranks(scores, asked.candidates, targets.items[rows])
