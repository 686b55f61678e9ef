"""A run whose language model is tuned by LoRA: it learns, resumes to the same bytes, comes back, and is labelled."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.killing import Killed, killed_at

from allrec.config import load_recipe
from allrec.data import load_dataset
from allrec.files import load_tensors, read_json, sha256_file
from allrec.llm.title_scorer import title_priors
from allrec.recommender import AllRec
from allrec.runs.run_folder import RunFolder, llm_label
from allrec.runs.stages import stage_inputs
from allrec.runs.trained_model import ADAPTER
from worlds import make_world

TUNED = ('llm.tuning="lora"', "llm.lora.rank=2", "soft_tokens.loop.learning_rate=1e-2")
TEXT_ALONE = ('prompt.soft_token="none"', "prompt.has_user=false")


@pytest.fixture(scope="module", params=["soft tokens", "text alone"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    dataset, llm, recipe = make_world(folder, (*TUNED, *(TEXT_ALONE if request.param == "text alone" else ())))
    before = sha256_file(llm / "model.safetensors")
    given = {"recipe": recipe, "llm": str(llm), "cache": folder / "cache"}
    system = AllRec.train(dataset, run=folder / "run", **given)
    return SimpleNamespace(system=system, folder=folder, dataset=dataset, llm=llm, before=before, given=given)


def in_stage_two(observed):
    return lambda stage, *seen: observed(*seen) if stage == "language_model" else None


def scores(model, dataset, histories=((0, 1), (2,))):
    candidates = np.array([[3, 4, 5, 6]] * len(histories))
    return model.llm_scores([np.array(history) for history in histories], candidates)


def test_the_adapter_learns_and_the_weights_beside_it_stay(trained):
    model = trained.system.model
    fresh = model.llm.adapted(model.recipe.llm.lora, model.recipe.seed)
    assert model.tuned_llm.adapter.digest != fresh.adapter.digest
    assert sha256_file(trained.llm / "model.safetensors") == trained.before
    frozen = load_tensors(trained.llm / "model.safetensors")
    held = dict(model.llm._model.named_parameters())
    assert all(torch.equal(value, held[name]) for name, value in frozen.items() if name in held)


def test_losses_fall(trained):
    losses = read_json(trained.folder / "run" / "language_model" / "training.json")["losses"]
    assert losses[-1] < losses[0]


def test_it_comes_back_to_the_bit(trained):
    again = AllRec.from_pretrained(trained.folder / "run").model
    dataset = load_dataset(trained.dataset)
    np.testing.assert_array_equal(scores(again, dataset), scores(trained.system.model, dataset))
    np.testing.assert_array_equal(again.title_priors, trained.system.model.title_priors)
    # The prior is the tuned model's too, so that what it learned of titles in general is taken off again.
    untuned = again.priors_of(again.builder, np.arange(3))
    again.tuned_llm = again.llm
    assert not np.array_equal(again.priors_of(again.builder, np.arange(3)), untuned)


def test_killed_in_stage_two_it_resumes_to_the_same_bytes(trained, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        AllRec.train(trained.dataset, run=run, observer=in_stage_two(killed_at(3)), **trained.given)
    AllRec.train(trained.dataset, run=run, resume=True, **trained.given)
    for name in (ADAPTER, "model.safetensors", "priors.safetensors"):
        file = f"language_model/{name}"
        assert sha256_file(run / file) == sha256_file(trained.folder / "run" / file), name


def test_rank_is_by_the_tuned_model(trained):
    items = load_dataset(trained.dataset).item_ids[3:7]
    history = load_dataset(trained.dataset).item_ids[:2]
    ranked = trained.system.rank(items, history=history)
    expected = scores(trained.system.model, None, ((0, 1),))[0]
    assert [item.item_id for item in ranked] == [items[place] for place in np.argsort(-expected, kind="stable")]


def test_its_label_and_its_inputs_say_so(trained):
    run = RunFolder.open(trained.folder / "run")
    num_targets = read_json(run.path / "language_model" / "training.json")["examples"]["stage 2"]
    label = llm_label(run)
    assert label.startswith(f"{trained.llm}, float32, tuned (LoRA), stage 2 {num_targets} targets")
    assert label.endswith(" in place of facebook/opt-6.7b")
    assert run.metrics()["llm"]["label"] == label
    inputs = stage_inputs(RunFolder.open(trained.folder / "run"), "language_model")
    assert inputs["tuning"] == "lora"
    assert inputs["lora"]["rank"] == 2


CHOICE = (*TUNED, *TEXT_ALONE, 'soft_tokens.objective="choice"', "soft_tokens.num_candidates=4")


def test_a_choice_is_learned_against_the_priors_of_the_untuned_model(tmp_path):
    """Training and ranking hold titles against the same priors, and a killed run goes on to the same bytes."""
    dataset, llm, recipe = make_world(tmp_path, CHOICE)
    given = {"recipe": recipe, "llm": str(llm), "cache": tmp_path / "cache", "is_evaluated": False}
    model = AllRec.train(dataset, run=tmp_path / "run", **given).model
    losses = read_json(tmp_path / "run" / "language_model" / "training.json")["losses"]
    assert losses[-1] < losses[0]
    untuned = title_priors(model.llm, model.builder, np.arange(model.catalogue.num_items), tokens_per_batch=4096)
    np.testing.assert_allclose(model.title_priors, untuned, atol=1e-4)
    np.testing.assert_allclose(model.priors_of_new(list(model.catalogue.titles[:3])), untuned[:3], atol=1e-4)
    with pytest.raises(Killed):
        AllRec.train(dataset, run=tmp_path / "again", observer=in_stage_two(killed_at(3)), **given)
    AllRec.train(dataset, run=tmp_path / "again", resume=True, **given)
    files = [tmp_path / name / "language_model" / ADAPTER for name in ("run", "again")]
    assert sha256_file(files[0]) == sha256_file(files[1])


def test_recipes_that_stand_for_text_alone():
    zero, rival = load_recipe("zero-shot"), load_recipe("tallrec")
    assert zero.prompt.is_bare
    assert rival.prompt.is_bare
    assert (zero.llm.tuning, rival.llm.tuning) == ("none", "lora")
    assert (zero.backbone, zero.alignment) == (rival.backbone, rival.alignment)
