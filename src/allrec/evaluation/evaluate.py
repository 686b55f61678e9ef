"""Ranks the targets of a data set by every scorer under every protocol."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from pydantic import Field

from allrec.data.dataset import Dataset, Targets
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import Config, InputError
from allrec.evaluation.ranks import Ranked as Ranked
from allrec.evaluation.results import Ranking
from allrec.evaluation.segments import sample_rows
from allrec.parallel import OnProgress, no_progress

Model = TypeVar("Model")


class RankingRequest(NamedTuple):
    """The targets that a scorer ranks under one protocol.

    Attributes:
        dataset: whose targets are ranked.
        split: "valid" or "test".
        protocol: what the targets are ranked among.
        rows: rows of the split's targets.
        read_rows: all rows that the scorer ranks under some protocol; ``rows`` are among them.
        folders: of stored language model scores; the first is written to; may be empty.
        on_progress: with the number of ``users`` scored.
    """

    dataset: Dataset
    split: str
    protocol: EvaluationProtocol
    rows: Int[ndarray, "rows"]
    read_rows: Int[ndarray, "read"]
    folders: tuple[Path, ...] = ()
    on_progress: OnProgress = no_progress

    @property
    def targets(self) -> Targets:
        """The targets of the rows."""
        return self.dataset.targets[self.split].take(self.rows)


@dataclass(frozen=True)
class Scorer(Generic[Model]):
    """A row of the table of scorers.

    Attributes:
        rank: ranks the targets of a request.
        why_not: of (model, targets of a split, protocol): None where the scorer applies, an empty text where the model
            does not have it, else the reason why it is left out.
        reads_llm: whether the language model reads every user, so that a sample of users suffices.
        is_control: whether it is an ablation, for which a smaller sample suffices.
        is_lead: whether the others are tested against it.
        stages: names of the stages that the score needs; a table's training time is their sum.
    """

    rank: Callable[[Model, RankingRequest], Ranked]
    why_not: Callable[[Model, Targets, EvaluationProtocol], str | None]
    reads_llm: bool = False
    is_control: bool = False
    is_lead: bool = False
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and where partial scores are stored.

    Attributes:
        protocols: names of the protocols.
        splits: "valid", "test".
        llm_users: the number of rows of each split that the language model scores; 0 is all.
        ablation_users: the number that its ablations score at most; 0 is the same number.
        catalogue_users: the number of rows of each split that any scorer ranks the whole catalogue for; 0 is all.
        scorers: names of the scorers, of those that the model has; None is all.
        folder: of partial scores; None stores none.
        read_folders: further folders that may hold language model scores.
        seed: of the sample of users.
        on_progress: with the number of ``users`` scored so far, summed over scorers.
    """

    protocols: tuple[str, ...]
    splits: tuple[str, ...]
    llm_users: Mapping[str, int] = field(default_factory=dict)
    ablation_users: int = 0
    catalogue_users: int = 0
    scorers: tuple[str, ...] | None = None
    folder: Path | None = None
    read_folders: tuple[Path, ...] = ()
    seed: int = 0
    on_progress: OnProgress = no_progress

    @classmethod
    def of(cls, config: "EvaluationConfig", **where: Any) -> "Plan":
        """The evaluation that a recipe configures; ``where`` has the other attributes."""
        return cls(
            protocols=config.protocols,
            splits=config.splits,
            llm_users={"valid": config.llm_valid_users, "test": config.llm_users},
            ablation_users=config.ablation_users,
            catalogue_users=config.catalogue_users,
            seed=config.bootstrap_seed,
            **where,
        )

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of stored language model scores; the first is written to."""
        return () if self.folder is None else (self.folder, *self.read_folders)

    def rows(self, scorer: Scorer[Model], split: str, protocol: str | None, num_rows: int) -> Int[ndarray, "rows"]:
        """Which rows of a split a scorer ranks, a fixed sample or all; under any protocol where that is None."""
        limits = [
            self.llm_users.get(split, 0) if scorer.reads_llm else 0,
            self.ablation_users if scorer.is_control else 0,
            self.catalogue_users if protocol is not None and EvaluationProtocol(protocol).is_catalogue else 0,
        ]
        return sample_rows(num_rows, min((size for size in limits if size), default=None), self.seed)


class Task(NamedTuple):
    """One scorer under one protocol on one split."""

    split: str
    protocol: EvaluationProtocol
    scorer: str


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        rankings: of every scorer that applies.
        left_out: scorers that do not apply, and why.
    """

    rankings: list[Ranking]
    left_out: dict[Task, str]


def evaluate(model: Model, dataset: Dataset, plan: Plan, scorers: Mapping[str, Scorer[Model]]) -> Evaluation:
    """Ranks of every scorer under every protocol of the plan; a split without targets is left out.

    Args:
        model: what the scorers rank with.
        dataset: whose targets are ranked.
        plan: which splits, protocols, scorers and users.
        scorers: by name.

    Raises:
        InputError: no user can be evaluated.
    """
    tasks, left_out = _tasks(model, dataset, plan, scorers)
    rankings: list[Ranking] = []
    for done, task in enumerate(tasks):
        start, before = time.perf_counter(), sum(len(ranking.rows) for ranking in rankings)

        def on_progress(share: float, values: dict[str, float], done: int = done, before: int = before) -> None:
            plan.on_progress((done + share) / len(tasks), {"users": before + values["users"]})

        scorer, num_rows = scorers[task.scorer], len(dataset.targets[task.split])
        rows, read = (plan.rows(scorer, task.split, protocol, num_rows) for protocol in (task.protocol, None))
        request = RankingRequest(dataset, task.split, task.protocol, rows, read, plan.folders, on_progress)
        ranked = scorer.rank(model, request)
        seconds = time.perf_counter() - start
        rankings.append(Ranking(*task, rows, np.asarray(ranked.ranks), seconds, ranked.is_retrieved))
        on_progress(1.0, {"users": float(len(rows))})
    if not rankings:
        raise InputError(f"{dataset.name} has nobody to evaluate: no user has three interactions.")
    return Evaluation(rankings, left_out)


def _tasks(
    model: Model, dataset: Dataset, plan: Plan, scorers: Mapping[str, Scorer[Model]]
) -> tuple[list[Task], dict[Task, str]]:
    names = list(scorers) if plan.scorers is None else [name for name in scorers if name in plan.scorers]
    tasks, left_out = [], {}
    for split in plan.splits:
        targets = dataset.targets[split]
        for protocol in map(EvaluationProtocol, plan.protocols if len(targets) else ()):
            for name in names:
                reason = scorers[name].why_not(model, targets, protocol)
                if reason is None:
                    tasks.append(Task(split, protocol, name))
                elif reason:
                    left_out[Task(split, protocol, name)] = reason
    return tasks, left_out


class EvaluationConfig(Config):
    """What ``train`` measures at its end."""

    protocols: tuple[EvaluationProtocol, ...] = Field(
        (EvaluationProtocol.PAPER, EvaluationProtocol.FULL),
        min_length=1,
        description="Candidates: stored lists, or the catalogue.",
    )
    splits: tuple[Literal["valid", "test"], ...] = Field(("valid", "test"), min_length=1, description="Which targets.")
    llm_users: int = Field(
        0, ge=0, description="Test users whom language-model scorers score, a fixed sample; 0 is all."
    )
    llm_valid_users: int = Field(1000, ge=0, description="The same for validation; 0 is all.")
    ablation_users: int = Field(2000, ge=0, description="The same for llm-random-items and llm-no-soft; 0 is all.")
    catalogue_users: int = Field(
        100_000,
        ge=0,
        description="Users of each split whom any scorer ranks the whole catalogue for, a fixed sample; 0 is all.",
    )
    llm_tokens_per_batch: int = Field(16384, ge=1, description="Tokens read at once when candidates are scored.")
    normalize: Literal["sum", "mean", "pmi", "pmi-mean"] = Field(
        "pmi",
        description="Score of a title: the sum of its tokens' log-likelihoods, their mean, or either less the prior "
        "log-likelihood without any history (pointwise mutual information).",
    )
    bootstrap_seed: int = Field(0, ge=0, description="Seed of intervals, paired tests and samples of users.")
