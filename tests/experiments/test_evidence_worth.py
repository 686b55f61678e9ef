"""Fusion without parts of its evidence: the names are a run's, nothing else changes, nothing is trained again."""

from dataclasses import replace

import numpy as np
import pytest
from tests.remedies import refused
from tests.worlds import FUSED

from allrec.config import dump_recipe, load_recipe
from allrec.data import load_dataset
from allrec.errors import InputError
from allrec.evaluation.results import clusters_of, load_ranks
from allrec.experiments import compare as module
from allrec.experiments import evidence_worth
from allrec.experiments.compare import RUNS, compare, rows_of
from allrec.experiments.evidence_worth import evaluated_lists, evidence_names, parts_of, rankings_without
from allrec.hybrid.fusion import fold_of
from allrec.runs.run_folder import RunFolder
from allrec.runs.stages import STAGES
from allrec.runs.trained_model import TrainedModel

KEPT = ("cf", "the family text", "log_count")


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    """A comparison of a fused recipe with a few of its ablations, two seeds."""
    folder = tmp_path_factory.mktemp("worth")
    (folder / "fused.toml").write_text(dump_recipe(small_world.recipe(*FUSED, "llm.enabled=false")))
    rows = rows_of([str(folder / "fused.toml")], ablations="fusion")
    rows = [row for row in rows if not row.left_out or row.name.removeprefix("without ") in KEPT]
    compare(small_world.dataset, rows[:1], folder / "out", seeds=(0, 1), cache=small_world.cache)
    with pytest.MonkeyPatch.context() as patch:
        for name, stage in STAGES.items():
            patch.setitem(STAGES, name, replace(stage, train=None))
        given = {"seeds": (0, 1), "cache": small_world.cache, "resume": True}
        result = compare(small_world.dataset, rows, folder / "out", **given)
    return folder, load_dataset(small_world.dataset), rows, result, given


def model_of(world):
    return TrainedModel(RunFolder.open(world[0] / "out" / RUNS / "fused-seed1"))


def test_the_names_are_those_of_a_run(world):
    assert evidence_names(model_of(world).recipe) == model_of(world).evidence.names
    bare = load_recipe("allround", ('alignment.network.kind="identity"',))
    assert "joint" not in evidence_names(bare)


def test_every_evidence_is_left_out_alone_and_with_its_family(world):
    names = model_of(world).evidence.names
    parts = parts_of(names)
    assert [parts[name] for name in names] == [(name,) for name in names]
    assert parts["the family history"] == (
        "in_history", "times_in_history", "recency_in_history", "history_length",
    )  # fmt: skip
    assert "the family joint" not in parts
    kept = set(names) - set(parts["anything trained"])
    assert {name.partition("_")[0] for name in kept} == {
        "text", "words", "neighbours", "in", "times", "recency", "log", "history",
    }  # fmt: skip


def test_without_leaving_anything_out_it_is_the_runs_own_fusion_to_the_rank(world):
    model, dataset = model_of(world), world[1]
    again = rankings_without(evaluated_lists(model, dataset), (), model.recipe.fusion, model.recipe.seed)
    stored = load_ranks(model.run.verified_folder("evaluate")).rankings
    assert {one.split for one in again} == {"valid", "test"}
    for one in again:
        assert np.array_equal(one.ranks, stored[one.split, "paper", "fusion"].ranks)


def test_validation_users_are_scored_by_the_member_that_never_met_them(world, monkeypatch):
    model, dataset = model_of(world), world[1]
    lists, asked = evaluated_lists(model, dataset), []

    def note(fusion, features, folds):
        asked.append(folds)
        return np.zeros(features.shape[:2])

    monkeypatch.setattr(evidence_worth, "fused_scores", note)
    rankings_without(lists, ("cf",), model.recipe.fusion, model.recipe.seed)
    assert np.array_equal(asked[0], fold_of(clusters_of(dataset, dataset.targets["valid"]), 2, model.recipe.seed))
    assert asked[1] is None


def test_what_is_left_out_is_not_read(world, monkeypatch):
    model, dataset = model_of(world), world[1]
    lists = evaluated_lists(model, dataset)
    left_out = parts_of(lists.names)["the family text"]
    expected = rankings_without(lists, left_out, model.recipe.fusion, 0)
    for one in lists.lists.values():
        one.features[:, :, [lists.names.index(name) for name in left_out]] = np.nan
    again = rankings_without(lists, left_out, model.recipe.fusion, 0)
    assert all(np.array_equal(one.ranks, other.ranks) for one, other in zip(expected, again, strict=True))
    with pytest.raises(InputError, match="is not finite"):
        rankings_without(lists, ("cf",), model.recipe.fusion, 0)


def test_each_row_is_tested_against_the_whole_over_seeds_and_users(world):
    first, *others = world[3]["table"]["rows"]
    assert (first["scorer"], first["against_first"]) == ("fusion", None)
    assert [row["name"] for row in others] == [f"without {name}" for name in ("the family text", "cf", "log_count")]
    for row in others:
        test = row["against_first"]["HR@1"]
        assert test["difference"] == pytest.approx(row["test"]["HR@1"][0] - first["test"]["HR@1"][0])
        assert row["seconds"] == first["seconds"]
    assert any(row["test"] != first["test"] for row in others)
    assert {row["scorer"] for row in world[3]["table"]["evidence"]} == {"cf", "joint", "text", "fusion"}


def test_what_is_measured_is_not_measured_again(world, small_world, monkeypatch):
    monkeypatch.setattr(module, "measure_left_out", None)
    again = compare(small_world.dataset, world[2], world[0] / "out", **world[4])
    assert again["table"] == world[3]["table"]


def test_the_language_model_has_a_row_where_the_recipe_has_one():
    named = {row.name: row for row in rows_of(["allround"], ablations="fusion")}
    assert (named["allround"].scorer, named["with the language model"].scorer) == ("fusion", "allround")
    without = {row.name for row in rows_of(["allround"], ablations="fusion", sets=("llm.enabled=false",))}
    assert set(named) - without == {"with the language model"}
    assert len({row.run for row in named.values()}) == 1


def test_a_recipe_without_a_fusion_is_told_of_one_that_has_it():
    with refused("and recipe {} lacks one. Compare another: --recipes allround"):
        rows_of(["a-llmrec"], ablations="fusion")
    with refused("and recipe {} lacks one. Compare another: --recipes allround"):
        rows_of(["allround"], ablations="fusion", sets=('evaluation.protocols=["full"]',))
    assert len(rows_of(["allround"], ablations="fusion")) > 30
