"""Counts on published data, to the unit; and what is known about them."""

from pathlib import Path

import numpy as np
import pytest

from allrec.data import PrepareConfig, prepare

pytestmark = pytest.mark.real


def test_luxury_beauty(real_data: Path, tmp_path: Path) -> None:
    dataset = prepare(real_data / "luxury-beauty", tmp_path / "out")
    counts = dataset.counts
    assert (counts["users"], counts["items"], counts["interactions"]) == (9_930, 6_141, 63_953)
    assert counts["evaluated_users"] == len(dataset.targets["test"]) == 9_912
    assert (counts["untitled_items"], counts["rejected_rows"]) == (5, 0)
    test = dataset.targets["test"]
    histories = [dataset.history(user)[:place] for user, place in zip(test.users, test.positions, strict=True)]
    is_repeat = np.array([item in history for item, history in zip(test.items, histories, strict=True)])
    is_same = np.array([item == history[-1] for item, history in zip(test.items, histories, strict=True)])
    assert round(float(is_repeat.mean()), 3) == 0.173
    assert round(float(is_same.mean()), 3) == 0.126
    assert not any("&amp;" in (text or "") or "<P>" in (text or "") for text in dataset.texts)


def test_all_beauty(real_data: Path, tmp_path: Path) -> None:
    counts = prepare(real_data / "all-beauty", tmp_path / "out").counts
    assert (counts["users"], counts["items"], counts["interactions"]) == (2_169, 1_854, 10_404)


def test_movielens_small(real_data: Path, tmp_path: Path) -> None:
    dataset = prepare(real_data / "movielens-small", tmp_path / "out")
    counts = dataset.counts
    assert (counts["users"], counts["items"], counts["interacted_items"]) == (671, 9_125, 9_066)
    assert counts["interactions"] == 100_004
    assert (dataset.wording.noun, dataset.wording.past) == ("movie", "watched")
    rated = prepare(real_data / "movielens-small", tmp_path / "rated", config=PrepareConfig(items="interacted"))
    assert rated.num_items == 9_066


def test_luxury_beauty_has_the_same_bytes_twice(real_data: Path, tmp_path: Path) -> None:
    first, again = (prepare(real_data / "luxury-beauty", tmp_path / name).sha256 for name in "ab")
    assert first == again
