"""A run with a read-out head: trained, stored, read back, scored under every protocol, and part of the evidence."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from allrec.config import load_recipe
from allrec.data import load_dataset
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import InputError
from allrec.evaluation.evaluate import RankingRequest
from allrec.files import read_json
from allrec.recommender import AllRec, plan_of
from allrec.runs import scorers
from allrec.runs.scorers import SCORERS, stored_readings
from allrec.runs.stages import STAGES, stage_inputs
from allrec.runs.trained_model import TrainedModel
from worlds import FUSED, READ_OUT, make_world

PROTOCOLS = ("paper", "sampled-99", "full", "full-repeat")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readout")
    asked = ('evaluation.protocols=["paper", "sampled-99", "full", "full-repeat"]', "cold_below=3")
    dataset, llm, recipe = make_world(folder, (*FUSED, *READ_OUT, *asked))
    system = AllRec.train(dataset, run=folder / "run", recipe=recipe, llm=str(llm), cache=folder / "cache")
    return SimpleNamespace(system=system, dataset=load_dataset(dataset), run=folder / "run")


def histories_of(trained, split="test"):
    targets, dataset = trained.dataset.targets[split], trained.dataset
    return [dataset.history(user)[:position] for user, position in zip(targets.users, targets.positions, strict=True)]


def test_it_is_scored_under_every_protocol_on_the_language_models_users(trained):
    rows = [row for row in trained.system.run.metrics()["results"] if row["segment"] == "all"]
    users = {(row["split"], row["protocol"]): row["users"] for row in rows if row["scorer"] == "readout"}
    asked = {"test": 30, "valid": 20}
    assert users == {(split, protocol): asked[split] for split in asked for protocol in PROTOCOLS}


def test_it_comes_back_to_the_bit(trained):
    again = AllRec.from_pretrained(trained.run).model
    histories = histories_of(trained)
    scoring = trained.system.model
    assert torch.equal(again.readout_items, scoring.readout_items)
    assert torch.equal(again.read(histories), scoring.read(histories))
    assert not any(parameter.requires_grad for parameter in again.readout.parameters())


def test_lists_are_scored_by_the_same_dot_product(trained):
    scoring = trained.system.model
    histories = histories_of(trained)
    candidates = np.array([[3, -1, 0]] * len(histories))
    scores = scoring.llm_scores(histories, candidates, "readout")
    whole = (scoring.read(histories) @ scoring.readout_items.T).numpy()
    np.testing.assert_allclose(scores[:, [0, 2]], whole[:, [3, 0]], atol=1e-5)
    assert (scores[:, 1] == -np.inf).all()
    assert scores.dtype == np.float32


def test_cold_items_are_scored_by_their_text(trained):
    scoring = trained.system.model
    cold = scoring.is_cold
    assert 0 < cold.sum() < len(cold)
    with torch.no_grad():
        by_text = scoring.readout.items(scoring.alignment.texts.encode(scoring.text_embeddings))
        by_sales = scoring.readout.items(scoring.alignment.items.encode(scoring.item_embeddings))
    torch.testing.assert_close(scoring.readout_items[cold], by_text[cold])
    torch.testing.assert_close(scoring.readout_items[~cold], by_sales[~cold])


def test_the_whole_fusion_reads_it(trained):
    fused = trained.system.model.fused_ranker
    assert fused.llm_names("lists") == ["llm", "title_prior", "title_length", "readout"]
    assert "readout" not in fused.evidence.names


def test_users_are_read_once_for_all_protocols(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(scorers, "READ_A_CHUNK", 7)
    scoring, rows = trained.system.model, np.arange(20)
    told = []
    request = RankingRequest(
        trained.dataset, "test", EvaluationProtocol.PAPER, rows, rows, (tmp_path,), lambda *done: told.append(done)
    )
    first = stored_readings(scoring, request)
    assert told == [(7 / 20, {"users": 7}), (14 / 20, {"users": 14}), (1, {"users": 20})]
    assert len(list(tmp_path.glob("test-readout-*.safetensors"))) == 3
    histories = histories_of(trained)
    torch.testing.assert_close(first, scoring.read(histories)[:20], atol=1e-5, rtol=1e-5)
    silent = SimpleNamespace(represent=None, read=None)
    again = stored_readings(silent, request._replace(folders=(tmp_path / "none", tmp_path)))
    assert torch.equal(again, first)


@pytest.mark.parametrize("catalogue_users", [0, 9])
def test_ranks_are_those_of_its_scores(trained, catalogue_users):
    scoring, targets = trained.system.model, trained.dataset.targets["test"]
    folder = trained.run / "evaluate"
    plan = replace(plan_of(trained.system.run.recipe(), folder), catalogue_users=catalogue_users)
    kept = sorted(folder.glob("test-readout-*"))
    rows, read = (plan.rows(SCORERS["readout"], "test", protocol, len(targets)) for protocol in ("full-repeat", None))
    request = RankingRequest(trained.dataset, "test", EvaluationProtocol.FULL_REPEAT, rows, read, plan.folders)
    ranked = SCORERS["readout"].rank(scoring, request)
    histories = histories_of(trained)
    scores = (scoring.read(histories) @ scoring.readout_items.T)[torch.from_numpy(rows)]
    own = scores[torch.arange(len(rows)), torch.from_numpy(targets.items[rows]).long()]
    assert ranked.ranks.tolist() == ((scores >= own[:, None]).sum(1) - 1).tolist()
    assert len(rows) == (catalogue_users or len(read))
    # Read once for all protocols.
    assert sorted(folder.glob("test-readout-*")) == kept


def test_stage_2_is_shared_by_runs_with_other_heads(trained, monkeypatch):
    run, recipe = trained.system.run, trained.system.run.recipe()
    other = recipe.model_copy(update={"readout": recipe.readout.model_copy(update={"sample": 7})})
    before = {name: stage_inputs(run, name) for name, stage in STAGES.items() if stage.inputs is not None}
    monkeypatch.setattr(run, "recipe", lambda: other)
    assert {name for name in before if stage_inputs(run, name) != before[name]} == {"readout"}


def test_its_seconds_are_told(trained):
    assert trained.system.run.metrics()["seconds"]["readout"] > 0
    assert len(read_json(trained.run / "readout" / "training.json")["validations"]) == 2


def test_the_papers_recipe_has_none(trained, monkeypatch):
    assert not load_recipe("a-llmrec").readout.enabled
    scoring = trained.system.model
    other = TrainedModel(scoring.run, scoring.llm)
    monkeypatch.setattr(other.run, "recipe", lambda: load_recipe("a-llmrec"))
    assert SCORERS["readout"].why_not(other, None, "paper") == ""
    with pytest.raises(InputError, match=r"no read-out head\. Train one with: --set readout\.enabled=true"):
        _ = other.readout
