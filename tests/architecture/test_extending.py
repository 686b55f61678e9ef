"""A metric, a scorer, a stage, a backbone, a matching loss and a data format from outside the package, end to end."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from allrec.alignment.losses import MATCHING, Matching
from allrec.backbones.base import StatesBackbone, draw_weights
from allrec.backbones.registry import KINDS, Kind
from allrec.config import dump_recipe, load_recipe
from allrec.data import PrepareConfig, SimulationConfig, prepare, simulate
from allrec.data.sources import registry
from allrec.data.sources.files import ROW, scan_lines, scan_table
from allrec.data.sources.source import Source, as_items
from allrec.errors import Config
from allrec.evaluation.evaluate import Ranked, Scorer
from allrec.evaluation.metrics import METRICS, Metric
from allrec.experiments.compare import compare, rows_of
from allrec.files import load_tensors, read_json, save_tensors
from allrec.runs.scorers import SCORERS
from allrec.runs.stages import STAGES, Stage
from encoders import save_encoder
from killing import Killed
from worlds import QUICK

SETS = (
    *QUICK,
    "llm.enabled=false",
    'backbone.model={kind="markov"}',
    "alignment.network.matching=cosine",
    'evaluation.protocols=["paper"]',
)


class MarkovConfig(Config):
    kind: Literal["markov"] = "markov"
    dim: int = 8
    max_length: int = 50


class Markov(StatesBackbone):
    """A state is a vector of the latest item alone."""

    def __init__(self, num_items, config, generator):
        super().__init__(num_items, config.dim, config.max_length)
        self.config = config
        self.latest = nn.Parameter(torch.empty(num_items, config.dim))
        draw_weights(self, generator)

    def states(self, histories):
        return self.latest[histories.clamp(min=0)]


def cosine_distance(item_joint, text_joint):
    return 1 - nn.functional.cosine_similarity(item_joint, text_joint, dim=-1).mean()


def read_log(path, options, name):
    fields = pl.col("line").str.split("|").list
    interactions = scan_lines(path).select(
        ROW, fields.get(0).alias("user_id"), fields.get(1).alias("item_id"), fields.get(2).alias("timestamp")
    )
    items = as_items(scan_table(options.items_path), options.items_path)
    return Source(format=name, interactions=interactions, items=items, files=(path, options.items_path))


LOG = SimpleNamespace(
    FORMATS=("shop-log",), matches=lambda path: "shop-log" if path.suffix == ".log" else None, read=read_log
)


def train_means(training, folder):
    training.progress("means")(0.5, {})
    save_tensors(folder / "means.safetensors", {"mean": training.model.item_embeddings.mean(dim=0)})


def rank_last(model, request):
    """Everybody's target comes last of its list."""
    return Ranked((request.targets.candidates[request.protocol] >= 0).sum(axis=1) - 1)


MEANS = Stage("means", train_means, lambda recipe: True, lambda recipe: {"backbone": recipe["backbone"]}, "means")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended")
    simulate(folder / "source", SimulationConfig(num_users=80, num_items=60, mean_interactions=6))
    table = pl.read_csv(folder / "source" / "interactions.csv")
    (folder / "shop.log").write_text("".join("|".join(map(str, row)) + "\n" for row in table.iter_rows()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "worst", Metric(lambda ranks: (ranks >= 5).astype(np.float64), has_interval=True))
        patch.setitem(SCORERS, "last", Scorer(rank_last, lambda model, targets, protocol: None, stages=("means",)))
        patch.setitem(STAGES, "means", MEANS)
        patch.setitem(KINDS, "markov", Kind(MarkovConfig, Markov))
        patch.setitem(MATCHING, "cosine", Matching(cosine_distance))
        patch.setattr(registry, "READERS", [LOG, *registry.READERS])
        yield World(folder, patch)


class World:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        config = PrepareConfig(name="log")
        self.dataset = prepare(
            folder / "shop.log", folder / "dataset", items=folder / "source" / "items.jsonl", config=config
        )
        encoder = save_encoder(folder / "encoder")
        recipe = load_recipe("a-llmrec", (*SETS, f'text.name="{encoder}"'))
        (folder / "mine.toml").write_text(dump_recipe(recipe))
        self.trained = []
        for name, stage in STAGES.items():
            patch.setitem(STAGES, name, replace(stage, train=self.noting(name, stage.train)))
        self.killed = self.compare(is_killed=True)
        self.before = list(self.trained)
        self.result = self.compare(is_killed=False)
        self.run = folder / "out" / "runs" / "mine-seed0"
        self.metrics = read_json(self.run / "metrics.json")

    def noting(self, name, train):
        def noted(training, folder):
            self.trained.append(name)
            train(training, folder)

        return noted

    def compare(self, is_killed):
        def observer(stage, share, values):
            if is_killed and stage == "means":
                raise Killed

        arguments = {"cache": self.folder / "cache", "resume": not is_killed, "watch": lambda _: nullcontext(observer)}
        rows = [replace(row, scorer="last") for row in rows_of([str(self.folder / "mine.toml")])]
        try:
            return compare(self.dataset, rows, self.folder / "out", **arguments)
        except Killed:
            return None


def test_a_format_is_guessed_and_read(extended):
    assert registry.guess_format(extended.folder / "shop.log") == "shop-log"
    noted = [path.read_text() for path in (extended.folder / "dataset").glob("*.json")]
    assert any('"shop-log"' in text for text in noted)
    assert extended.dataset.num_users == 80


def test_a_stage_is_trained_killed_and_resumed_and_its_time_is_told(extended):
    assert extended.killed is None
    assert extended.before == ["catalogue", "backbone", "text", "alignment", "means"]
    assert extended.trained[len(extended.before) :] == ["means"]
    backbone = load_tensors(extended.run / "backbone" / "model.safetensors")
    mean = load_tensors(extended.run / "means" / "means.safetensors")["mean"]
    assert torch.equal(mean, backbone["item_table"].mean(dim=0))
    assert extended.metrics["seconds"]["means"] > 0


def test_a_metric_is_in_every_row_with_chance_interval_and_tests(extended):
    rows = extended.metrics["results"]
    assert all(0 <= row["worst"] <= 1 and "worst" in row["ci95"] for row in rows)
    # Ranks 5 to 19 of 20.
    assert extended.metrics["chance"]["paper"]["worst"] == 15 / 20


def test_a_scorer_has_rows_here_and_in_a_table(extended):
    rows = [row for row in extended.metrics["results"] if row["scorer"] == "last"]
    assert {row["split"] for row in rows} == {"valid", "test"}
    assert {(row["HR@10"], row["worst"]) for row in rows} == {(0.0, 1.0)}
    assert "last" in [row["scorer"] for row in extended.result["table"]["evidence"]]
    assert extended.result["table"]["rows"][0]["seconds"]["training"] > 0


def test_a_backbone_and_a_matching_loss_are_trained_by_their_names(extended):
    assert set(load_tensors(extended.run / "backbone" / "model.safetensors")) == {"item_table", "latest"}
    assert load_recipe(str(extended.run / "recipe.toml")).backbone.model == MarkovConfig()
    losses = read_json(extended.run / "alignment" / "training.json")["losses"]
    assert losses[-1] < losses[0]
