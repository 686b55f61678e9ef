"""The stage that trains again, with other seeds, all that gives evidence: its mean is better than any one of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from allrec.aligned import read_alignment, read_backbone, read_texts, with_added
from allrec.artifacts import save_tensors
from allrec.data import Dataset
from allrec.evidence.collect import Learned, train_content_parts
from allrec.evidence.storage import load_content_parts, save_content_parts
from allrec.run_folder import CHECKPOINT, RunFolder
from allrec.scoring import Scoring
from allrec.training.alignment import train_alignment
from allrec.training.backbone import train_backbone
from allrec.training.examples import OnStep

PARTS = 3
"""Backbone, alignment, content parts."""
Report = Callable[[float, dict[str, float]], None]
STAGE = 8
"""Keeps the members' seeds apart from other draws of a run."""


def seed_of(seed: int, member: int) -> int:
    """Seed of a member; the first one, 0, is the run itself."""
    return int(np.random.SeedSequence([seed, STAGE, member]).generate_state(1)[0]) if member else seed


def train_ensemble(folder: Path, run: RunFolder, dataset: Dataset, report: Report) -> None:
    """Trains backbone, alignment and content parts of every member but the first, which is the run's own.

    Text embeddings are the run's; where its text encoder was tuned, the members read what that came to.

    Args:
        folder: of the stage.
        run: its texts are done.
        dataset: the run's data set.
        report: told how much of it is done, and of losses.
    """

    def on_step(part: int) -> OnStep:
        # Without their steps, which begin anew with every part.
        return lambda step, values: report((part + values["progress"]) / num_parts, {"total": values["total"]})

    recipe, texts = run.recipe(), read_texts(run)
    alignment_config = recipe.alignment.model_copy(update={"tune_text": False})
    members = range(1, recipe.fusion.evidence.ensemble)
    num_parts = PARTS * len(members)
    for member in members:
        seed, part = seed_of(recipe.seed, member), PARTS * (member - 1)
        backbone, _ = train_backbone(
            dataset, recipe.backbone,
            seed=seed, checkpoint=folder / f"{member}-backbone-{CHECKPOINT}", on_step=on_step(part),
        )  # fmt: skip
        alignment, _ = train_alignment(
            dataset, backbone, texts, alignment_config,
            seed=seed, checkpoint=folder / f"{member}-alignment-{CHECKPOINT}", on_step=on_step(part + 1),
        )  # fmt: skip
        parts = train_content_parts(
            dataset, texts, recipe.fusion.evidence,
            seed=seed, checkpoints=folder, prefix=f"{member}-", on_step=on_step(part + 2),
        )  # fmt: skip
        save_tensors(folder / f"{member}-backbone.safetensors", backbone.state_dict())
        save_tensors(folder / f"{member}-alignment.safetensors", alignment.state_dict())
        save_content_parts(folder, parts, f"{member}-content")


@torch.no_grad()
def load_ensemble(run: RunFolder, scoring: Scoring) -> list[Learned]:
    """Reads the members but for the first, over the same items as ``scoring``; none of a recipe without an ensemble.

    Raises:
        InputError: the stage is not done, or a file is damaged.
    """
    config = run.recipe().fusion.evidence
    if config.ensemble == 1:
        return []
    folder, texts, ensemble = run.folder("ensemble"), scoring.text_embeddings, []
    num_trained = scoring.catalogue.num_items - scoring.catalogue.num_added
    for member in range(1, config.ensemble):
        backbone = read_backbone(run, num_trained, folder / f"{member}-backbone.safetensors")
        alignment = read_alignment(run, backbone.dim, texts.shape[1], folder / f"{member}-alignment.safetensors")
        backbone = with_added(backbone, alignment, texts)
        joint = alignment.scored_items(alignment.joint_items(backbone.item_embeddings(), texts, scoring.is_cold))
        parts = load_content_parts(folder, scoring.catalogue.titles, texts, config, f"{member}-content")
        ensemble.append(Learned(backbone, parts, joint))
    return ensemble
