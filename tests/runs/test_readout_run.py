"""A run with a read-out head: trained, stored, read back, scored under every protocol, and part of the evidence."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from allrec.files import read_json
from allrec.errors import InputError
from allrec.config import load_recipe
from allrec.data import load_dataset
from allrec.evaluation import readings
from allrec.evaluation.evaluate import Task, histories_before
from allrec.evaluation.readings import stored_readings
from allrec.experiments.compare import stage_inputs
from allrec.recommender import AllRec
from allrec.runs.setup import plan_of
from worlds import FUSED, READ_OUT, make_world

PROTOCOLS = ("paper", "sampled-99", "full", "full-repeat")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readout")
    asked = ('evaluation.protocols=["paper", "sampled-99", "full", "full-repeat"]', "cold_below=3")
    dataset, llm, recipe = make_world(folder, (*FUSED, *READ_OUT, *asked))
    system = AllRec.train(dataset, run=folder / "run", recipe=recipe, llm=str(llm), cache=folder / "cache")
    return SimpleNamespace(system=system, dataset=load_dataset(dataset), run=folder / "run")


def asked_of(trained, split="test"):
    targets = trained.dataset.targets[split]
    histories = histories_before(trained.dataset, targets, np.arange(len(targets)))
    return trained.system.scoring.represent(histories), histories


def test_it_is_scored_under_every_protocol_on_the_language_models_users(trained):
    rows = [row for row in trained.system.run.metrics()["results"] if row["segment"] == "all"]
    users = {(row["split"], row["protocol"]): row["users"] for row in rows if row["scorer"] == "readout"}
    asked = {"test": 30, "valid": 20}
    assert users == {(split, protocol): asked[split] for split in asked for protocol in PROTOCOLS}


def test_it_comes_back_to_the_bit(trained):
    again = AllRec.from_pretrained(trained.run).scoring
    users, histories = asked_of(trained)
    scoring = trained.system.scoring
    assert torch.equal(again.readout_items, scoring.readout_items)
    assert torch.equal(again.read(users, histories), scoring.read(users, histories))
    assert not any(parameter.requires_grad for parameter in again.readout.parameters())


def test_lists_are_scored_by_the_same_dot_product(trained):
    scoring = trained.system.scoring
    users, histories = asked_of(trained)
    candidates = np.array([[3, -1, 0]] * len(histories))
    scores = scoring.score_with_llm(users, histories, candidates, "readout")
    whole = (scoring.read(users, histories) @ scoring.readout_items.T).numpy()
    np.testing.assert_allclose(scores[:, [0, 2]], whole[:, [3, 0]], atol=1e-5)
    assert (scores[:, 1] == -np.inf).all()
    assert scores.dtype == np.float32


def test_cold_items_are_scored_by_their_text(trained):
    scoring = trained.system.scoring
    cold = scoring.is_cold
    assert 0 < cold.sum() < len(cold)
    with torch.no_grad():
        by_text = scoring.readout.items(scoring.alignment.texts.encode(scoring.text_embeddings))
        by_sales = scoring.readout.items(scoring.alignment.items.encode(scoring.item_embeddings))
    torch.testing.assert_close(scoring.readout_items[cold], by_text[cold])
    torch.testing.assert_close(scoring.readout_items[~cold], by_sales[~cold])


def test_the_whole_fusion_reads_it(trained):
    fused = trained.system.scoring.fused
    assert fused.llm_names("lists") == ["llm", "readout"]
    assert "readout" not in fused.evidence.names


def test_users_are_read_once_for_all_protocols(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "READ_A_CHUNK", 7)
    scoring, rows = trained.system.scoring, np.arange(20)
    told = []
    first = stored_readings(scoring, trained.dataset, "test", rows, (tmp_path,), lambda *done: told.append(done))
    assert told == [(7, 20), (14, 20), (20, 20)]
    assert len(list(tmp_path.glob("test-readout-*.safetensors"))) == 3
    users, histories = asked_of(trained)
    torch.testing.assert_close(first, scoring.read(users, histories)[:20], atol=1e-5, rtol=1e-5)
    silent = SimpleNamespace(represent=None, read=None)
    again = stored_readings(silent, trained.dataset, "test", rows, (tmp_path / "none", tmp_path), lambda *_: None)
    assert torch.equal(again, first)


@pytest.mark.parametrize("catalogue_users", [0, 9])
def test_ranks_are_those_of_its_scores(trained, catalogue_users):
    scoring, targets = trained.system.scoring, trained.dataset.targets["test"]
    folder = trained.run / "evaluate"
    plan = replace(plan_of(trained.system.run.recipe(), folder, lambda *_: None), catalogue_users=catalogue_users)
    kept = sorted(folder.glob("test-readout-*"))
    ranked = scoring.rankers["readout"](trained.dataset, Task("test", "full-repeat", "readout"), plan, lambda *_: None)
    users, histories = asked_of(trained)
    scores = (scoring.read(users, histories) @ scoring.readout_items.T)[torch.from_numpy(ranked.rows)]
    own = scores[torch.arange(len(ranked.rows)), torch.from_numpy(targets.items[ranked.rows]).long()]
    assert ranked.ranks.tolist() == ((scores >= own[:, None]).sum(1) - 1).tolist()
    assert len(ranked.rows) == (catalogue_users or len(plan.rows(Task("test", "paper", "readout"), len(targets))))
    # Read once for all protocols.
    assert sorted(folder.glob("test-readout-*")) == kept


def test_stage_2_is_shared_by_runs_with_other_heads(trained, monkeypatch):
    run, recipe = trained.system.run, trained.system.run.recipe()
    other = recipe.model_copy(update={"readout": recipe.readout.model_copy(update={"sample": 7})})
    before = {stage: stage_inputs(run, stage) for stage in ("alignment", "language_model", "readout")}
    monkeypatch.setattr(run, "recipe", lambda: other)
    assert {stage for stage in before if stage_inputs(run, stage) != before[stage]} == {"readout"}


def test_its_seconds_are_told(trained):
    assert trained.system.run.metrics()["seconds"]["readout"] > 0
    assert len(read_json(trained.run / "readout" / "training.json")["validations"]) == 2


def test_the_papers_recipe_has_none(trained, monkeypatch):
    assert not load_recipe("a-llmrec").readout.enabled
    scoring = trained.system.scoring
    monkeypatch.setattr(scoring, "readout", None)
    assert "readout" not in scoring.rankers
    with pytest.raises(InputError, match=r"no read-out head\. Train one with: --set readout\.enabled=true"):
        scoring.read(torch.zeros(1, 16), [np.array([0])])
