"""The stage that trains again, with other seeds, all that gives evidence: the mean is better than any one of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from allrec.parallel import OnProgress
from allrec import seeds
from allrec.runs.aligned import read_alignment, read_backbone, read_texts, with_added
from allrec.files import save_tensors
from allrec.data.dataset import Dataset
from allrec.hybrid.collect import Learned, train_content_parts
from allrec.hybrid.storage import load_content_parts, save_content_parts
from allrec.backbones.base import Backbone
from allrec.runs.run_folder import CHECKPOINT, RunFolder
from allrec.runs.scoring import Scoring
from allrec.alignment.training import train_alignment
from allrec.backbones.training import train_backbone
from allrec.hybrid.content import CatalogueContent
from allrec.backbones.foreign import is_foreign

PARTS = 3
"""Backbone, alignment, content parts."""


def training_seed(seed: int, number: int) -> int:
    """Seed of a further training; number 0 is the run itself, which has its own."""
    return seeds.derived(seed, "ensemble", number)


def train_ensemble(folder: Path, run: RunFolder, dataset: Dataset, report: OnProgress) -> None:
    """Trains backbone, alignment and content parts of every training but the first, which is the run's own.

    Text embeddings are the run's; where its text encoder was tuned, all read what that came to. A backbone that others
    trained is the run's in each.

    Args:
        folder: of the stage.
        run: its stages up to the alignment are done.
        dataset: the run's data set.
        report: told how much of it is done, and of losses.
    """

    def on_progress(part: int) -> OnProgress:
        # Without their steps, which begin anew with every part.
        return lambda share, values: report((part + share) / num_parts, {"total": values["total"]})

    recipe, texts = run.recipe(), read_texts(run)
    alignment_config = recipe.alignment.model_copy(update={"tune_text": False})
    numbers = range(1, recipe.fusion.evidence.ensemble)
    num_parts = PARTS * len(numbers)
    for number in numbers:
        seed, part = training_seed(recipe.seed, number), PARTS * (number - 1)
        backbone = _backbone(folder, run, dataset, number, on_progress(part))
        alignment, _ = train_alignment(
            dataset, backbone, texts, alignment_config,
            seed=seed, checkpoint=folder / f"{number}-alignment-{CHECKPOINT}", on_progress=on_progress(part + 1),
        )  # fmt: skip
        parts = train_content_parts(
            dataset, texts, recipe.fusion.evidence,
            seed=seed, checkpoints=folder, prefix=f"{number}-", on_progress=on_progress(part + 2),
        )  # fmt: skip
        save_tensors(folder / f"{number}-alignment.safetensors", alignment.state_dict())
        save_content_parts(folder, parts, f"{number}-content")


def _backbone(folder: Path, run: RunFolder, dataset: Dataset, number: int, on_progress: OnProgress) -> Backbone:
    recipe = run.recipe()
    if is_foreign(recipe.backbone.model, recipe.backbone.checkpoint):
        return read_backbone(run, dataset.num_items)
    backbone, _ = train_backbone(
        dataset, recipe.backbone,
        seed=training_seed(recipe.seed, number), checkpoint=folder / f"{number}-backbone-{CHECKPOINT}", on_progress=on_progress,
    )  # fmt: skip
    save_tensors(folder / f"{number}-backbone.safetensors", backbone.state_dict())
    return backbone


@torch.no_grad()
def load_ensemble(run: RunFolder, scoring: Scoring, content: CatalogueContent) -> list[Learned]:
    """Reads the trainings but for the first, over the same items as it; none of a recipe without an ensemble.

    Args:
        run: whose ensemble.
        scoring: of the first training.
        content: of its items, which all trainings share.

    Raises:
        InputError: the stage is not done, or a file is damaged.
    """
    recipe = run.recipe()
    config = recipe.fusion.evidence
    if config.ensemble == 1:
        return []
    folder, texts, ensemble = run.folder("ensemble"), scoring.text_embeddings, []
    num_trained = scoring.catalogue.num_items - scoring.catalogue.num_added
    is_own = is_foreign(recipe.backbone.model, recipe.backbone.checkpoint)
    for number in range(1, config.ensemble):
        backbone = read_backbone(run, num_trained, None if is_own else folder / f"{number}-backbone.safetensors")
        alignment = read_alignment(run, backbone.dim, texts.shape[1], folder / f"{number}-alignment.safetensors")
        backbone = with_added(backbone, alignment, texts)
        joint = alignment.scored_items(alignment.joint_items(backbone.item_embeddings(), texts, scoring.is_cold))
        parts = load_content_parts(folder, scoring.catalogue.titles, texts, config, f"{number}-content", content)
        ensemble.append(Learned(backbone, parts, joint))
    return ensemble
