"""Trainings that a group of workers runs: importable, of files alone."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tests.killing import killed_at
from torch.distributed.tensor import DTensor

from allrec.alignment.training import train_alignment
from allrec.backbones.base import freeze
from allrec.backbones.registry import make_backbone
from allrec.backbones.training import train_backbone
from allrec.config import load_recipe
from allrec.data import load_dataset
from allrec.files import save_tensors
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.prompt import PromptBuilder
from allrec.llm.readout_training import Reader, train_readout
from allrec.llm.soft_token_training import new_soft_tokens, train_soft_tokens
from allrec.training.distributed import place


@dataclass(frozen=True)
class Train:
    """Trains backbone or stage 1 of a recipe without dropout; rank 0 writes what was learned to ``out``."""

    stage: str
    dataset: Path
    out: Path
    sets: tuple[str, ...] = ()
    kill_at: int | None = None
    llm: Path | None = None
    die_at: int | None = None
    watch: Callable[..., None] | None = None

    def __call__(self):
        dataset, recipe = load_dataset(self.dataset), load_recipe("a-llmrec", (*QUIET, *self.sets))
        checkpoint = self.out / "checkpoint.safetensors"
        on_progress = self.watch if self.kill_at is None else killed_at(self.kill_at)
        on_progress = on_progress if self.die_at is None else partial(die_at, self.die_at)
        given = {"seed": 3, "checkpoint": checkpoint, "on_progress": on_progress}
        if self.stage in ("language model", "readout"):
            model, report = self.with_llm(dataset, recipe, given)
        elif self.stage == "backbone":
            model, report = train_backbone(dataset, recipe.backbone, **given)
        else:
            generator = torch.Generator().manual_seed(1)
            backbone = freeze(make_backbone(dataset.num_items, recipe.backbone.model, generator))
            texts = torch.randn(dataset.num_items, 12, generator=generator)
            model, report = train_alignment(dataset, backbone, texts, recipe.alignment, **given)
        self.write(model, report)

    def with_llm(self, dataset, recipe, given):
        is_sharded = recipe.llm.published.is_sharded
        llm = LanguageModel.load(LanguageModelConfig(name=str(self.llm), dtype="float32", is_sharded=is_sharded))
        trained = self.train_with(llm, dataset, recipe, given)
        if llm.is_sharded:
            self.write_llm(llm)
        return trained

    def write_llm(self, llm):
        """The frozen weights, joined from all workers."""
        weights = dict(llm._model.named_parameters())
        joined = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in weights.items()}
        if place().rank == 0:
            save_tensors(self.out / "llm.safetensors", joined)

    def train_with(self, llm, dataset, recipe, given):
        if recipe.llm.tuning == "lora":
            llm = llm.adapted(recipe.llm.lora, seed=3)
        generator = torch.Generator().manual_seed(1)
        backbone = freeze(make_backbone(dataset.num_items, recipe.backbone.model, generator))
        joint = torch.randn(dataset.num_items, 8, generator=generator)
        builder = PromptBuilder.of(llm, dataset.titles, dataset.wording, recipe.prompt)
        if self.stage == "language model":
            return train_soft_tokens(dataset, backbone, joint, llm, builder, recipe.soft_tokens, **given)
        users = torch.randn(20, backbone.dim, generator=generator)
        soft = freeze(new_soft_tokens(users, joint, llm, recipe.soft_tokens.soft_tokens, 3))
        return train_readout(dataset, Reader(llm, builder, backbone, joint, joint, soft), recipe.readout, **given)

    def write(self, model, report):
        if place().rank == 0:
            save_tensors(self.out / "model.safetensors", model.state_dict())
            (self.out / "losses.txt").write_text(" ".join(map(str, report.losses)))


def die_at(step, _, values):
    if values["step"] == step:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class TrainedWhereNodesAreLost:
    """A training whose workers say on which node they are; at a step it waits for one to be lost, the first time.

    Attributes:
        work: the training, without an observer of its own.
        places: folder for a file of each rank, and for those that say how far the training is.
        step: after a checkpoint.
    """

    work: Train
    places: Path
    step: int

    def __call__(self):
        import ray

        (self.places / f"rank{place().rank}").write_text(ray.get_runtime_context().get_node_id())
        replace(self.work, watch=self.wait)()

    def wait(self, _, values):
        # Rank 0 alone tells its progress.
        if values["step"] != self.step:
            return
        if (self.places / "waits").exists():
            (self.places / "begun-again").touch()
            return
        (self.places / "waits").touch()
        time.sleep(300)


@dataclass(frozen=True)
class Each:
    """Several trainings, one after the other, by the same workers."""

    works: tuple[Callable[[], None], ...]

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


class Alone:
    """One worker, which does nothing."""

    def __call__(self):
        assert place().size == 1


QUIET = (
    "soft_tokens.sample=40",
    "soft_tokens.batch_tokens=300",
    "soft_tokens.loop.epochs=2",
    "soft_tokens.loop.checkpoint_every=3",
    "soft_tokens.warm_up.epochs=1",
    "readout.sample=40",
    "readout.batch_tokens=300",
    "readout.head.dim=8",
    "readout.loop.epochs=2",
    "readout.loop.checkpoint_every=3",
    "prompt.max_title_tokens=8",
    "prompt.lists_candidates=false",
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
