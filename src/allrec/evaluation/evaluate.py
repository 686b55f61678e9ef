"""Scores a trained system under every protocol: from scores to ranks, resumed where it was killed."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.artifacts import load_tensors, save_tensors
from allrec.base import InputError
from allrec.data import Dataset, Targets
from allrec.evaluation.protocols import Ranking, excluded_history, sample_rows
from allrec.evaluation.ranking import candidate_ranks, catalogue_ranks, dot_product_scores

LLM_SCORERS = ("llm", "llm-random-items", "llm-no-soft")
USERS_A_CHUNK = 512
"""Users scored by the language model between two writes: at most so many are scored again after a kill."""


class Scorers(Protocol):
    """What an evaluation asks of a system."""

    item_embeddings: Float[Tensor, "items dim"]
    joint_embeddings: Float[Tensor, "items dim"]

    def represent(self, histories: list[Int[ndarray, "length"]]) -> Float[Tensor, "users dim"]:
        """x_u of each history."""
        ...

    def can_list(self, candidates: Int[ndarray, "rows candidates"]) -> bool:
        """Whether a prompt has room for each row of candidates."""
        ...

    def score_with_llm(
        self, users: Tensor, histories: list[ndarray], candidates: ndarray, scorer: Any
    ) -> Float[ndarray, "users candidates"]:
        """log P(title | prompt) of every candidate."""
        ...


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and where partial scores are kept.

    Attributes:
        protocols: of ``metrics.json``.
        splits: "valid", "test".
        llm_users: how many rows of each split the language model scores; 0 is all.
        ablation_users: how many its ablations score at most; 0 is as many.
        scorers: which scorers, of all protocols that they can do.
        folder: partial scores lie here; None keeps none.
        seed: of the sample of users.
        on_progress: called with the share done, and how many users were scored so far, each scorer's counted.
    """

    protocols: tuple[str, ...]
    splits: tuple[str, ...]
    llm_users: dict[str, int]
    ablation_users: int = 0
    scorers: tuple[str, ...] = ("cf", "joint", *LLM_SCORERS)
    folder: Path | None = None
    seed: int = 0
    on_progress: Callable[[float, int], None] = lambda share, users: None

    def sample_of(self, split: str, scorer: str) -> int | None:
        """How many rows a language-model scorer scores; None is all."""
        asked = [self.llm_users.get(split, 0), self.ablation_users if scorer != "llm" else 0]
        return min((size for size in asked if size), default=None)


def evaluate(system: Scorers, dataset: Dataset, plan: Plan) -> list[Ranking]:
    """Ranks of every scorer under every protocol of the plan; a split without targets is left out.

    Language-model scorers take part where a list of candidates is stored and fits into the prompt.
    """
    rankings: list[Ranking] = []
    tasks = [
        (split, protocol, scorer)
        for split in plan.splits
        for protocol in plan.protocols
        for scorer in plan.scorers
        if len(dataset.targets[split]) and _takes_part(system, dataset.targets[split], protocol, scorer)
    ]
    for done, (split, protocol, scorer) in enumerate(tasks):
        start = time.perf_counter()
        users_before = sum(len(ranking.rows) for ranking in rankings)

        def report(scored: int, asked: int, done: int = done, before: int = users_before) -> None:
            plan.on_progress((done + scored / asked) / len(tasks), before + scored)

        if scorer in LLM_SCORERS:
            rows, ranks = _llm_ranks(system, dataset, split, protocol, scorer, plan, report)
        else:
            rows, ranks = _dot_product_ranks(system, dataset, dataset.targets[split], protocol, scorer)
        rankings.append(Ranking(split, protocol, scorer, rows, ranks, time.perf_counter() - start))
        report(len(rows), len(rows))
    if not rankings:
        raise InputError(f"{dataset.name} has nobody to evaluate: no user has three interactions.")
    return rankings


def _takes_part(system: Scorers, targets: Targets, protocol: str, scorer: str) -> bool:
    if scorer not in LLM_SCORERS:
        return True
    return protocol in targets.candidates and system.can_list(targets.candidates[protocol])


def _dot_product_ranks(
    system: Scorers, dataset: Dataset, targets: Targets, protocol: str, scorer: str
) -> tuple[Int[ndarray, "rows"], Int[ndarray, "rows"]]:
    rows = np.arange(len(targets))
    items = system.item_embeddings if scorer == "cf" else system.joint_embeddings
    users = system.represent(histories_before(dataset, targets, rows))
    if protocol.startswith("full"):
        excluded = excluded_history(dataset, targets, rows) if protocol == "full" else None
        return rows, catalogue_ranks(dot_product_scores(users, items), targets.items, len(items), excluded)
    candidates = targets.candidates[protocol]
    scores = [
        torch.einsum("ud,ucd->uc", users[part], items[torch.from_numpy(candidates[part].clip(min=0)).long()])
        for part in np.array_split(rows, max(1, len(rows) // 1024))
    ]
    return rows, candidate_ranks(torch.cat(scores).numpy(), candidates, targets.items)


def _llm_ranks(
    system: Scorers,
    dataset: Dataset,
    split: str,
    protocol: str,
    scorer: str,
    plan: Plan,
    report: Callable[[int, int], None],
) -> tuple[Int[ndarray, "rows"], Int[ndarray, "rows"]]:
    targets = dataset.targets[split]
    rows = sample_rows(len(targets), plan.sample_of(split, scorer), plan.seed)
    candidates = targets.candidates[protocol][rows]
    scores = np.empty(candidates.shape, np.float32)
    for start in range(0, len(rows), USERS_A_CHUNK):
        part = slice(start, start + USERS_A_CHUNK)
        asked = hashlib.sha256(rows[part].tobytes() + candidates[part].tobytes()).hexdigest()[:12]
        name = f"{split}-{protocol}-{scorer}-{start}-{asked}.safetensors"
        path = None if plan.folder is None else plan.folder / name
        if path is None or not path.is_file():
            histories = histories_before(dataset, targets, rows[part])
            chunk = system.score_with_llm(system.represent(histories), histories, candidates[part], scorer)
            if path is not None:
                save_tensors(path, {"scores": torch.from_numpy(chunk)})
        scores[part] = chunk if path is None else load_tensors(path)["scores"].numpy()
        report(min(len(rows), start + USERS_A_CHUNK), len(rows))
    return rows, candidate_ranks(scores, candidates, targets.items[rows])


def histories_before(dataset: Dataset, targets: Targets, rows: Int[ndarray, "rows"]) -> list[Int[ndarray, "length"]]:
    """Each row's history before its target, oldest first."""
    starts = dataset.offsets[targets.users[rows]]
    return [
        dataset.items[start : start + length] for start, length in zip(starts, targets.positions[rows], strict=True)
    ]
