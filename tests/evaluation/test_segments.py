"""Segments of evaluated users, counted by hand on small data sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training.histories import dataset_of

from allrec.evaluation.segments import repeats, segments

NAMES = {"all", "warm", "cold", "cold5", "warm5", "unseen", "head", "torso", "tail", "repeat", "new"}
# Training histories end before the last two: 0 0 1 | 2 3, 0 1 1 | 0 1, 0 | 4 4, and all of the user too short.
HISTORIES = [[0, 0, 1, 2, 3], [0, 1, 1, 0, 1], [0, 4, 4], [1, 2]]
NUM_ITEMS = 10
# How often the items occur in training: 0: 2 + 1 + 1, 1: 1 + 2 + 1, 2: 1, the others never.
COUNTS = [4, 4, 1, 0, 0, 0, 0, 0, 0, 0]


def masks_of(split, histories=HISTORIES, num_items=NUM_ITEMS):
    dataset = dataset_of(histories, num_items)
    return {name: mask.tolist() for name, mask in segments(dataset, dataset.targets[split]).items()}


def test_the_counts_are_as_the_comments_say():
    assert dataset_of(HISTORIES, NUM_ITEMS).train_counts().tolist() == COUNTS


def test_segments_of_test_targets():
    masks = masks_of("test")
    assert set(masks) == NAMES
    # The targets of users 0, 1 and 2 are items 3, 1 and 4.
    assert masks["all"] == [True, True, True]
    # 35% of ten items are three: items 0, 1, 2 are warm; items 7, 8, 9 are cold, ties by position.
    assert masks["warm"] == [False, True, False]
    assert masks["cold"] == [False, False, False]
    assert masks["unseen"] == [True, False, True]
    assert masks["cold5"] == [True, True, True]
    assert masks["warm5"] == [False, False, False]
    # Before item 0 come 0 of 9 interactions, before item 1 four (3 * 4 // 9 = 1), before all others eight or more.
    assert masks["head"] == [False, False, False]
    assert masks["torso"] == [False, True, False]
    assert masks["tail"] == [True, False, True]
    # Item 1 stands in 0 1 1 0; item 4 in 0 4; item 3 not in 0 0 1 2.
    assert masks["repeat"] == [False, True, True]
    assert masks["new"] == [True, False, False]


def test_segments_of_validation_targets():
    masks = masks_of("valid")
    # The targets are items 2, 0 and 4; the first two users' histories are 0 0 1 and 0 1 1.
    assert masks["warm"] == [True, True, False]
    assert masks["head"] == [False, True, False]
    assert masks["repeat"] == [False, True, False]


@pytest.mark.parametrize(("seen", "is_rare"), [(4, True), (5, True), (6, False)])
def test_five_training_interactions_are_still_rare(seen, is_rare):
    # User 0's test target is item 1, which only the users that are too short to be evaluated have seen.
    masks = masks_of("test", [[0, 2, 1], *([[1]] * seen)], 3)
    assert (masks["cold5"], masks["warm5"]) == ([is_rare], [not is_rare])


def test_cold_is_the_bottom_of_the_table():
    # 35% of ten items are three: 7, 8 and 9 have no training interaction and stand last.
    masks = masks_of("test", [[0, 1, item] for item in range(10)], 10)
    assert np.flatnonzero(masks["cold"]).tolist() == [7, 8, 9]
    assert np.flatnonzero(masks["warm"]).tolist() == [0, 1, 2]


def test_a_catalogue_that_nobody_trained_on_has_segments():
    dataset = dataset_of([[0, 1, 2]], 3)
    nothing = dataset_of([[0, 1, 2]], 3).__class__(**{**vars(dataset), "train_lengths": np.array([0])})
    masks = segments(nothing, nothing.targets["test"])
    assert masks["unseen"].tolist() == [True]
    assert masks["head"].tolist() != masks["tail"].tolist()


@given(st.lists(st.lists(st.integers(0, 7), max_size=8), min_size=1, max_size=8), st.sampled_from(["valid", "test"]))
def test_segments_part_the_targets(histories, split):
    dataset = dataset_of(histories, 8)
    targets = dataset.targets[split]
    masks = segments(dataset, targets)
    ones = np.ones(len(targets), int)
    for parts in (("head", "torso", "tail"), ("repeat", "new"), ("cold5", "warm5"), ("all",)):
        assert (sum(masks[part].astype(int) for part in parts) == ones).all()
    assert not (masks["warm"] & masks["cold"]).any()
    assert not (masks["unseen"] & ~masks["cold5"]).any()
    expected = [
        item in dataset.history(user)[:position].tolist()
        for user, position, item in zip(targets.users, targets.positions, targets.items, strict=True)
    ]
    assert repeats(dataset, targets).tolist() == expected
