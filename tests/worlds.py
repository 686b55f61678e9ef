"""A small world for tests: a simulated data set, a tiny language model, a tiny encoder, a recipe."""

from pathlib import Path
from typing import NamedTuple

from allrec.config import Recipe, load_recipe
from allrec.data import PrepareConfig, SimulationConfig, prepare, simulate
from encoders import save_encoder
from tiny import save_tiny

QUICK = (
    "backbone.loop.epochs=2",
    "backbone.loop.checkpoint_every=2",
    "backbone.tokens_per_batch=256",
    "backbone.model.dim=16",
    "text.max_tokens=16",
    "alignment.loop.epochs=2",
    "alignment.loop.checkpoint_every=2",
    "alignment.batch_size=64",
    "soft_tokens.loop.epochs=2",
    "soft_tokens.loop.checkpoint_every=2",
    "soft_tokens.batch_tokens=1024",
    "soft_tokens.num_candidates=4",
    "soft_tokens.sample=40",
    "prompt.max_title_tokens=8",
    "prompt.max_history=3",
    "evaluation.llm_users=30",
    "evaluation.llm_valid_users=20",
)


FUSED = (
    "fusion.enabled=true",
    "fusion.evidence.tower.content.dim=8",
    "fusion.evidence.tower.loop.epochs=2",
    "fusion.evidence.tower.loop.checkpoint_every=2",
    "fusion.evidence.tower.batch_size=32",
    "fusion.evidence.content.backbone.model.dim=16",
    "fusion.evidence.content.backbone.loop.epochs=2",
    "fusion.evidence.content.backbone.loop.checkpoint_every=2",
    "fusion.evidence.content.backbone.loop.learning_rate=2e-3",
    "fusion.evidence.depth=12",
    "fusion.evidence.fitted_candidates=10",
    "fusion.training.model.members=2",
    "fusion.training.loop.epochs=3",
    "fusion.with_llm.model.interplay_width=0",
    "fusion.with_llm.loop.epochs=3",
    # The tests' language models know too little to be kept for what they add.
    "fusion.least_gain=-1000",
    "fusion.num_ranked=5",
    "fusion.llm_users=40",
)
"""Makes a recipe train its content parts and fit fusion."""
READ_OUT = (
    "readout.enabled=true",
    "readout.head.dim=8",
    "readout.sample=40",
    "readout.batch_tokens=200",
    "readout.validation_users=20",
    "readout.loop.epochs=2",
    "readout.loop.checkpoint_every=2",
)
"""Makes a recipe train a read-out head."""


class World(NamedTuple):
    """What a run needs: a data set folder, a language model's and a text encoder's folder, a folder for caches."""

    dataset: Path
    llm: Path
    encoder: Path
    cache: Path

    def sets(self, *further: str) -> tuple[str, ...]:
        """Settings of a recipe of a few seconds."""
        return (*QUICK, *further, f'text.name="{self.encoder}"')

    def recipe(self, *further: str) -> Recipe:
        """A recipe of a few seconds."""
        return load_recipe("a-llmrec", self.sets(*further))


def build_world(folder: Path) -> World:
    """A world of 80 users and 60 items."""
    simulate(folder / "source", SimulationConfig(num_users=80, num_items=60, mean_interactions=6))
    prepare(folder / "source", folder / "dataset", config=PrepareConfig(name="world"))
    return World(folder / "dataset", save_tiny(folder / "llm"), save_encoder(folder / "encoder"), folder / "cache")


def further(llm: Path) -> tuple[str, ...]:
    """Both further text encoders, of a few seconds; the second is a world's language model."""
    return (
        "second_text.enabled=true", f'second_text.model.name="{llm}"', "second_text.num_layers=1",
        "second_text.added=0", "text_tuning.enabled=true", "text_tuning.layers=1", "text_tuning.batch_users=8",
        "text_tuning.loop.checkpoint_every=2",
    )  # fmt: skip


def make_world(folder: Path, further: tuple[str, ...] = ()) -> tuple[Path, Path, Recipe]:
    """A world's data set folder, its language model's folder, and a recipe of a few seconds."""
    world = build_world(folder)
    return world.dataset, world.llm, world.recipe(*further)
