"""Fits fusion on validation targets: most users fit it, the others say when to stop."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec.base import Config, InputError
from allrec.models.backbones.base import freeze
from allrec.models.fusion import Fusion, FusionConfig, evidence_scale
from allrec.training.batching import LazyBatches
from allrec.training.loop import FitReport, LoopConfig, fit

STAGE = 6
SCALED = 1 << 19
"""Candidates at most that the scale of the evidence is read from."""


class FusionTrainingConfig(Config):
    """The fusion model and how it is fitted."""

    model: FusionConfig = Field(FusionConfig(), description="Shape of the fusion model.")
    held_out: float = Field(0.25, gt=0, lt=1, description="Share of the users that only say when to stop.")
    batch_size: int = Field(256, ge=1, description="Users of a batch.")
    loop: LoopConfig = Field(
        LoopConfig(epochs=60, optimizer="adamw", learning_rate=1e-2, weight_decay=1e-3, patience=6),
        description="Optimizer, epochs and patience.",
    )


class Lists(NamedTuple):
    """Lists of candidates with their evidence, one a user, each with its target once.

    Attributes:
        features: evidence.
        candidates: item positions, -1 pads.
        targets: the item of each row that counts.
    """

    features: Float[ndarray, "rows candidates evidence"]
    candidates: Int[ndarray, "rows candidates"]
    targets: Int[ndarray, "rows"]


class FittedFusion(NamedTuple):
    """A frozen fusion and how its fitting went; the report's validations are negative cross-entropies."""

    model: Fusion
    report: FitReport


def fit_fusion(
    lists: Lists,
    names: Sequence[str],
    free: Sequence[str],
    context: Sequence[str],
    config: FusionTrainingConfig,
    *,
    seed: int,
) -> FittedFusion:
    """Fits fusion by a softmax over each row's candidates.

    Args:
        lists: of validation targets, never of test targets.
        names: of the evidence.
        free: evidence that may count either way.
        context: evidence that decides how much the rest counts.
        config: shape and optimizer.
        seed: fixes who is held out, initial weights and batches.

    Raises:
        InputError: fewer than two users, evidence that is no number, or a row without its target.
    """
    check(lists, names)
    places = torch.from_numpy((lists.candidates == lists.targets[:, None]).argmax(axis=1))
    features, is_candidate = torch.from_numpy(lists.features), torch.from_numpy(lists.candidates >= 0)
    order = np.random.default_rng([seed, STAGE]).permutation(len(places))
    num_held_out = max(1, int(config.held_out * len(places)))
    held_out, fitted = torch.from_numpy(order[:num_held_out]), order[num_held_out:]
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, STAGE]).generate_state(1)[0]))
    scale = evidence_scale(features[is_candidate][:: 1 + int(is_candidate.sum()) // SCALED], config.model.knots)
    model = Fusion(names, free, context, config.model, scale, generator)

    def loss(rows: Int[Tensor, "batch"]) -> Tensor:
        return model.loss(features[rows], is_candidate[rows], places[rows])

    def validate() -> float:
        parts = [loss(rows).item() * len(rows) for rows in torch.split(held_out, 4 * config.batch_size)]
        return -sum(parts) / len(held_out)

    def batches(epoch: int) -> LazyBatches[Tensor]:
        shuffled = np.random.default_rng([seed, STAGE, epoch]).permutation(fitted)
        starts = range(0, len(shuffled), config.batch_size)
        rows = [shuffled[start : start + config.batch_size] for start in starts]
        return LazyBatches(rows, lambda index, chosen: torch.from_numpy(chosen))

    report = fit(model, batches, loss, config.loop, seed=seed, stage=STAGE, validate=validate)
    return FittedFusion(freeze(model), report)


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
    model: Fusion, features: Float[ndarray, "rows candidates evidence"]
) -> Float[ndarray, "rows candidates"]:
    """Scores of candidates, in chunks of rows."""
    step = max(1, SCALED // (8 * max(1, features.shape[1])))
    chunks = [model.score(torch.from_numpy(features[start : start + step])) for start in range(0, len(features), step)]
    return torch.cat(chunks).numpy() if chunks else np.zeros(features.shape[:2], np.float32)
