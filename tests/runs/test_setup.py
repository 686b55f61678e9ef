"""Chance by the lists as they are, no scorer that repeats another, and the choice of a language model."""

from types import SimpleNamespace

import numpy as np
import pytest

from allrec.config import choose_language_model, load_recipe
from allrec.data.protocols import EvaluationProtocol
from allrec.evaluation.results import Ranking, chances
from allrec.runs.scorers import SCORERS


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
def test_a_scorer_that_could_only_repeat_another_is_left_out(sets, left_out):
    titles = SimpleNamespace(fits=lambda candidates: True)
    model = SimpleNamespace(recipe=load_recipe("a-llmrec", sets), has_llm=True, titles=titles, fused_ranker=None)
    targets = SimpleNamespace(candidates={"paper": np.zeros((2, 3), int)})
    reasons = {name: scorer.why_not(model, targets, EvaluationProtocol.PAPER) for name, scorer in SCORERS.items()}
    assert {
        name for name in ("cf", "joint", "llm", "llm-random-items", "llm-no-soft") if reasons[name] == ""
    } == left_out
    assert {name for name in ("text", "fusion", "readout", "allround") if reasons[name] is None} == set()


def test_a_run_without_a_language_model_has_none_of_its_scorers():
    recipe = load_recipe("allround", ("llm.enabled=false",))
    model = SimpleNamespace(recipe=recipe, has_llm=False, fused_ranker=SimpleNamespace(additions={"lists": None}))
    has = {name for name, scorer in SCORERS.items() if scorer.why_not(model, None, EvaluationProtocol.PAPER) is None}
    assert has == {"cf", "joint", "text", "fusion"}


@pytest.mark.parametrize(("asked", "name"), [(None, "smollm2-135m"), ("some/model", "some/model")])
def test_savings_of_the_recipe_hold_for_whichever_language_model_is_taken(asked, name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = load_recipe("a-llmrec", ("llm.published.weights=8bit", "llm.published.dtype=bfloat16"))
    chosen = choose_language_model(recipe, asked).llm.chosen
    assert (chosen.name, chosen.revision, chosen.weights, chosen.dtype) == (name, None, "8bit", "bfloat16")
