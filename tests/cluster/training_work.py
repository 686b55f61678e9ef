"""Trainings that a group of workers runs: importable, of files alone."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.killing import killed_at

from allrec.alignment.training import train_alignment
from allrec.backbones.base import freeze
from allrec.backbones.registry import make_backbone
from allrec.backbones.training import train_backbone
from allrec.config import load_recipe
from allrec.data import load_dataset
from allrec.files import save_tensors
from allrec.training.distributed import place


@dataclass(frozen=True)
class Train:
    """Trains backbone or stage 1 of a recipe without dropout; rank 0 writes what was learned to ``out``."""

    stage: str
    dataset: Path
    out: Path
    sets: tuple[str, ...] = ()
    kill_at: int | None = None

    def __call__(self):
        dataset, recipe = load_dataset(self.dataset), load_recipe("a-llmrec", (*QUIET, *self.sets))
        checkpoint = self.out / "checkpoint.safetensors"
        on_progress = None if self.kill_at is None else killed_at(self.kill_at)
        given = {"seed": 3, "checkpoint": checkpoint, "on_progress": on_progress}
        if self.stage == "backbone":
            model, report = train_backbone(dataset, recipe.backbone, **given)
        else:
            generator = torch.Generator().manual_seed(1)
            backbone = freeze(make_backbone(dataset.num_items, recipe.backbone.model, generator))
            texts = torch.randn(dataset.num_items, 12, generator=generator)
            model, report = train_alignment(dataset, backbone, texts, recipe.alignment, **given)
        if place().rank == 0:
            save_tensors(self.out / "model.safetensors", model.state_dict())
            (self.out / "losses.txt").write_text(" ".join(map(str, report.losses)))


@dataclass(frozen=True)
class Each:
    """Several trainings, one after the other, by the same workers."""

    works: tuple[Train, ...]

    def __call__(self):
        for work in self.works:
            work()


@dataclass(frozen=True)
class Die:
    """Rank 1 ends: by a signal, or by an error."""

    error: Exception | None = None

    def __call__(self):
        if place().rank == 1:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()


QUIET = (
    "backbone.model.dim=16",
    "backbone.model.dropout=0",
    "backbone.tokens_per_batch=300",
    "backbone.loop.epochs=2",
    "backbone.loop.checkpoint_every=3",
    "alignment.loop.epochs=2",
    "alignment.loop.checkpoint_every=3",
    "alignment.batch_size=33",
    "alignment.network.joint_dim=8",
)
STILL = "loop.learning_rate=1e-12"
"""So small that the running mean of gradients, which a checkpoint holds, is of the first parameters alone."""
