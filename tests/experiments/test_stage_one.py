"""Recipes that differ in stage 1, and its ablations: each is trained, scored and read back as what it says."""

import pytest
import torch

from allrec.alignment.model import AlignmentConfig
from allrec.config import load_recipe
from allrec.data import load_dataset
from allrec.experiments.compare import STAGE_ONE
from allrec.files import load_tensors, read_json
from allrec.recommender import AllRec

SHORT = ('evaluation.protocols=["paper"]', 'evaluation.splits=["test"]', "evaluation.llm_users=4")
SMALL = ("alignment.network.hidden=[12, 8]", "alignment.distinct_items=20")
RECIPES = ("a-llmrec", "infonce", "deeper-mlp")


@pytest.fixture(scope="module")
def runs(small_world, tmp_path_factory):
    """Runs of three recipes and of every ablation of the first, trained on one small world."""
    folder, dataset = tmp_path_factory.mktemp("stage_one"), load_dataset(small_world.dataset)
    base = small_world.sets(*SHORT, "soft_tokens.sample=8")
    given = {"llm": str(small_world.llm), "cache": small_world.cache}
    asked = {name: load_recipe(name, base if name == "a-llmrec" else (*base, *SMALL)) for name in RECIPES}
    asked |= {name: load_recipe("a-llmrec", (*base, *sets)) for name, sets in STAGE_ONE.items()}
    return {name: AllRec.train(dataset, run=folder / name, recipe=recipe, **given) for name, recipe in asked.items()}


def differences(first, second, path=""):
    """Keys at which two tables differ."""
    found = set()
    for key in first.keys() | second.keys():
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{path}{key}.")
        elif a != b:
            found.add(f"{path}{key}")
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "infonce",
            {f"alignment.network.{key}" for key in ("matching", "activation", "has_decoders", "alpha", "beta")},
        ),
        (
            "deeper-mlp",
            {f"alignment.network.{key}" for key in ("hidden", "dropout", "activation")}
            | {f"alignment.loop.{key}" for key in ("optimizer", "learning_rate", "weight_decay")},
        ),
        ("opt-13b", {"llm.stand_in", "llm.published.name", "llm.published.revision"}),
    ],
)
def test_a_recipe_differs_from_the_papers_in_nothing_but_its_point(name, expected):
    first, second = (load_recipe(recipe).model_dump(mode="json") for recipe in ("a-llmrec", name))
    assert differences(first, second) == expected | {"name"}


def test_everything_is_the_deeper_network_and_the_larger_model():
    everything, deeper, larger = (load_recipe(name) for name in ("everything", "deeper-mlp", "opt-13b"))
    assert everything.alignment == deeper.alignment
    assert everything.llm == larger.llm
    assert everything.alignment.network.hidden == (512, 384, 256, 192)


def test_every_recipe_names_its_language_model_with_a_revision():
    for name in (*RECIPES, "opt-13b", "everything"):
        published = load_recipe(name).llm.published
        assert published.name.startswith("facebook/opt-")
        assert len(published.revision) == 40


@pytest.mark.parametrize("name", [*RECIPES, *STAGE_ONE])
def test_a_run_is_read_back_as_it_was(runs, name):
    again, first = AllRec.from_pretrained(runs[name].run.path).model, runs[name].model
    for tensor in ("text_embeddings", "joint_items", "joint_embeddings"):
        assert torch.equal(getattr(again, tensor), getattr(first, tensor))


@pytest.mark.parametrize("name", [*RECIPES, *STAGE_ONE])
def test_scorer_joint_and_the_measures_are_there_where_there_is_a_stage_1(runs, name):
    metrics = runs[name].run.metrics()
    has_stage_1 = name != "no-stage-1"
    assert ("joint" in {row["scorer"] for row in metrics["results"]}) == has_stage_1
    if has_stage_1:
        assert 0 <= metrics["alignment"]["retrieval"]["q to e"]["recall@1"] <= 1
    else:
        assert metrics["alignment"] is None


@pytest.mark.parametrize("name", ["infonce", "deeper-mlp", *STAGE_ONE])
def test_a_variant_has_another_joint_space_on_the_same_backbone(runs, name):
    whole, variant = runs["a-llmrec"].model, runs[name].model
    assert torch.equal(whole.item_embeddings, variant.item_embeddings)
    is_same = whole.joint_items.shape == variant.joint_items.shape and torch.allclose(
        whole.joint_items, variant.joint_items, atol=1e-4
    )
    assert not is_same


def test_a_cold_item_enters_by_its_text_or_without_a_stage_1_by_the_mean(runs):
    cold = runs["infonce"].model.is_cold
    assert 0 < cold.sum() < len(cold)
    scoring = runs["infonce"].model
    q = scoring.alignment.texts.encode(scoring.text_embeddings)
    assert torch.allclose(scoring.joint_items[cold], q[cold], atol=1e-6)
    expected = scoring.joint_items @ scoring.alignment.users.weight
    assert torch.allclose(scoring.joint_embeddings, expected, atol=1e-6)
    plain = runs["no-stage-1"].model
    assert torch.equal(plain.joint_items[~cold], plain.item_embeddings[~cold])
    assert torch.allclose(plain.joint_items[cold], plain.item_embeddings[~cold].mean(0).expand(int(cold.sum()), -1))


def test_no_stage_1_takes_no_steps(runs):
    assert read_json(runs["no-stage-1"].run.path / "alignment" / "training.json")["steps"] == 0


def test_only_tuning_moves_the_texts_and_its_weights_lie_in_the_run(runs):
    frozen, tuned = runs["frozen-text"], runs["tuned-text"]
    assert not torch.allclose(frozen.model.text_embeddings, tuned.model.text_embeddings, atol=1e-4)
    assert (tuned.run.path / "alignment" / "text_encoder.safetensors").is_file()
    assert not (frozen.run.path / "alignment" / "text_encoder.safetensors").exists()
    stored = load_tensors(frozen.run.path / "text" / "embeddings.safetensors")["embeddings"]
    assert torch.equal(frozen.model.text_embeddings, stored)


def test_the_frozen_text_beside_the_tuned_one_differs_from_it_in_nothing_else():
    tuned, frozen = (load_recipe("a-llmrec", STAGE_ONE[name]) for name in ("tuned-text", "frozen-text"))
    assert tuned.alignment.model_copy(update={"tune_text": False}) == frozen.alignment


@pytest.mark.parametrize("name", [name for name in STAGE_ONE if name.startswith("no-")])
def test_an_ablation_switches_off_one_thing(name):
    changed = load_recipe("a-llmrec", STAGE_ONE[name]).alignment.network
    whole = load_recipe("a-llmrec").alignment.network
    assert isinstance(changed, AlignmentConfig)
    found = differences(whole.model_dump(), changed.model_dump())
    assert (
        found
        == {
            "no-matching": {"matching"},
            "no-reconstruction": {"alpha", "beta"},
            "no-recommendation": {"has_recommendation"},
            "no-stage-1": {"kind"},
        }[name]
    )
