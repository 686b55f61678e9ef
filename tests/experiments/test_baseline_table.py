"""The table of baselines: from a small world to rows, intervals and tests, resumed without doing anything twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.histories import dataset_of
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.data import load_dataset
from allrec.errors import InputError
from allrec.experiments import baselines
from allrec.experiments.baselines import Measured, run_baselines, summarise_baselines
from allrec.parallel import Processes
from allrec.runs.run_folder import RunFolder
from allrec.runs.stages import STAGES
from worlds import FUSED

NAMES = [
    "popularity", "popularity-repeat", "most-recent", "itemknn", "ease", "ease-titles", "bpr", "text", "sasrec-bce",
    "sasrec-softmax",
    "fusion",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("world"), small_world.dataset
    recipe = small_world.recipe(*FUSED, "llm.enabled=false")
    told = []
    result = run_baselines(
        dataset, folder / "out", seeds=(0, 1), recipe=recipe, bce=recipe.backbone, cache=small_world.cache,
        observer=lambda stage, share, values: told.append((stage, share)),
    )  # fmt: skip
    assert ("baselines", 1.0) in told
    return folder, dataset, recipe, result


def test_every_baseline_has_rows_like_those_of_a_run(world):
    rows = world[3]["results"]
    assert sorted({row["scorer"] for row in rows}) == sorted(NAMES)
    assert {(row["split"], row["protocol"]) for row in rows} == {
        ("valid", "paper"),
        ("test", "paper"),
        ("test", "full"),
    }
    keys = "scenario split protocol scorer segment users HR@1 HR@5 HR@10 NDCG@5 NDCG@10 MRR ci95 seed"
    assert all(set(row) == set(keys.split()) for row in rows)
    seeds = {name: {row["seed"] for row in rows if row["scorer"] == name} for name in NAMES}
    assert {name for name, found in seeds.items() if found == {0, 1}} == set(baselines.DRAWN)
    assert json.loads((world[0] / "out" / "baselines.json").read_text()) == world[3]


def test_the_best_is_chosen_on_validation_and_all_others_are_tested_against_it(world):
    result = world[3]
    valid = {row["name"]: row["valid/paper"]["NDCG@10"][0] for row in result["table"]}
    assert result["best"] == max(valid, key=valid.get)
    tests = [row for row in result["comparisons"] if (row["protocol"], row["metric"]) == ("paper", "HR@1")]
    assert {row["against"] for row in tests} == set(NAMES) - {result["best"]}
    assert all(row["p"] <= row["p_holm"] <= min(1, row["p"] * 10) + 1e-12 for row in tests)
    assert max(row["p_holm"] for row in tests) >= max(row["p"] for row in tests)


def test_what_was_chosen_and_tried_is_told(world):
    chosen = {row["name"]: row["chosen"] for row in world[3]["table"]}
    assert len(chosen["ease"][0]["tried"]) == 4
    assert chosen["ease"][0]["setting"] in [setting for setting, _ in chosen["ease"][0]["tried"]]
    assert set(chosen["popularity"][0]["beyond@10"]) == {"coverage", "novelty", "diversity", "popularity_lift"}
    # Ten of sixty items are nearly the same ten for everybody.
    assert chosen["popularity"][0]["beyond@10"]["popularity_lift"] > chosen["text"][0]["beyond@10"]["popularity_lift"]


def test_new_targets_stand_beside_all(world):
    for row in world[3]["table"]:
        seeds = [one for one in world[3]["results"] if (one["split"], one["protocol"], one["scorer"], one["segment"])
                 == ("test", "full", row["name"], "new")]  # fmt: skip
        assert row["test/full/new"]["HR@10"][0] == pytest.approx(np.mean([one["HR@10"] for one in seeds]))


def test_resuming_does_nothing_twice_and_gives_the_same(world, small_world, monkeypatch):
    folder, dataset, recipe, result = world
    monkeypatch.setattr(baselines, "choose", None)
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, train=None))
    again = run_baselines(
        dataset, folder / "out", seeds=(0, 1), recipe=recipe, bce=recipe.backbone, cache=small_world.cache, resume=True
    )
    assert json.loads(json.dumps(again)) == result


def test_seeds_at_the_same_time_give_the_same(world, small_world, tmp_path):
    _, dataset, recipe, result = world
    again = run_baselines(
        dataset, tmp_path / "out", seeds=(0, 1), recipe=recipe, bce=recipe.backbone, cache=small_world.cache,
        engine=Processes(2),
    )  # fmt: skip
    assert again["results"] == result["results"]
    assert again["comparisons"] == result["comparisons"]


def test_the_softmax_and_the_fusion_are_those_of_one_run(world):
    run = world[0] / "out" / "runs" / "fusion-seed1"
    assert (run / "fusion").is_dir()
    assert not (run / "language_model").exists()
    bce = RunFolder.open(world[0] / "out" / "runs" / "sasrec-bce-seed1")
    assert bce.manifest["stages"]["text"]["adopted"] == "fusion-seed0"
    assert not bce.is_done("fusion")
    beyond = next(row["chosen"] for row in world[3]["table"] if row["name"] == "fusion")[1]["beyond@10"]
    assert 0 < beyond["coverage"] <= 1


def test_a_folder_in_use_and_another_data_set_are_refused(world, tmp_path):
    folder, dataset, recipe, _ = world
    with pytest.raises(InputError, match="already holds baselines"):
        run_baselines(dataset, folder / "out", recipe=recipe)
    with pytest.raises(InputError, match="does not hold baselines"):
        run_baselines(dataset, folder, recipe=recipe)
    with pytest.raises(InputError, match="holds baselines of 'world'"):
        run_baselines(replace(load_dataset(dataset), sha256="other"), folder / "out", recipe=recipe, resume=True)
    with pytest.raises(InputError, match="expected at least one, and each once"):
        run_baselines(dataset, tmp_path / "new", seeds=(1, 1), recipe=recipe)


def test_the_command_shows_the_tables(world, monkeypatch):
    monkeypatch.setattr(baselines, "run_baselines", lambda *given, **options: world[3])
    said = CliRunner().invoke(app, ["baselines", "data", "--out", "out", "--seeds", "0,1"])
    assert said.exit_code == 0, said.output
    assert "sasrec-softmax" in said.stdout
    assert "corrected by Holm for 10 rows" in " ".join(said.stdout.split())
    assert " ".join(said.stdout.split()).count("targets new to the user") == 2
    refused = CliRunner().invoke(app, ["baselines", "data", "--out", "out", "--seeds", "one"])
    assert "got the seed 'one'" in str(refused.exception)


def test_a_table_by_hand():
    dataset = dataset_of([[0, 1, 2, 3], [1, 2, 3, 0]], 6)
    sure, poor = Measured("sure", facts=[{}]), Measured("poor", facts=[{}, {}])
    for split, protocol in baselines.EVALUATED:
        sure.ranks[split, protocol] = [np.array([0, 0])]
        poor.ranks[split, protocol] = [np.array([0, 20]), np.array([20, 20])]
    found = summarise_baselines([poor, sure], dataset, (0, 1))
    assert found["best"] == "sure"
    test = next(row for row in found["comparisons"] if row["metric"] == "HR@1")
    # Users' means over the seeds: 1/2 and 0.
    assert (test["against"], test["difference"]) == ("poor", 1 - (1 / 2 + 0) / 2)
    assert found["table"][0]["test/paper"]["HR@1"][0] == 1 / 4


def test_the_best_items_leave_the_history_out():
    dataset = dataset_of([[0, 1, 2, 3], [4, 4, 4, 5], [5, 4, 3, 2]], 6)
    counts = torch.arange(6.0)
    lists = baselines.top_items(baselines.Popularity(counts), dataset, dataset.targets["test"], 4)
    assert lists.tolist() == [[5, 4, 3, -1], [5, 3, 2, 1], [2, 1, 0, -1]]


def test_a_large_catalogue_has_no_matrix_of_items(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_DENSE", 5)
    made = baselines.chosen_baselines(dataset_of([[0, 1, 2, 3]], 6), torch.eye(6), {}, 0)
    assert not {"ease", "ease-titles", "itemknn"} & set(made)
    assert "popularity" in made
