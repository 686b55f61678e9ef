"""A run with a fusion: its scorers, its recommendations with their reasons, and new items that join it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.data import load_dataset
from allrec.errors import InputError
from allrec.files import sha256_file
from allrec.hybrid.features import histories_of
from allrec.recommender import AllRec
from allrec.runs.run_folder import MANIFEST
from allrec.runs.stages import training_seed
from worlds import FUSED

NEW = [
    {"item_id": "new-1", "title": "Rosehip Night Cream for Dry Skin", "description": "A cream."},
    {"item_id": "new-2", "title": "Cast Iron Skillet, 10 Inch", "genres": ["Kitchen"]},
]


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("fused"), load_dataset(small_world.dataset)
    recipe = small_world.recipe(*FUSED, "fusion.evidence.ensemble=2", 'evaluation.protocols=["paper", "full"]')
    given = {"llm": str(small_world.llm), "cache": small_world.cache}
    return folder, dataset, AllRec.train(dataset, run=folder / "run", recipe=recipe, **given)


@pytest.fixture
def run(world, tmp_path):
    """A copy of the run, for tests that add to it."""
    world[2].save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_a_recommendation_without_the_language_model_runs_through_few_files(world):
    script = Path(__file__).parents[2] / "scripts" / "count_files.py"
    command = [sys.executable, str(script), str(world[2].run.path), "--user", world[1].user_ids[0]]
    counted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 0 < int(re.search(r"run through: (\d+)", counted)[1]) <= 24


def test_its_scorers_are_measured_and_its_seconds_counted(world):
    metrics = world[2].run.metrics()
    rows = {(row["protocol"], row["scorer"]): row for row in metrics["results"] if row["segment"] == "all"}
    assert {scorer for _, scorer in rows} >= {"cf", "joint", "text", "fusion", "llm", "allround"}
    assert {scorer for protocol, scorer in rows if protocol == "full"} == {"cf", "joint", "text", "fusion", "allround"}
    parts = [world[2].run.seconds(stage) for stage in ("fusion", "content", "ensemble")]
    assert metrics["seconds"]["fusion"] == sum(parts) > max(parts) > 0
    assert 0 < rows["full", "fusion"]["retrieved"] <= 1
    assert "retrieved" not in rows["full", "cf"]
    leads = {(row["scorer"], row["against"]) for row in metrics["comparisons"] if row["protocol"] == "paper"}
    assert {("allround", "fusion"), ("fusion", "cf"), ("llm", "llm-no-soft")} <= leads
    assert ("fusion", "allround") not in leads


def test_its_evidence_is_of_two_trainings(world):
    evidence = world[2].model.evidence
    for name in ("cf", "content"):
        first, second = evidence.scorers[name].backbone.trainings
        assert not torch.allclose(first.item_embeddings(), second.item_embeddings(), atol=1e-2)
    assert evidence.scorers["cf"].backbone.trainings[0] is world[2].model.backbone
    assert evidence.scorers["joint"].items.shape[1] == 2 * world[2].model.joint_embeddings.shape[1]
    assert evidence.searches.keys() == {"cf", "content", "joint", "text", "tuned_text"}


def test_no_two_trainings_have_one_seed():
    seeds = [training_seed(seed, number) for seed in range(20) for number in range(1, 6)]
    assert len({*seeds, *range(20)}) == 120


def test_a_score_over_the_catalogue_never_counts_a_target_that_was_not_retrieved(world):
    rows = [row for row in world[2].run.metrics()["results"] if "retrieved" in row]
    assert rows
    assert all(row["HR@10"] <= row["retrieved"] for row in rows)


def test_loaded_again_it_recommends_the_same(world):
    _, dataset, system = world
    again = AllRec.from_pretrained(system.run.path)
    user = dataset.user_ids[0]
    assert again.recommend(user=user, k=7) == system.recommend(user=user, k=7)


def test_recommendations_say_why_and_their_reasons_sum(world):
    _, dataset, system = world
    found = system.recommend(user=dataset.user_ids[1], k=12)
    history = {dataset.item_ids[item] for item in dataset.history(1)}
    assert len(found) == 12
    assert not history & {item.item_id for item in found}
    for place, item in enumerate(found):
        assert item.score == pytest.approx(sum(item.contributions.values()), abs=1e-4)
        # The language model reads the best five.
        assert (item.llm_log_prob is not None) == (place < 5) == ("llm" in item.contributions)
    assert {"cf", "joint", "text_largest", "log_count"} <= found[0].contributions.keys()
    for part in (found[:5], found[5:]):
        assert [item.score for item in part] == sorted((item.score for item in part), reverse=True)


def test_without_the_language_model_it_is_not_asked(world, monkeypatch):
    _, dataset, system = world

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(system.model, "llm_scores", refuse)
    found = system.recommend(user=dataset.user_ids[1], k=60, use_llm=False)
    assert all(item.llm_log_prob is None for item in found)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert len(found) == dataset.num_items - len(set(dataset.history(1).tolist()))
    assert len(system.rank(dataset.item_ids[:9], history=dataset.item_ids[9:11], use_llm=False)) == 9


def test_given_items_are_ranked_with_reasons(world):
    _, dataset, system = world
    found = system.rank(dataset.item_ids[:4], history=dataset.item_ids[9:11])
    assert {item.item_id for item in found} == set(dataset.item_ids[:4])
    assert all(item.llm_log_prob is not None and item.contributions for item in found)


def test_the_program_shows_the_reasons(world):
    _, dataset, system = world
    call = ("recommend", str(system.run.path), "--user", dataset.user_ids[0], "-k", "3")
    table = CliRunner().invoke(app, call)
    assert "why" in table.stdout
    found = json.loads(CliRunner().invoke(app, [*call, "--no-llm", "--json"]).stdout)
    assert found[0]["llm_log_prob"] is None
    assert found[0]["contributions"]["cf"] != 0


def test_a_run_whose_fusion_is_not_done_is_not_loaded_without_it(run):
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["stages"]["fusion"]["state"] = "running"
    (run / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"no fusion in .*: stage 'fusion' is 'running'\. Resume with"):
        AllRec.from_pretrained(run)


def tensors_of(folder):
    return {path.relative_to(folder): sha256_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def raw_scores(system, items, told):
    """Every score of given items: of the backbone, the joint space, the language model, and all evidence."""
    model = system.model
    users = model.represent([told])
    evidence = model.evidence.features(histories_of([told]), items[None])
    return [
        (users @ model.item_embeddings.T)[0, items].numpy(),
        (users @ model.joint_embeddings.T)[0, items].numpy(),
        model.llm_scores([told], items[None])[0],
        evidence[0],
    ]


def test_new_items_change_no_tensor_and_no_score(world, run):
    folder, dataset, _ = world
    system, told, items = AllRec.from_pretrained(run), dataset.history(3).astype(np.int64), np.arange(10)
    tensors, before = tensors_of(run), raw_scores(system, items, told)
    assert system.add_items(NEW, cache=folder / "cache") == ["new-1", "new-2"]
    after = tensors_of(run)
    assert {path: after[path] for path in tensors} == tensors
    for again in (system, AllRec.from_pretrained(run)):
        for one, other in zip(before, raw_scores(again, items, told), strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)


def test_new_items_are_recommended_at_once_by_their_text(world, run):
    folder, dataset, _ = world
    system = AllRec.from_pretrained(run)
    system.add_items(NEW, cache=folder / "cache")
    for again in (system, AllRec.from_pretrained(run)):
        found = {item.item_id: item for item in again.recommend(user=dataset.user_ids[2], k=62)}
        assert {"new-1", "new-2"} <= found.keys()
        assert found["new-1"].is_cold
        assert found["new-1"].title == NEW[0]["title"]
        ranked = again.rank(["new-1", dataset.item_ids[0]], history=["new-2", dataset.item_ids[1]])
        assert len(ranked) == 2
    text = system.model.evidence.features(histories_of([np.array([60])]), np.array([[60, 61]]))
    assert text[0, 0, system.model.evidence.names.index("text_largest")] == pytest.approx(1.0, abs=1e-5)


def test_items_join_twice_and_the_run_is_still_evaluated(world, run):
    folder, dataset, _ = world
    system = AllRec.from_pretrained(run)
    for row in NEW:
        system.add_items([row], cache=folder / "cache")
    again = AllRec.from_pretrained(run)
    assert again.model.catalogue.item_ids[-2:] == ["new-1", "new-2"]
    assert again.model.catalogue.num_added == 2
    assert torch.equal(again.model.is_cold[-2:], torch.tensor([True, True]))
    rows = again.evaluate(dataset)["results"]
    assert {row["scorer"] for row in rows} >= {"fusion", "allround"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no items were given"),
        ([{"title": "A lamp"}], "item 1 has no item_id"),
        ([{"item_id": "a"}], "item 'a' has neither title nor description"),
        ([{"item_id": "a", "title": "<br>"}], "item 'a' has neither title nor description"),
        ([NEW[0], NEW[0]], "item 'new-1' is given twice"),
        ([{"item_id": "{known}", "title": "A lamp"}], "is known already"),
        ([{"item_id": "a", "titel": "A lamp"}], "unknown key 'titel': did you mean 'title'"),
    ],
)
def test_items_that_cannot_join_are_refused_and_nothing_is_written(world, run, rows, message):
    folder, dataset, _ = world
    rows = [{key: value.replace("{known}", dataset.item_ids[3]) for key, value in row.items() if key != "genres"}
            for row in rows]  # fmt: skip
    manifest = (run / MANIFEST).read_bytes()
    with pytest.raises(InputError, match=message):
        AllRec.from_pretrained(run).add_items(rows, cache=folder / "cache")
    assert (run / MANIFEST).read_bytes() == manifest
    assert not (run / "added").exists()


def test_the_program_adds_items_of_a_file(world, run, tmp_path, monkeypatch):
    monkeypatch.setenv("ALLREC_CACHE", str(world[0] / "cache"))
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, NEW)) + "\n")
    done = CliRunner().invoke(app, ["add-items", str(run), str(tmp_path / "items.jsonl")])
    assert "2 items added" in done.stdout
    (tmp_path / "items.jsonl").write_text('{"item_id": "a"\n')
    done = CliRunner().invoke(app, ["add-items", str(run), str(tmp_path / "items.jsonl")])
    with pytest.raises(InputError, match=r"items\.jsonl, line 1 is no JSON"):
        raise done.exception


@pytest.mark.parametrize(
    ("given", "id_"),
    [("42", "42"), ("42.0", "42"), ('"42"', "42"), ('"42.0"', "42"), ('" 42 "', "42"), ('"a,b"', "a,b")],
)
def test_the_program_reads_the_ids_of_new_items_as_prepare_does(world, run, tmp_path, monkeypatch, given, id_):
    monkeypatch.setenv("ALLREC_CACHE", str(world[0] / "cache"))
    (tmp_path / "items.jsonl").write_text(f'{{"item_id": {given}, "title": "A lamp"}}\n')
    done = CliRunner().invoke(app, ["add-items", str(run), str(tmp_path / "items.jsonl")])
    assert "1 item added" in done.stdout, done.exception
    assert AllRec.from_pretrained(run).model.catalogue.item_ids[-1] == id_
    quoted = f'"{id_}"' if "," in id_ else id_
    for given_id in (quoted, quoted.replace("42", "42.0")):
        done = CliRunner().invoke(app, ["recommend", str(run), "--history", given_id, "--no-llm", "--json", "-k", "2"])
        assert done.exit_code == 0, done.exception


@pytest.mark.parametrize("given", ["null", "NaN", '""', '" "', '["a"]', '{"a": 1}', "true"])
def test_the_program_refuses_new_items_without_an_id(world, run, tmp_path, monkeypatch, given):
    monkeypatch.setenv("ALLREC_CACHE", str(world[0] / "cache"))
    (tmp_path / "items.jsonl").write_text(f'{{"item_id": {given}, "title": "A lamp"}}\n')
    done = CliRunner().invoke(app, ["add-items", str(run), str(tmp_path / "items.jsonl")])
    with pytest.raises(InputError, match=r"item_id|NaN|as the id of an item"):
        raise done.exception
    assert not (run / "added").exists()


def test_a_number_is_an_id_in_every_verb_of_python(world, run):
    system = AllRec.from_pretrained(run)
    assert system.add_items([{"item_id": 42, "title": "A lamp"}], cache=world[0] / "cache") == ["42"]
    assert system.add_items([{"item_id": 43.0, "title": "A rug"}], cache=world[0] / "cache") == ["43"]
    told = [system.recommend(history=[one], k=3) for one in (42, 42.0, "42", "42.0", np.int64(42), np.float64(42))]
    assert all(one == told[0] for one in told)
    ranked = [system.rank([43, 42.0], history=["42"]), system.rank(["43", "42"], history=[42])]
    assert ranked[0] == ranked[1]
    assert {item.item_id for item in ranked[0]} == {"43", "42"}


KILLED = """
import os, signal, sys
from pathlib import Path
from allrec.recommender import AllRec
import allrec.runs.run_folder
def kill(path):
    os.kill(os.getpid(), signal.SIGKILL)
system = AllRec.from_pretrained(sys.argv[1])
allrec.runs.run_folder.sha256_file = kill
system.add_items([{"item_id": "new-1", "title": "A lamp"}], cache=Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_kill_leaves_the_run_as_it_was(world, run, tmp_path):
    folder, dataset, _ = world
    before = AllRec.from_pretrained(run).recommend(user=dataset.user_ids[0], k=5)
    command = [sys.executable, "-c", KILLED, str(run), str(folder / "cache")]
    killed = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (run / "added" / "0001").is_dir()
    again = AllRec.from_pretrained(run)
    assert again.model.catalogue.num_added == 0
    assert again.recommend(user=dataset.user_ids[0], k=5) == before
    again.add_items(NEW, cache=folder / "cache")
    assert AllRec.from_pretrained(run).model.catalogue.num_added == 2
