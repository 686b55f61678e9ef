"""The stage that fits fusion: on validation targets, in given lists and over the whole catalogue."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch.nn import functional

from allrec import seeds
from allrec.data.dataset import Dataset
from allrec.errors import Config, InputError
from allrec.evaluation.llm_scores import Asked
from allrec.evaluation.segments import sample_rows
from allrec.hybrid.collect import EvidenceConfig
from allrec.hybrid.features import CONTEXT, FREE, Evidence, histories_before
from allrec.hybrid.fused import LLM_EVIDENCE, Fused, Scope, best_of, llm_features
from allrec.hybrid.fusion import Fusion, FusionConfig
from allrec.hybrid.fusion_training import (
    FittedFusion,
    FusionTrainingConfig,
    Lists,
    Roles,
    cross_fit,
    fold_of,
    fused_scores,
)
from allrec.hybrid.whole_catalogue import catalogue_lists
from allrec.training.loop import LoopConfig

SCOPES: tuple[Scope, ...] = ("lists", "catalogue")
LISTED = "paper"
"""The stored lists that fusion is fitted on."""
AskLlm = Callable[[Asked], Float[ndarray, "rows candidates"]]


class FusionStageConfig(Config):
    """Evidence, fusion, and what the language model reads for it."""

    enabled: bool = Field(False, description="Whether a run trains its content parts and fits fusion.")
    evidence: EvidenceConfig = EvidenceConfig()
    training: FusionTrainingConfig = FusionTrainingConfig()
    with_llm: FusionTrainingConfig = Field(
        FusionTrainingConfig(
            model=FusionConfig(knots=4, gate_width=4, interplay_width=0),
            loop=LoopConfig(epochs=60, optimizer="adamw", learning_rate=1e-2, weight_decay=1e-2, patience=6),
        ),
        description="What the language model's evidence adds, fitted by itself; it has as many members as the other.",
    )
    num_fused: int = Field(
        64, ge=1, description="So many of the retrieved candidates, those in front in many lists, are fused."
    )
    num_ranked: int = Field(20, ge=2, description="So many of the best candidates the language model reads.")
    least_gain: float = Field(
        3.0,
        description="Standard errors by which the language model's evidence must lower the cross-entropy to be kept.",
    )
    llm_users: int = Field(
        1000, ge=0, description="Validation users whose lists it reads for fitting; 0 fits without it."
    )


class FittedFusions(NamedTuple):
    """What the stage fitted, by scope.

    ``with_llm`` lacks a scope of which the language model read nothing, and has None where what it read adds nothing.
    """

    models: dict[Scope, FittedFusion]
    with_llm: dict[Scope, FittedFusion | None]

    def fused(self, evidence: Evidence, config: FusionStageConfig) -> Fused:
        """Ready to rank with."""
        models = {scope: one.model for scope, one in self.models.items()}
        with_llm = {scope: None if one is None else one.model for scope, one in self.with_llm.items()}
        return Fused(evidence, models, with_llm, config.evidence.depth, config.num_ranked, config.num_fused)


def fit_fusions(
    dataset: Dataset,
    evidence: Evidence,
    config: FusionStageConfig,
    ask: AskLlm | None,
    *,
    seed: int,
    sample_seed: int,
    llm_evidence: Sequence[str] = LLM_EVIDENCE,
) -> FittedFusions:
    """Fits fusion without the language model, then what that adds; a scope where that is nothing goes without it.

    Args:
        dataset: its validation targets and what stands before them are read, its test targets are not.
        evidence: all but the language model's.
        config: of the stage.
        ask: scores lists with the language model; None leaves it out.
        seed: of folds, draws and first weights.
        sample_seed: of the users whom the language model reads.
        llm_evidence: what ``ask`` is asked for.

    Raises:
        InputError: there are no validation targets.
    """
    folds = fold_of(len(dataset.targets["valid"]), config.training.model.members, seed)
    if len(folds) < 2 * config.training.model.members:
        raise InputError(
            f"{dataset.name} has {len(folds)} validation users, too few to fit fusion on. Set fusion.enabled=false."
        )
    roles = Roles(evidence.names, FREE, CONTEXT)
    models = {}
    for scope in SCOPES:
        lists, rows = lists_of(scope, dataset, evidence, config, seed)
        models[scope] = cross_fit(lists, roles, config.training, folds[rows], seed=seed)
    fused = FittedFusions(models, {}).fused(evidence, config)
    if ask is None or config.llm_users == 0:
        return FittedFusions(models, {})
    rows = sample_rows(len(folds), config.llm_users, sample_seed)
    rng = seeds.rng(seed, "fusion", "listed")
    read = {scope: read_lists(scope, dataset, fused, rows, folds, ask, rng, llm_evidence) for scope in SCOPES}
    own = Roles([*llm_evidence, *CONTEXT], FREE, CONTEXT)
    small = _with_members(config.with_llm, config.training.model.members)
    with_llm = {}
    for scope, (lists, chosen) in read.items():
        if _is_enough(folds[chosen]):
            fitted = cross_fit(lists, own, small, folds[chosen], seed=seed)
            with_llm[scope] = fitted if is_gain(lists, fitted.model, folds[chosen], config.least_gain) else None
    return FittedFusions(models, with_llm)


def _with_members(config: FusionTrainingConfig, members: int) -> FusionTrainingConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"members": members})})


def _is_enough(folds: Int[ndarray, "rows"]) -> bool:
    """Whether each fold leaves a user to fit on, and one to say when to stop."""
    return len(folds) - int(np.bincount(folds).max(initial=0)) >= 2


def is_gain(lists: Lists, model: Fusion, folds: Int[ndarray, "rows"], least: float) -> bool:
    """Whether what a fusion adds lowers the cross-entropy of what was known, as a mean over the rows.

    Args:
        lists: with what was known as their offsets.
        model: of as many members as there are folds; each row is scored by the one that never met it.
        folds: of the rows.
        least: so many standard errors of that mean it must be more than 0.
    """
    known = np.zeros(lists.candidates.shape, np.float32) if lists.offsets is None else lists.offsets
    gains = _cross_entropy(lists, known) - _cross_entropy(lists, known + fused_scores(model, lists.features, folds))
    return bool(gains.mean() > least * gains.std() / np.sqrt(len(gains)))


def _cross_entropy(lists: Lists, scores: Float[ndarray, "rows candidates"]) -> Float[ndarray, "rows"]:
    logits = torch.from_numpy(np.where(lists.candidates < 0, -np.inf, scores))
    places = torch.from_numpy((lists.candidates == lists.targets[:, None]).argmax(axis=1))
    return functional.cross_entropy(logits, places, reduction="none").numpy()


def lists_of(
    scope: Scope, dataset: Dataset, evidence: Evidence, config: FusionStageConfig, seed: int
) -> tuple[Lists, Int[ndarray, "kept"]]:
    """Validation users' lists to fit on, with their evidence, and which rows of the targets they are.

    Over the catalogue items of the history stay among the candidates, whatever the protocol: taken out, the target
    would be the one item of the history that is left, and standing in the history would give it away.

    Raises:
        InputError: retrieval finds hardly any target.
    """
    targets = dataset.targets["valid"]
    histories = histories_before(dataset, targets)
    candidates, kept = targets.candidates[LISTED], np.arange(len(targets))
    if scope == "catalogue":
        candidates, kept = catalogue_lists(
            evidence, histories, targets.items, seeds.rng(seed, "fusion", "candidates"),
            depth=config.evidence.depth, num_candidates=config.evidence.fitted_candidates, excludes_history=False,
        )  # fmt: skip
    if len(kept) < 2 * config.training.model.members:
        raise InputError(
            f"retrieval finds the targets of {len(kept)} validation users of {dataset.name}, too few to fit fusion on. "
            "Set fusion.evidence.depth higher."
        )
    return Lists(evidence.features(histories.part(kept), candidates), candidates, targets.items[kept]), kept


def read_lists(
    scope: Scope,
    dataset: Dataset,
    fused: Fused,
    rows: Int[ndarray, "rows"],
    folds: Int[ndarray, "all_rows"],
    ask: AskLlm,
    rng: np.random.Generator,
    llm_evidence: Sequence[str] = LLM_EVIDENCE,
) -> tuple[Lists, Int[ndarray, "kept"]]:
    """Lists that the language model read, of the rows whose target stands in its list.

    Returns:
        The lists, with the fused score of a model that never met the user as what is known already; and their rows.
    """
    targets = dataset.targets["valid"]
    histories, wanted = histories_before(dataset, targets, rows), targets.items[rows]
    if scope == "lists":
        candidates = targets.candidates[LISTED][rows]
    else:
        found = fused.find(histories, folds[rows])
        candidates = padded([best_of(part, fused.num_ranked, rng)[0] for part in found])
    kept = np.flatnonzero((candidates == wanted[:, None]).any(axis=1))
    name = LISTED if scope == "lists" else f"{scope}-fit"
    read = {each: ask(Asked("valid", name, each, rows, candidates))[kept] for each in llm_evidence}
    features = fused.evidence.features(histories.part(kept), candidates[kept])
    known = fused_scores(fused.models[scope], features, folds[rows[kept]])
    own = llm_features(fused.evidence.names, [*llm_evidence, *CONTEXT], features, read)
    return Lists(own, candidates[kept], wanted[kept], known), rows[kept]


def padded(parts: Sequence[Int[ndarray, "part width"]]) -> Int[ndarray, "rows widest"]:
    """Parts of rows as one array, -1 where a part is narrower."""
    widest = max(part.shape[1] for part in parts)
    fill = [np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=-1) for part in parts]
    return np.concatenate(fill)
