"""Scenarios, another data set and diagnostics as a user calls them, on a small world."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.config import dump_recipe, load_recipe
from allrec.data import PrepareConfig, SimulationConfig, load_dataset, prepare, simulate
from allrec.errors import InputError
from allrec.evaluation.results import own_results
from allrec.experiments.cross_domain import foreign_model, with_items
from allrec.experiments.scenarios import few_shot_recipe, make_scenario
from allrec.recommender import AllRec
from worlds import make_world

FAST = ("llm.enabled=false", 'evaluation.protocols=["paper"]')


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    dataset, llm, recipe = make_world(folder)
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    simulate(folder / "source2", SimulationConfig(num_users=60, num_items=50, mean_interactions=6, seed=5))
    prepare(folder / "source2", folder / "other", config=PrepareConfig(name="other world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(folder / "cache"))
        call("train", dataset, "--run", folder / "run", "--recipe", folder / "recipe.toml", "--llm", llm)
        yield folder, dataset, llm


def scenario(world, name, *more):
    folder, dataset, llm = world
    sets = [part for one in FAST for part in ("--set", one)]
    out = folder / name
    return call(
        "scenario", dataset, "--scenario", name, "--out", out, "--recipe", folder / "recipe.toml", "--llm", llm,
        *sets, *more,
    )  # fmt: skip


def rows(path, segment="all"):
    metrics = json.loads((path / "metrics.json").read_text())
    return [row for row in metrics["results"] if row["segment"] == segment and row["split"] == "test"]


def test_few_shots_name_their_scenario_and_ask_everybody(world):
    said = scenario(world, "few-shot-20")
    found = rows(world[0] / "few-shot-20")
    assert {(row["scenario"], row["scorer"]) for row in found} == {("few-shot-20", "cf"), ("few-shot-20", "joint")}
    assert {row["users"] for row in found} == {len(load_dataset(world[1]).targets["test"])}
    assert "world, scenario few-shot-20, test, protocol paper" in said


def test_few_shots_are_trained_in_small_batches_and_twice_changes_nothing(world):
    whole = load_recipe("allround")
    small = few_shot_recipe(whole, 900)
    evidence = small.fusion.evidence
    batches = (small.backbone.tokens_per_batch, small.alignment.batch_size, evidence.tower.batch_size)
    assert (*batches, evidence.content.backbone.tokens_per_batch) == (900 // 10,) * 4
    assert small.backbone.loop.patience_steps == 300
    assert small.alignment.loop.epochs == 20
    assert few_shot_recipe(small, 900) == small
    assert few_shot_recipe(whole, 50).backbone.tokens_per_batch == 32
    assert few_shot_recipe(whole, 10**6).backbone.tokens_per_batch == whole.backbone.tokens_per_batch
    # Nothing else changes: what is asked for and how fusion is fitted stay as they are.
    assert small.fusion.training == whole.fusion.training
    assert small.evaluation == whole.evaluation
    assert load_recipe(str(world[0] / "few-shot-20" / "recipe.toml")).backbone.tokens_per_batch < 256


def test_a_run_of_a_scenario_is_evaluated_again_in_it_and_in_no_other(world):
    scenario(world, "cold-users-10")
    run = world[0] / "cold-users-10"
    before = rows(run)
    call("evaluate", run, world[1])
    call("evaluate", run, world[1], "--scenario", "cold-users-10")
    assert rows(run) == before
    assert {row["users"] for row in before} == {10}
    for name in ("standard", "cold-users-11"):
        with pytest.raises(InputError, match=f"have seen what {name} holds out of 'world'"):
            call("evaluate", run, world[1], "--scenario", name)


def test_unseen_items_join_a_run_that_never_met_them(world):
    scenario(world, "unseen")
    run, dataset = world[0] / "unseen", load_dataset(world[1])
    made = make_scenario(dataset, "unseen", 0)
    system = AllRec.from_pretrained(run)
    assert system.model.catalogue.item_ids == made.evaluated.item_ids
    assert system.model.is_cold[made.train.num_items :].all()
    stored = (run / "catalogue" / "items.parquet").read_bytes()
    assert not any(item_id.encode() in stored for item_id in made.evaluated.item_ids[made.train.num_items :])
    found = rows(run, "unseen")
    assert {row["users"] for row in found} == {len(made.evaluated.targets["test"])}
    before = rows(run)
    scenario(world, "unseen", "--resume")
    assert rows(run) == before


def test_another_data_set_is_ranked_by_texts_alone_and_its_rows_stand_apart(world):
    folder = world[0]
    own = own_results(json.loads((folder / "run" / "metrics.json").read_text()))
    said = call("evaluate", folder / "run", folder / "other", "--scenario", "cross-domain", "--protocol", "paper")
    call("evaluate", folder / "run", folder / "other", "--scenario", "cross-domain", "--protocol", "paper")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert own_results(metrics) == own
    foreign = [row for row in metrics["results"] if row["scenario"] == "cross-domain"]
    scorers = {"text", "joint", "llm", "llm-random-items", "llm-no-soft"}
    assert sorted(row["scorer"] for row in foreign if row["segment"] == "all") == sorted(scorers)
    assert {(row["dataset"], row["split"]) for row in foreign} == {("other world", "test")}
    # An evaluation on its own data leaves them there.
    call("evaluate", folder / "run", world[1], "--protocol", "paper")
    again = json.loads((folder / "run" / "metrics.json").read_text())
    assert [row for row in again["results"] if row["scenario"] == "cross-domain"] == foreign
    assert metrics["other_datasets"] == again["other_datasets"]
    assert metrics["other_datasets"]["other world"]["chance"]["paper"]["HR@1"] == 1 / 20
    assert "world to other world, test, protocol paper" in said
    assert "protocol paper, targets new to the user" in " ".join(said.split())


def test_foreign_users_are_what_the_backbone_makes_of_decoded_texts(world):
    system = AllRec.from_pretrained(world[0] / "run")
    own, other = system.model, load_dataset(world[0] / "other")
    texts = torch.randn(other.num_items, own.text_embeddings.shape[1], generator=torch.Generator().manual_seed(0))
    foreign = foreign_model(own, other, texts)
    decoded = own.alignment.items.decode(own.alignment.texts.encode(texts))
    torch.testing.assert_close(foreign.joint_embeddings, decoded)
    assert foreign.is_cold.all()
    # A foreign catalogue of the run's own decoded embeddings gives the users that a backbone with these would give.
    by_hand = with_items(own.backbone, decoded)
    history = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(foreign.represent([np.array([1, 2, 3])]), by_hand.encode(history))
    same = with_items(own.backbone, own.item_embeddings)
    torch.testing.assert_close(same.encode(history), own.backbone.encode(history))


def test_what_cannot_cross_is_refused(world):
    system = AllRec.from_pretrained(world[0] / "run")
    own, other = system.model, load_dataset(world[0] / "other")
    with pytest.raises(InputError, match="was trained on 'world' itself"):
        call("evaluate", world[0] / "run", world[1], "--scenario", "cross-domain")
    with pytest.raises(InputError, match="a object, cannot encode other items than its own"):
        with_items(object(), torch.eye(3))
    plain = own.alignment
    own.alignment = type(plain)(4, 5, load_recipe("infonce").alignment.network)
    with pytest.raises(InputError, match="no decoder dec_I"):
        foreign_model(own, other, torch.zeros(other.num_items, 5))
    with pytest.raises(InputError, match="allrec evaluate RUN DATASET --scenario cross-domain"):
        scenario(world, "cross-domain")


def test_diagnose_writes_what_it_says(world):
    run = world[0] / "run"
    said = call("diagnose", run, world[1], "--users", 12, "--orders", 2)
    found = json.loads((run / "diagnostics.json").read_text())
    assert {row["scorer"] for row in found["history"]} == {"cf", "joint", "llm"}
    assert len(found["places"]["places"]) == 20
    assert found["places"]["users"] == found["answers"]["users"] == 12
    assert "the history shuffled" in said
    assert "over 2 orders of 12 lists" in said
    # A tiny model with random weights writes no titles.
    assert found["answers"]["invalid"] == 1
    call("diagnose", run, world[1], "--users", 12, "--orders", 2)
    assert json.loads((run / "diagnostics.json").read_text()) == found


def test_a_run_without_a_language_model_is_diagnosed_by_what_it_has(world):
    if not (world[0] / "few-shot-20").is_dir():
        scenario(world, "few-shot-20")
    call("diagnose", world[0] / "few-shot-20", world[1], "--users", 12)
    found = json.loads((world[0] / "few-shot-20" / "diagnostics.json").read_text())
    assert (found["places"], found["answers"], found["scenario"]) == (None, None, "few-shot-20")


def test_a_run_without_a_language_model_has_no_such_stage(world):
    if not (world[0] / "few-shot-20").is_dir():
        scenario(world, "few-shot-20")
    assert not (world[0] / "few-shot-20" / "language_model").exists()
