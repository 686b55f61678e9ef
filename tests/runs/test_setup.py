"""What a run starts with and ends with: chance by the lists as they are, and no scorer that repeats another."""

from types import SimpleNamespace

import numpy as np
import pytest

from allrec.config import load_recipe
from allrec.evaluation.results import Ranking
from allrec.runs.setup import chances, choose_language_model, plan_of


def ranking(protocol, split="test"):
    return Ranking(split, protocol, "cf", np.arange(2), np.zeros(2, int))


def test_chance_is_that_of_the_lists_as_long_as_they_are():
    # One user has four candidates, the other two: the rest is padding.
    listed = np.array([[1, 2, 3, 4], [1, 2, -1, -1]])
    targets = SimpleNamespace(candidates={"sampled-99": listed})
    dataset = SimpleNamespace(targets={"test": targets, "valid": targets}, num_items=50)
    found = chances(dataset, [ranking("sampled-99"), ranking("full")])
    assert found["sampled-99"]["HR@1"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert found["sampled-99"]["MRR"] == pytest.approx(((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4 + (1 + 1 / 2) / 2) / 2)
    assert found["sampled-99"]["HR@10"] == 1
    assert found["full"]["HR@5"] == 5 / 50


def test_chance_is_taken_from_validation_where_test_was_not_scored():
    valid, test = (SimpleNamespace(candidates={"paper": np.zeros((1, size), int)}) for size in (5, 20))
    dataset = SimpleNamespace(targets={"valid": valid, "test": test}, num_items=50)
    assert chances(dataset, [ranking("paper", "valid")])["paper"]["HR@1"] == 1 / 5
    assert chances(dataset, [ranking("paper", "valid"), ranking("paper")])["paper"]["HR@1"] == 1 / 20


@pytest.mark.parametrize(
    ("sets", "left_out"),
    [
        ((), set()),
        (("prompt.has_user=false",), set()),
        (('prompt.soft_token="none"',), {"llm-random-items"}),
        (("prompt.has_user=false", 'prompt.soft_token="none"'), {"llm-random-items", "llm-no-soft"}),
        (('alignment.network.kind="identity"',), {"joint"}),
    ],
)
def test_a_scorer_that_could_only_repeat_another_is_left_out(tmp_path, sets, left_out):
    plan = plan_of(load_recipe("a-llmrec", sets), tmp_path, None)
    assert {"cf", "joint", "llm", "llm-random-items", "llm-no-soft"} - set(plan.scorers) == left_out


@pytest.mark.parametrize(("asked", "name"), [(None, "embedded-small"), ("some/model", "some/model")])
def test_savings_of_the_recipe_hold_for_whichever_language_model_is_taken(asked, name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = load_recipe("a-llmrec", ("llm.published.weights=8bit", "llm.published.dtype=bfloat16"))
    chosen = choose_language_model(recipe, asked).llm.chosen
    assert (chosen.name, chosen.revision, chosen.weights, chosen.dtype) == (name, None, "8bit", "bfloat16")
