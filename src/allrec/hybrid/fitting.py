"""The stage that fits fusion: on validation targets, in given lists and over the whole catalogue."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from allrec import seeds
from allrec.backbones.base import freeze
from allrec.data.dataset import Dataset
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import Config, InputError
from allrec.evaluation.results import clusters_of
from allrec.evaluation.segments import RARE, sample_rows
from allrec.hybrid.content import EvidenceConfig
from allrec.hybrid.features import CONTEXT, FREE, Evidence, histories_before
from allrec.hybrid.fusion import (
    LLM_EVIDENCE,
    SCOPES,
    STREAM,
    EvidenceScale,
    Fusion,
    FusionConfig,
    Scope,
    evidence_scale,
    fold_of,
    fused_scores,
    llm_features,
)
from allrec.hybrid.ranking import FusedRanker, LlmReader, listed_features, listed_scores, retrieve
from allrec.training.batches import LazyBatches
from allrec.training.loop import FitReport, LoopConfig, fit

COUNT = "log_count"
"""The evidence of an item's training count: log(1 + training interactions)."""
SCALED = 1 << 19
"""Candidates at most that the scale of the evidence is computed from."""
NewReader = Callable[[str, str, Int[ndarray, "rows"]], LlmReader]
"""The language model for lists of some rows: (split, name of the lists, rows of the targets of the split)."""
LISTED = EvaluationProtocol.PAPER
"""The stored lists that fusion is fitted on."""


class FusionTrainingConfig(Config):
    """The fusion model and how it is fitted."""

    model: FusionConfig = Field(FusionConfig(members=4), description="Shape of the fusion model; a member a fold.")
    held_out: float = Field(0.25, gt=0, lt=1, description="Share of the users that are held out for early stopping.")
    batch_size: int = Field(256, ge=1, description="Users of a batch.")
    unseen_weight: float = Field(
        2.0, gt=0, description="Weight in the loss of users whose target was never seen in training."
    )
    rare_weight: float = Field(
        1.0, gt=0, description="Weight in the loss of users whose target was seen in training, five times at most."
    )
    loop: LoopConfig = Field(
        LoopConfig(epochs=60, optimizer="adamw", learning_rate=2e-2, weight_decay=1e-3, patience_steps=80),
        description="Optimizer, epochs and patience.",
    )


class FusionStageConfig(Config):
    """Evidence, fusion, and the language model's part in it."""

    enabled: bool = Field(False, description="Whether a run trains its content parts and fits fusion.")
    evidence: EvidenceConfig = EvidenceConfig()
    training: FusionTrainingConfig = FusionTrainingConfig()
    with_llm: FusionTrainingConfig = Field(
        FusionTrainingConfig(
            model=FusionConfig(knots=4, gate_width=4, interplay_width=0),
            loop=LoopConfig(epochs=60, optimizer="adamw", learning_rate=1e-2, weight_decay=1e-2, patience_steps=18),
        ),
        description="What the language model's evidence adds, fitted by itself; it has as many members as the other.",
    )
    num_fused: int = Field(64, ge=1, description="Retrieved candidates that are fused, the first by rank fusion.")
    num_ranked: int = Field(20, ge=2, description="Best candidates that the language model reads.")
    least_gain: float = Field(
        3.0,
        description="Standard errors by which the language model's evidence must lower the cross-entropy to be kept.",
    )
    llm_users: int = Field(
        1000, ge=0, description="Validation users whose lists it reads for fitting; 0 fits without it."
    )


class Lists(NamedTuple):
    """Lists of candidates with their evidence, one a user, each with its target once.

    Attributes:
        features: evidence.
        candidates: item positions, -1 pads.
        targets: the item of each row that counts.
        offsets: scores that the model adds to; None is zeros.
    """

    features: Float[ndarray, "rows candidates evidence"]
    candidates: Int[ndarray, "rows candidates"]
    targets: Int[ndarray, "rows"]
    offsets: Float[ndarray, "rows candidates"] | None = None

    def take(self, rows: ndarray) -> "Lists":
        """Some of the rows."""
        offsets = None if self.offsets is None else self.offsets[rows]
        return Lists(self.features[rows], self.candidates[rows], self.targets[rows], offsets)


class Roles(NamedTuple):
    """The names of the evidence, and which of it is free or context.

    Attributes:
        names: of the evidence, in the order of the features.
        free: evidence that is not monotone.
        context: evidence that the gates read.
    """

    names: Sequence[str]
    free: Sequence[str]
    context: Sequence[str]


class FittedFusion(NamedTuple):
    """A frozen fusion and the reports of its fitting, whose validations are negative cross-entropies."""

    model: Fusion
    reports: list[FitReport]


class FittedFusions(NamedTuple):
    """The fitted models by scope.

    ``additions`` lacks a scope in which the language model read no list, and has None where its evidence adds nothing.
    """

    fusions: dict[Scope, FittedFusion]
    additions: dict[Scope, FittedFusion | None]

    def ranker(self, evidence: Evidence, config: FusionStageConfig, seed: int) -> FusedRanker:
        """Ready to rank with."""
        fusions = {scope: one.model for scope, one in self.fusions.items()}
        additions = {scope: None if one is None else one.model for scope, one in self.additions.items()}
        return FusedRanker.of(evidence, fusions, additions, config, seed)


def fit_fusions(
    dataset: Dataset,
    evidence: Evidence,
    config: FusionStageConfig,
    new_reader: NewReader | None,
    *,
    seed: int,
    sample_seed: int,
    llm_evidence: Sequence[str] = LLM_EVIDENCE,
) -> FittedFusions:
    """Fits fusion without the language model, then an addition of its evidence, dropped where it gains nothing.

    Args:
        dataset: validation targets and their histories are read, test targets are not.
        evidence: all but the language model's.
        config: of the stage.
        new_reader: makes the language model's reader of some lists; None leaves it out.
        seed: of folds, draws and first weights.
        sample_seed: of the users whose lists the language model reads.
        llm_evidence: names of its evidence.

    Raises:
        InputError: there are no validation targets.
    """
    clusters, folds = folds_of(dataset, config.training.model.members, seed)
    if len(folds) < 2 * config.training.model.members:
        raise InputError(
            f"{dataset.name} has {len(folds)} validation users, too few to fit fusion on. Set fusion.enabled=false."
        )
    roles = Roles(evidence.names, FREE, CONTEXT)
    fusions = {}
    for scope in SCOPES:
        lists, rows = lists_of(scope, dataset, evidence, config, seed)
        fusions[scope] = cross_fit(lists, roles, config.training, folds[rows], seed=seed)
    fitted = FittedFusions(fusions, {})
    if new_reader is None or config.llm_users == 0:
        return fitted
    ranker, rows = fitted.ranker(evidence, config, seed), sample_rows(len(folds), config.llm_users, sample_seed)
    small, additions = config.with_llm.changed(model__members=config.training.model.members), {}
    for scope in SCOPES:
        lists, read = read_lists(scope, dataset, ranker, rows, folds, new_reader, llm_evidence)
        if _is_enough(folds[read]):
            added = cross_fit(lists, Roles([*llm_evidence, *CONTEXT], FREE, CONTEXT), small, folds[read], seed=seed)
            is_kept = is_gain(lists, added.model, folds[read], config.least_gain, clusters[read])
            additions[scope] = added if is_kept else None
    return FittedFusions(fusions, additions)


def folds_of(dataset: Dataset, num_folds: int, seed: int) -> tuple[Int[ndarray, "rows"], Int[ndarray, "rows"]]:
    """The cluster and the fold of every validation target; a member of fusion is fitted without its fold.

    Args:
        dataset: its validation targets are asked.
        num_folds: the members of fusion.
        seed: of the run.
    """
    clusters = clusters_of(dataset, dataset.targets["valid"])
    return clusters, fold_of(clusters, num_folds, seed)


def lists_of(
    scope: Scope, dataset: Dataset, evidence: Evidence, config: FusionStageConfig, seed: int
) -> tuple[Lists, Int[ndarray, "kept"]]:
    """Validation users' lists to fit on, with their evidence, and the rows of the targets.

    Over the catalogue, items of the history stay candidates whatever the protocol: without them a repeated target would
    be the only candidate in the history, which would identify it.

    Raises:
        InputError: hardly any target is retrieved.
    """
    targets = dataset.targets["valid"]
    histories = histories_before(dataset, targets)
    candidates, kept = targets.candidates[LISTED], np.arange(len(targets))
    if scope == "catalogue":
        rng = seeds.rng(seed, "fusion", "candidates")
        retrieved, _ = retrieve(evidence, histories, config.evidence.depth)
        candidates, kept = sampled_lists(retrieved, targets.items, config.evidence.fitted_candidates, rng)
    if len(kept) < 2 * config.training.model.members:
        raise InputError(
            f"the targets of {len(kept)} validation users of {dataset.name} are retrieved, too few to fit fusion on. "
            "Set fusion.evidence.depth higher."
        )
    return Lists(evidence.features(histories.part(kept), candidates), candidates, targets.items[kept]), kept


def read_lists(
    scope: Scope,
    dataset: Dataset,
    ranker: FusedRanker,
    rows: Int[ndarray, "rows"],
    folds: Int[ndarray, "all_rows"],
    new_reader: NewReader,
    names: Sequence[str],
) -> tuple[Lists, Int[ndarray, "kept"]]:
    """Lists that the language model read, of the validation rows whose target is in its list.

    Returns:
        The lists, with scores of the fusion members that were fitted without the user as offsets; and their rows.
    """
    targets = dataset.targets["valid"]
    histories, wanted = histories_before(dataset, targets, rows), targets.items[rows]
    if scope == "lists":
        reader = new_reader("valid", LISTED, rows)
        ranked = ranker.rank_lists(histories, targets.candidates[LISTED][rows], folds=folds[rows])
    else:
        reader = new_reader("valid", f"{scope}-fit", rows)
        ranked = ranker.rank_catalogue(histories, None, folds=folds[rows])
    parts, kept = [], []
    for scored in ranked:
        listed = ranker.read_best(scored, histories, reader, scope, names, ranker.num_ranked)
        listed = listed.take((listed.items == wanted[scored.rows][listed.rows][:, None]).any(axis=1))
        others = listed_features(scored, listed)
        features = llm_features(ranker.evidence.names, [*names, *CONTEXT], others, listed.values)
        parts.append(Lists(features, listed.items, wanted[scored.rows][listed.rows], listed_scores(scored, listed)))
        kept.append(rows[scored.rows][listed.rows])
    return joined(parts), np.concatenate(kept)


def cross_fit(
    lists: Lists, roles: Roles, config: FusionTrainingConfig, folds: Int[ndarray, "rows"], *, seed: int
) -> FittedFusion:
    """A fusion whose member k was fitted without the users of fold k; as a whole it is the members' mean.

    So a user who was fitted on can still be tested: by the member that was fitted without them.

    Args:
        lists: of validation targets, never of test targets.
        roles: of the evidence.
        config: shape and optimizer; ``model.members`` is the number of folds.
        folds: of every row, see ``fold_of``.
        seed: fixes the held-out users, initial weights and batches.

    Raises:
        InputError: see ``fit_fusion``; or there are fewer than two folds.
    """
    if config.model.members < 2:
        raise InputError(f"got {config.model.members} members of fusion, expected at least 2: a fold is left out each.")
    check(lists, roles.names)
    alone = config.changed(model__members=1)
    scale = scale_of(lists, config.model.knots)
    fitted = []
    for fold in range(config.model.members):
        own_seed = seeds.derived(seed, STREAM, "fold", fold)
        fitted.append(fit_fusion(lists.take(folds != fold), roles, alone, seed=own_seed, scale=scale))
    model = Fusion(*roles, config.model, scale, torch.Generator().manual_seed(0))
    for member, part in zip(model.members, fitted, strict=True):
        member.load_state_dict(part.model.members[0].state_dict())
    return FittedFusion(freeze(model), [report for part in fitted for report in part.reports])


def fit_fusion(
    lists: Lists, roles: Roles, config: FusionTrainingConfig, *, seed: int, scale: EvidenceScale | None = None
) -> FittedFusion:
    """Fits fusion by a softmax over each row's candidates.

    Args:
        lists: of validation targets, never of test targets.
        roles: of the evidence.
        config: shape and optimizer.
        seed: fixes the held-out users, initial weights and batches.
        scale: of the evidence; that of the lists where None.

    Raises:
        InputError: fewer than two users, evidence that is no number, or a row without its target.
    """
    check(lists, roles.names)
    places = torch.from_numpy((lists.candidates == lists.targets[:, None]).argmax(axis=1))
    features, is_candidate = torch.from_numpy(lists.features), torch.from_numpy(lists.candidates >= 0)
    offsets = None if lists.offsets is None else torch.from_numpy(lists.offsets)
    order = seeds.rng(seed, STREAM, "held out").permutation(len(places))
    num_held_out = max(1, int(config.held_out * len(places)))
    held_out, fitted = torch.from_numpy(order[:num_held_out]), order[num_held_out:]
    generator = seeds.torch_generator(seed, STREAM, "weights")
    model = Fusion(*roles, config.model, scale or scale_of(lists, config.model.knots), generator)
    weights = target_weights(features[torch.arange(len(places)), places], roles.names, config)

    def loss(rows: Int[Tensor, "batch"]) -> Tensor:
        known = None if offsets is None else offsets[rows]
        return model.loss(features[rows], is_candidate[rows], places[rows], known, weights[rows])

    def validate() -> float:
        chunks = torch.split(held_out, 4 * config.batch_size)
        parts = [loss(rows).item() * float(weights[rows].sum()) for rows in chunks]
        return -sum(parts) / float(weights[held_out].sum())

    def batches(epoch: int) -> LazyBatches[Tensor]:
        shuffled = seeds.rng(seed, STREAM, "order", epoch).permutation(fitted)
        starts = range(0, len(shuffled), config.batch_size)
        rows = [shuffled[start : start + config.batch_size] for start in starts]
        return LazyBatches(rows, lambda index, chosen: torch.from_numpy(chosen))

    report = fit(model, batches, loss, config.loop, seed=seed, stream=STREAM, validate=validate)
    return FittedFusion(freeze(model), [report])


def _is_enough(folds: Int[ndarray, "rows"]) -> bool:
    """Whether each fold leaves one user to fit on and one for early stopping."""
    return len(folds) - int(np.bincount(folds).max(initial=0)) >= 2


def is_gain(
    lists: Lists, model: Fusion, folds: Int[ndarray, "rows"], least: float, clusters: Int[ndarray, "rows"]
) -> bool:
    """Whether adding a fusion to the offsets lowers the cross-entropy, as a mean over the rows.

    Args:
        lists: with the scores so far as their offsets.
        model: of as many members as there are folds; each row is scored by the one that was fitted without it.
        folds: of the rows.
        least: number of its standard errors by which that mean must exceed 0.
        clusters: of the rows; those of one are one observation of the standard error, see ``clusters_of``.
    """
    known = np.zeros(lists.candidates.shape, np.float32) if lists.offsets is None else lists.offsets
    gains = _cross_entropy(lists, known) - _cross_entropy(lists, known + fused_scores(model, lists.features, folds))
    _, own = np.unique(clusters, return_inverse=True)
    deviations = np.bincount(own, gains - gains.mean())
    return bool(gains.mean() > least * np.sqrt((deviations**2).sum()) / len(gains))


def _cross_entropy(lists: Lists, scores: Float[ndarray, "rows candidates"]) -> Float[ndarray, "rows"]:
    logits = torch.from_numpy(np.where(lists.candidates < 0, -np.inf, scores))
    places = torch.from_numpy((lists.candidates == lists.targets[:, None]).argmax(axis=1))
    return functional.cross_entropy(logits, places, reduction="none").numpy()


def scale_of(lists: Lists, num_knots: int) -> EvidenceScale:
    """The scale of the lists' evidence, targets and other candidates alike."""
    values = torch.from_numpy(lists.features[lists.candidates >= 0])
    return evidence_scale(values[:: 1 + len(values) // SCALED], num_knots)


def target_weights(
    targets: Float[Tensor, "rows evidence"], names: Sequence[str], config: FusionTrainingConfig
) -> Float[Tensor, "rows"]:
    """Weights of users, by how often their target was seen in training; 1 without evidence of counts."""
    if COUNT not in names:
        return torch.ones(len(targets))
    counts = targets[:, list(names).index(COUNT)]
    rare = torch.where(counts < np.log1p(RARE + 0.5), config.rare_weight, 1.0)
    return torch.where(counts < np.log1p(0.5), config.unseen_weight, rare)


def check(lists: Lists, names: Sequence[str]) -> None:
    """Refuses lists that fusion cannot be fitted on.

    Raises:
        InputError: what is wrong with them.
    """
    if len(lists.targets) < 2:
        raise InputError(f"got {len(lists.targets)} validation users, expected at least 2. Give longer histories.")
    if lists.features.shape[2] != len(names):
        raise InputError(f"got {lists.features.shape[2]} columns of evidence, expected {len(names)}: {list(names)}")
    is_candidate = lists.candidates >= 0
    if (count := (lists.candidates == lists.targets[:, None]).sum(axis=1)).min() != 1 or count.max() != 1:
        raise InputError(f"row {int((count != 1).argmax())} does not hold its target once. Add it to the candidates.")
    is_finite = np.isfinite(lists.features).all(axis=(0, 1)) | np.isfinite(lists.features[is_candidate]).all(axis=0)
    if not is_finite.all():
        raise InputError(f"evidence {names[int((~is_finite).argmax())]!r} is not finite. Leave it out, or mend it.")


def sampled_lists(
    retrieved: Int[ndarray, "rows candidates"],
    targets: Int[ndarray, "rows"],
    num_candidates: int,
    rng: np.random.Generator,
) -> tuple[Int[ndarray, "kept listed"], Int[ndarray, "kept"]]:
    """The target and a sample of the other retrieved candidates, shuffled.

    Rows whose target was not retrieved are left out: a ranking never scores such a target.

    Args:
        retrieved: candidates, -1 pads.
        targets: of the same rows.
        num_candidates: sampled a row, the target not counted.
        rng: draws the sample and the order.

    Returns:
        The lists and their rows.
    """
    is_target = retrieved == targets[:, None]
    kept = np.flatnonzero(is_target.any(axis=1))
    others = np.where(is_target, -1, retrieved)[kept]
    keys = np.where(others < 0, 2.0, rng.random(others.shape))
    sampled = np.take_along_axis(others, np.argsort(keys, axis=1)[:, :num_candidates], axis=1)
    lists = np.column_stack([targets[kept], sampled])
    order = np.argsort(np.where(lists < 0, 2.0, rng.random(lists.shape)), axis=1)
    return np.take_along_axis(lists, order, axis=1), kept


def joined(parts: Sequence[Lists]) -> Lists:
    """Lists of any width as one, the narrower ones padded."""
    widest = max(part.candidates.shape[1] for part in parts)

    def wide(values: ndarray, filling: float) -> ndarray:
        missing = [(0, 0), (0, widest - values.shape[1]), (0, 0)][: values.ndim]
        return np.pad(values, missing, constant_values=filling)

    return Lists(
        np.concatenate([wide(part.features, 0) for part in parts]),
        np.concatenate([wide(part.candidates, -1) for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([wide(part.offsets, 0) for part in parts if part.offsets is not None]),
    )
