"""Ablations of stage 2: each is trained and scored by one changed recipe, and takes away what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from allrec.config import dump_recipe, load_recipe
from allrec.data import load_dataset
from allrec.experiments.compare import STAGE_TWO
from allrec.files import read_json
from allrec.recommender import AllRec

SHORT = (
    'evaluation.protocols=["paper"]',
    'evaluation.splits=["test"]',
    "evaluation.llm_users=4",
    "soft_tokens.sample=none",
)


@pytest.fixture(scope="module")
def runs(small_world, tmp_path_factory):
    """Runs of the whole recipe and of every ablation, trained on one small world."""
    folder, dataset = tmp_path_factory.mktemp("ablations"), load_dataset(small_world.dataset)
    shared = {"llm": str(small_world.llm), "cache": small_world.cache}
    return {
        name: AllRec.train(dataset, run=folder / name, recipe=small_world.recipe(*SHORT, *sets), **shared)
        for name, sets in ({"whole": ()} | STAGE_TWO).items()
    }


def some_users(system, count=4):
    """x_u, histories and candidates of a few users."""
    histories = [system.model.catalogue.history(user)[:3] for user in range(count)]
    candidates = np.arange(count * 5).reshape(count, 5)
    return system.model.represent(histories), histories, candidates


def scores(system, scorer="llm", users=None):
    known, histories, candidates = some_users(system)
    return system.model.titles.score(known if users is None else users, histories, candidates, scorer)


def reads_users(system):
    known, *_ = some_users(system)
    return not np.allclose(scores(system), scores(system, users=known + 1), atol=1e-4)


def reads_items(system):
    return not np.allclose(scores(system), scores(system, "llm-random-items"), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("whole", (True, True)),
        ("no-user", (False, True)),
        ("no-joint", (True, False)),
        ("random-joint", (True, True)),
        ("llm-alone", (False, False)),
        ("every-position", (True, True)),
    ],
)
def test_an_ablation_takes_away_what_it_says(runs, name, expected):
    assert (reads_users(runs[name]), reads_items(runs[name])) == expected


@pytest.mark.parametrize("name", STAGE_TWO)
def test_every_ablation_is_evaluated_like_the_whole_but_for_controls_that_would_repeat_it(runs, name):
    idle = {"no-joint": {"llm-random-items"}, "llm-alone": {"llm-random-items", "llm-no-soft"}}.get(name, set())
    rows = {(row["scorer"], row["segment"]) for row in runs[name].run.metrics()["results"]}
    whole = {(row["scorer"], row["segment"]) for row in runs["whole"].run.metrics()["results"]}
    assert rows == {(scorer, segment) for scorer, segment in whole if scorer not in idle}


@pytest.mark.parametrize("name", STAGE_TWO)
def test_an_ablation_is_read_back_as_it_was(runs, name):
    again = AllRec.from_pretrained(runs[name].run.path)
    assert np.array_equal(scores(again), scores(runs[name]))


def test_the_language_model_alone_has_nothing_to_learn(runs):
    system = runs["llm-alone"]
    assert read_json(system.run.path / "language_model" / "training.json")["steps"] == 0
    assert np.array_equal(scores(system), scores(system, "llm-no-soft"))
    assert np.array_equal(scores(system), scores(runs["whole"], "llm-no-soft"))


def test_earlier_stages_are_the_wholes(runs):
    for name in STAGE_TWO:
        for tensor in ("item_embeddings", "joint_items", "joint_embeddings"):
            assert torch.equal(getattr(runs[name].model, tensor), getattr(runs["whole"].model, tensor))


def test_random_vectors_stand_in_for_joint_embeddings_in_prompts_alone(runs):
    whole, random = runs["whole"].model, runs["random-joint"].model
    assert whole.item_inputs is whole.joint_items
    assert random.item_inputs.shape == random.joint_items.shape
    # Standard normal vectors, which have nothing to do with the embeddings whose places they take.
    assert abs(random.item_inputs.mean()) < 0.05
    assert abs(random.item_inputs.std() - 1) < 0.05
    # Training took centre and scale from the same vectors that scoring reads.
    assert torch.allclose(random.soft_tokens.item.mean, random.item_inputs.mean(0), atol=1e-6)


def test_random_vectors_are_scored_with_in_place_of_joint_embeddings(runs, monkeypatch):
    before = scores(runs["random-joint"])
    scoring = runs["random-joint"].model
    monkeypatch.setattr(scoring, "joint_items", torch.full_like(scoring.joint_items, torch.nan))
    assert np.array_equal(scores(runs["random-joint"]), before)
    monkeypatch.setattr(scoring.titles, "item_inputs", -scoring.item_inputs)
    assert not np.allclose(scores(runs["random-joint"]), before, atol=1e-4)


def test_every_position_has_more_targets(runs):
    def steps(name):
        return read_json(runs[name].run.path / "language_model" / "training.json")["steps"]

    assert steps("every-position") > 1.5 * steps("whole")


def test_a_sample_bounds_every_position():
    recipe = load_recipe("a-llmrec", (*STAGE_TWO["every-position"], "soft_tokens.sample=500"))
    assert (recipe.soft_tokens.positions, recipe.soft_tokens.sample) == ("every", 500)


@pytest.mark.parametrize("name", STAGE_TWO)
def test_a_recipe_keeps_its_ablation_when_written(tmp_path: Path, name):
    recipe = load_recipe("a-llmrec", STAGE_TWO[name])
    assert recipe != load_recipe("a-llmrec")
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.toml")) == recipe
