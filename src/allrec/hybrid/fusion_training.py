"""Fits fusion on validation targets, fold by fold, so that every user can be scored by a model that never met them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec import seeds
from allrec.backbones.base import freeze
from allrec.errors import Config, InputError
from allrec.evaluation.segments import RARE
from allrec.hybrid.fusion import EvidenceScale, Fusion, FusionConfig, evidence_scale
from allrec.training.batches import LazyBatches
from allrec.training.loop import FitReport, LoopConfig, fit

STREAM = "fusion"
COUNT = "log_count"
"""The evidence that tells how often an item was seen: log(1 + training interactions)."""
SCALED = 1 << 19
"""Candidates at most that the scale of the evidence is read from."""
SCORED = 1 << 12
"""Candidates scored at one time: so few that what is computed of them stays in a core's cache."""


class FusionTrainingConfig(Config):
    """The fusion model and how it is fitted."""

    model: FusionConfig = Field(FusionConfig(members=4), description="Shape of the fusion model; a member a fold.")
    held_out: float = Field(0.25, gt=0, lt=1, description="Share of the users that only say when to stop.")
    batch_size: int = Field(256, ge=1, description="Users of a batch.")
    unseen_weight: float = Field(
        2.0, gt=0, description="Weight in the loss of users whose target was never seen in training."
    )
    rare_weight: float = Field(
        1.0, gt=0, description="Weight in the loss of users whose target was seen in training, five times at most."
    )
    loop: LoopConfig = Field(
        LoopConfig(epochs=60, optimizer="adamw", learning_rate=2e-2, weight_decay=1e-3, patience=4),
        description="Optimizer, epochs and patience.",
    )


class Lists(NamedTuple):
    """Lists of candidates with their evidence, one a user, each with its target once.

    Attributes:
        features: evidence.
        candidates: item positions, -1 pads.
        targets: the item of each row that counts.
        offsets: scores that are known already, to which fusion adds; None is zeros.
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
    """The names of the evidence, and what some of it may do.

    Attributes:
        names: of the evidence, in the order of the features.
        free: evidence that may count either way.
        context: evidence that decides how much the rest counts.
    """

    names: Sequence[str]
    free: Sequence[str]
    context: Sequence[str]


class FittedFusion(NamedTuple):
    """A frozen fusion and how its fitting went; a report's validations are negative cross-entropies."""

    model: Fusion
    reports: list[FitReport]


def fold_of(num_rows: int, num_folds: int, seed: int) -> Int[ndarray, "rows"]:
    """The fold of every row of a split's targets, each as large as the others."""
    rng = seeds.rng(seed, STREAM, "folds", num_folds)
    return np.asarray(rng.permutation(num_rows) % num_folds)


def cross_fit(
    lists: Lists, roles: Roles, config: FusionTrainingConfig, folds: Int[ndarray, "rows"], *, seed: int
) -> FittedFusion:
    """A fusion whose member k was fitted without the users of fold k; asked as a whole it is the members' mean.

    So a user who was fitted on can still be tested: by the one member that never met them.

    Args:
        lists: of validation targets, never of test targets.
        roles: of the evidence.
        config: shape and optimizer; ``model.members`` is the number of folds.
        folds: of every row, see ``fold_of``.
        seed: fixes who is held out, initial weights and batches.

    Raises:
        InputError: see ``fit_fusion``; or there are fewer than two folds.
    """
    if config.model.members < 2:
        raise InputError(f"got {config.model.members} members of fusion, expected at least 2: a fold is left out each.")
    check(lists, roles.names)
    alone = config.model_copy(update={"model": config.model.model_copy(update={"members": 1})})
    scale = scale_of(lists, config.model.knots)
    fitted = []
    for fold in range(config.model.members):
        own_seed = seeds.derived(seed, STREAM, "fold", fold)
        fitted.append(fit_fusion(lists.take(folds != fold), roles, alone, seed=own_seed, scale=scale))
    model = Fusion(*roles, config.model, scale, torch.Generator().manual_seed(0))
    for member, part in zip(model.members, fitted, strict=True):
        member.load_state_dict(part.model.members[0].state_dict())
    return FittedFusion(freeze(model), [report for part in fitted for report in part.reports])


def scale_of(lists: Lists, num_knots: int) -> EvidenceScale:
    """How the evidence of lists spreads; who the target is takes no part."""
    values = torch.from_numpy(lists.features[lists.candidates >= 0])
    return evidence_scale(values[:: 1 + len(values) // SCALED], num_knots)


def fit_fusion(
    lists: Lists, roles: Roles, config: FusionTrainingConfig, *, seed: int, scale: EvidenceScale | None = None
) -> FittedFusion:
    """Fits fusion by a softmax over each row's candidates.

    Args:
        lists: of validation targets, never of test targets.
        roles: of the evidence.
        config: shape and optimizer.
        seed: fixes who is held out, initial weights and batches.
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


def target_weights(
    targets: Float[Tensor, "rows evidence"], names: Sequence[str], config: FusionTrainingConfig
) -> Float[Tensor, "rows"]:
    """Weights of users, by how often their target was seen in training; 1 where no evidence tells."""
    if COUNT not in names:
        return torch.ones(len(targets))
    counts = targets[:, list(names).index(COUNT)]
    rare = torch.where(counts < np.log1p(RARE + 0.5), config.rare_weight, 1.0)
    return torch.where(counts < np.log1p(0.5), config.unseen_weight, rare)


def check(lists: Lists, names: Sequence[str]) -> None:
    """Refuses lists that fusion cannot be fitted on.

    Raises:
        InputError: says what is wrong.
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


@torch.no_grad()
def fused_scores(
    model: Fusion,
    features: Float[ndarray, "rows candidates evidence"],
    folds: Int[ndarray, "rows"] | None = None,
) -> Float[ndarray, "rows candidates"]:
    """Scores of candidates, in chunks of rows; with ``folds`` each row by the member that was fitted without it."""
    scores = np.zeros(features.shape[:2], np.float32)
    step = max(1, SCORED // max(1, features.shape[1]))
    everyone = np.arange(len(features))
    groups = [(None, everyone)] if folds is None else [(k, everyone[folds == k]) for k in range(len(model.members))]
    for member, rows in groups:
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            scores[part] = model.score(torch.from_numpy(features[part]), member).numpy()
    return scores
