"""The split never leaks the future, and candidates hold the target once among what the user never interacted with."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allrec.data.negatives import PAD, UserItems, draw_candidates, is_repeated, shuffle
from allrec.data.split import leave_last_out, split_at_times


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_leave_last_out(lengths: list[int]) -> None:
    split = leave_last_out(np.array(lengths))
    evaluated = [user for user, length in enumerate(lengths) if length >= 3]
    assert split.train_lengths.tolist() == [length - 2 if length >= 3 else length for length in lengths]
    assert split.targets["valid"][0].tolist() == split.targets["test"][0].tolist() == evaluated
    assert split.targets["valid"][1].tolist() == [lengths[user] - 2 for user in evaluated]
    assert split.targets["test"][1].tolist() == [lengths[user] - 1 for user in evaluated]


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), min_size=1, max_size=10),
    st.integers(1, 15),
    st.integers(1, 15),
)
def test_global_time_never_leaks_the_future(sequences: list[list[int]], valid_from: int, gap: int) -> None:
    test_from = valid_from + gap
    times = [sorted(sequence) for sequence in sequences]
    users = np.repeat(np.arange(len(times)), [len(sequence) for sequence in times])
    flat = np.concatenate(times) * 10**9
    split = split_at_times(users, flat, len(times), valid_from, test_from)
    for user, sequence in enumerate(times):
        assert split.train_lengths[user] == sum(time < valid_from for time in sequence)
    for name, start, stop in (("valid", valid_from, test_from), ("test", test_from, 10**9)):
        found = dict(zip(*(column.tolist() for column in split.targets[name]), strict=True))
        expected = {}
        for user, sequence in enumerate(times):
            first = next((place for place, time in enumerate(sequence) if time >= start), None)
            if first and sequence[first] < stop:  # a first of 0 would be a target without a history
                expected[user] = first
        assert found == expected


def make_case(seed: int, num_users: int, num_items: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(num_users), length)
    items = rng.integers(num_items, size=len(users))
    return users, items, items[length - 1 :: length]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_users=st.integers(1, 20),
    num_items=st.integers(1, 120),
    length=st.integers(1, 30),
    num_negatives=st.integers(1, 25),
)
def test_candidates(seed: int, num_users: int, num_items: int, length: int, num_negatives: int) -> None:
    users, items, targets = make_case(seed, num_users, num_items, length)
    seen = UserItems(users, items, num_users, num_items)
    rows = np.arange(num_users)
    candidates = draw_candidates(rows, targets, seen, num_negatives, np.random.default_rng(seed))
    assert candidates.shape == (num_users, 1 + num_negatives)
    assert candidates.dtype == np.int32
    for user in range(num_users):
        own = set(items[users == user].tolist())
        listed = candidates[user][candidates[user] != PAD].tolist()
        assert len(set(listed)) == len(listed) == 1 + min(num_negatives, num_items - len(own))
        assert set(listed) & own == {int(targets[user])}
        assert (candidates[user][len(listed) :] == PAD).all()


def test_candidates_are_uniform_and_shuffled() -> None:
    num_users, num_items = 4_000, 200
    users, items, targets = np.arange(num_users), np.zeros(num_users, np.int64), np.zeros(num_users, np.int64)
    seen = UserItems(users, items, num_users, num_items)
    candidates = draw_candidates(users, targets, seen, 19, np.random.default_rng(0))
    # 76,000 draws over 199 items: 382 each, a standard deviation of 18.6 with the draws of a row distinct
    counts = np.bincount(candidates.ravel(), minlength=num_items)[1:]
    assert abs(counts - 19 * num_users / 199).max() < 4.5 * 19
    # the target's place: 4,000 over 20 places, 200 each, a standard deviation of 13.8
    places = np.bincount(np.argmax(candidates == 0, axis=1), minlength=20)
    assert abs(places - num_users / 20).max() < 4.5 * 14


def test_tight_and_roomy_rows_both_keep_the_rules() -> None:
    users = np.concatenate([np.zeros(95, np.int64), [1]])
    items = np.concatenate([np.arange(95), [3]])
    seen = UserItems(users, items, 2, 100)
    candidates = draw_candidates(np.array([0, 1]), np.array([94, 3]), seen, 19, np.random.default_rng(1))
    assert sorted(candidates[0][:6].tolist()) == [94, 95, 96, 97, 98, 99]
    assert candidates[0][6:].tolist() == [PAD] * 14
    assert len(set(candidates[1].tolist())) == 20


def test_user_items() -> None:
    seen = UserItems(np.array([0, 0, 2]), np.array([1, 1, 0]), 3, 2)
    assert seen.counts.tolist() == [1, 0, 1]
    assert seen.has(np.array([[0], [1], [2]]), np.array([0, 1])).tolist() == [
        [False, True],
        [False, False],
        [True, False],
    ]


@pytest.mark.parametrize(
    ("row", "repeats"), [([3, 1, 3, 3], [0, 0, 1, 1]), ([1, 2, 3], [0, 0, 0]), ([2, 2, 1], [0, 1, 0])]
)
def test_is_repeated(row: list[int], repeats: list[int]) -> None:
    assert is_repeated(np.array([row])).tolist() == [[bool(flag) for flag in repeats]]


def test_same_rng_same_candidates() -> None:
    users, items, targets = make_case(3, 50, 300, 5)
    seen = UserItems(users, items, 50, 300)
    first, again, other = (
        draw_candidates(np.arange(50), targets, seen, 19, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_user_items_of_users_without_any():
    seen = UserItems(np.array([3, 3, 1]), np.array([0, 2, 2]), 5, 4)
    assert seen.has(np.array([[1], [3]]), np.array([[0, 2], [0, 1]])).tolist() == [[False, True], [True, False]]
    assert seen.has(np.array([0, 4]), np.array([2, 2])).tolist() == [False, False]
    assert seen.has(np.zeros((0, 1), np.int64), np.zeros((0, 3), np.int64)).shape == (0, 3)
    assert seen.counts.tolist() == [0, 1, 0, 2, 0]


def plain_candidates(own: list[set[int]], targets: np.ndarray, num_items: int, num_negatives: int, seed: int):
    """The same lists written plainly: one item after the other is looked up, and doubles decide on the order."""
    rng = np.random.default_rng(seed)
    negatives = rng.integers(num_items, size=(len(targets), num_negatives))
    while True:
        refused = [
            (row, place)
            for row, drawn in enumerate(negatives.tolist())
            for place, item in enumerate(drawn)
            if item in own[row] or item in drawn[:place]
        ]
        if not refused:
            break
        for (row, place), item in zip(refused, rng.integers(num_items, size=len(refused)), strict=True):
            negatives[row, place] = item
    lists = np.column_stack([targets, negatives])
    return np.take_along_axis(lists, np.argsort(rng.random(lists.shape), axis=1), axis=1)


@pytest.mark.parametrize("num_negatives", [19, 99])
def test_candidates_are_those_of_the_plain_way(num_negatives: int) -> None:
    # The last user interacted more items than are laid beside the negatives of the others.
    own = [set(range(user, 8 * user % 500, 7)) | {user} for user in range(60)] + [set(range(300))]
    users = np.repeat(np.arange(61), [len(items) for items in own])
    items = np.concatenate([sorted(items) for items in own])
    targets = np.array([min(items) for items in own])
    seen = UserItems(users, items, 61, 900)
    drawn = draw_candidates(np.arange(61), targets, seen, num_negatives, np.random.default_rng(7))
    assert (drawn == plain_candidates(own, targets, 900, num_negatives, 7)).all()


def test_candidates_of_a_seed_stay_what_they_were() -> None:
    rng = np.random.default_rng(1)
    users, items = np.repeat(np.arange(4200), 6), rng.integers(500, size=6 * 4200)
    # More rows than are drawn at a time, and a user with little left.
    users, items = np.concatenate([users, np.full(450, 4200)]), np.concatenate([items, np.arange(450)])
    seen = UserItems(users, items, 4201, 500)
    targets = items[np.searchsorted(users, np.arange(4201))]
    drawn = draw_candidates(np.arange(4201), targets, seen, 19, np.random.default_rng([0, 1, 19]))
    assert drawn[0, :6].tolist() == [236, 315, 58, 145, 486, 195]
    assert drawn[-1, :6].tolist() == [471, 0, 461, 456, 451, 459]
    digest = hashlib.sha256(drawn.tobytes()).hexdigest()
    assert digest == "0b48c27ea7de1e990388e93c55e9001244bd947c36851a560b844b08c537b7a5"


def test_too_long_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 2049 candidates, expected at most 2048"):
        shuffle(np.zeros((1, 2049), np.int32), np.random.default_rng(0))
