"""Priors of titles are told block by block, and are the same in one piece."""

import numpy as np
import pytest

from allrec.recommender import AllRec
from allrec.runs import stages
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
