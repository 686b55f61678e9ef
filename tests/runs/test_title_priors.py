"""Priors of titles are told block by block, and are the same in one piece."""

from types import SimpleNamespace

import numpy as np
import pytest

from allrec.config import choose_language_model, load_recipe
from allrec.llm.language_model import LanguageModel
from allrec.llm.score_files import score_cache
from allrec.recommender import AllRec
from allrec.runs import stages, trained_model
from allrec.runs.trained_model import load_language_model
from worlds import make_world


def test_priors_are_told_as_they_come_and_equal_those_of_one_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "TITLES_A_BLOCK", 25)
    dataset, llm, recipe = make_world(tmp_path)
    told = []
    system = AllRec.train(
        dataset, run=tmp_path / "run", recipe=recipe, llm=str(llm), cache=tmp_path / "cache", is_evaluated=False,
        observer=lambda stage, share, values, *_: told.append((share, values)) if stage == "title_priors" else None,
    )  # fmt: skip
    num_items = system.model.catalogue.num_items
    assert [values["titles"] for _, values in told] == [*range(25, num_items, 25), num_items]
    assert [share for share, _ in told] == pytest.approx([values["titles"] / num_items for _, values in told])
    whole = system.model.priors_of(system.model.builder, np.arange(num_items))
    np.testing.assert_allclose(system.model.stored_priors, whole, atol=1e-4)


def test_a_run_without_stored_priors_works_them_out(tmp_path, monkeypatch):
    dataset, llm, recipe = make_world(tmp_path)
    given = {"recipe": recipe, "llm": str(llm), "cache": tmp_path / "cache", "is_evaluated": False}
    system = AllRec.train(dataset, run=tmp_path / "run", **given)
    monkeypatch.setattr(trained_model, "PRIORS", "of-a-later-day.safetensors")
    again = AllRec.from_pretrained(tmp_path / "run")
    assert len(again.model.stored_priors) == 0
    np.testing.assert_allclose(again.model.title_priors, system.model.title_priors, atol=1e-4)


def test_what_is_served_leaves_no_scores_on_the_disk(tmp_path, monkeypatch):
    dataset, llm, recipe = make_world(tmp_path, ('prompt.soft_token="none"', "prompt.has_user=false"))
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "user-cache"))
    given = {"recipe": recipe, "llm": str(llm), "cache": tmp_path / "cache"}
    system = AllRec.train(dataset, run=tmp_path / "run", **given)
    kept = {path.name for path in score_cache().rglob("*.safetensors")}
    assert kept
    ids = system.model.catalogue.item_ids
    for place in range(3):
        assert system.recommend(history=[ids[place], ids[place + 9]], k=3)
    assert {path.name for path in score_cache().rglob("*.safetensors")} == kept


def test_one_precision_for_all_models_of_a_comparison(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(LanguageModel, "load", lambda config, device: asked.append((config.name, config.dtype)))
    runs = [
        SimpleNamespace(recipe=lambda: load_recipe("a-llmrec", ("llm.chosen.name=first", "llm.chosen.dtype=bfloat16")))
    ]
    recipe = choose_language_model(load_recipe("a-llmrec"), "second")
    load_language_model(recipe, "cpu", runs)
    load_language_model(recipe, "cpu")
    load_language_model(recipe.changed(llm__chosen=recipe.llm.chosen.changed(dtype="float32")), "cpu", runs)
    assert asked == [("second", "bfloat16"), ("second", "auto"), ("second", "float32")]
