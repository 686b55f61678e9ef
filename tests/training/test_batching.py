import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrec.data.negatives import NegativeSampler
from allrec.errors import InputWarning
from allrec.training import batches as batching
from allrec.training.batches import LazyBatches, length_batches, pad_histories, windows

lengths_arrays = st.lists(st.integers(0, 30), max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths_arrays, st.integers(1, 100), st.integers(0, 9))
def test_batches_hold_every_row_once_within_the_budget(lengths, max_tokens, seed):
    batches = length_batches(lengths, max_tokens, np.random.default_rng(seed))
    assert sorted(np.concatenate([*batches, []]).tolist()) == np.flatnonzero(lengths).tolist()
    for rows in batches:
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= max_tokens


def test_rows_of_like_length_stand_together():
    lengths = np.random.default_rng(0).geometric(0.2, 5_000)
    batches = length_batches(lengths, 512, np.random.default_rng(0))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.05 * lengths.sum()
    means = [lengths[rows].mean() for rows in batches]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_batches_are_a_function_of_the_generator(monkeypatch):
    monkeypatch.setattr(batching, "SORTED_TOGETHER", 64)
    lengths = np.random.default_rng(0).integers(1, 9, 500)

    def cut(seed):
        return [rows.tolist() for rows in length_batches(lengths, 64, np.random.default_rng(seed))]

    assert cut(1) == cut(1)
    assert cut(1) != cut(2)


def test_lazy_batches_are_built_one_at_a_time():
    built = []
    batches = LazyBatches([np.array([3]), np.array([4, 5])], lambda index, rows: built.append(index) or rows.sum())
    assert len(batches) == 2
    assert batches[1] == 4 + 5
    assert built == [1]


def test_histories_are_cut_to_the_latest_and_padded_on_the_right():
    items = np.array([7, 8, 9, 1, 2, 3, 4], dtype=np.int32)
    padded = pad_histories(items, np.array([0, 3, 3]), np.array([2, 7, 3]), 3)
    assert padded.tolist() == [[7, 8, -1], [2, 3, 4], [-1, -1, -1]]
    assert str(padded.dtype) == "torch.int64"
    assert pad_histories(items, np.array([2]), np.array([2]), 3).shape == (1, 0)
    assert pad_histories(items, np.array([], dtype=np.int64), np.array([], dtype=np.int64), 3).shape == (0, 0)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20), st.integers(1, 6))
def test_windows_cover_every_place_once(lengths, max_length):
    ends = np.cumsum(lengths)
    starts = ends - lengths
    rows, window_starts, window_ends = windows(starts, ends, max_length)
    covered = np.concatenate([*map(np.arange, window_starts, window_ends), []])
    assert sorted(covered.tolist()) == list(range(sum(lengths)))
    assert (window_ends - window_starts <= max_length).all()
    assert (window_ends > window_starts).all()
    assert (starts[rows] <= window_starts).all()
    assert (window_ends <= ends[rows]).all()


def test_windows_are_cut_from_the_end():
    rows, starts, ends = windows(np.array([0, 7]), np.array([7, 9]), 3)
    assert rows.tolist() == [0, 0, 0, 1]
    assert starts.tolist() == [4, 1, 0, 7]
    assert ends.tolist() == [7, 4, 1, 9]


def test_negatives_are_uniform_over_what_the_user_never_touched():
    offsets, items = np.array([0, 4, 4, 7]), np.array([5, 0, 5, 3, 1, 2, 0], dtype=np.int32)
    sampler = NegativeSampler(offsets, items, 6)
    untouched = {0: [1, 2, 4], 1: [0, 1, 2, 3, 4, 5], 2: [3, 4, 5]}
    for user, expected in untouched.items():
        drawn = sampler.draw(np.full(30_000, user), np.random.default_rng(0))
        shares = np.bincount(drawn, minlength=6) / 30_000
        assert np.flatnonzero(shares).tolist() == expected
        # Five standard errors of a share of one half, the largest there is.
        assert shares[expected] == pytest.approx(1 / len(expected), abs=5 * (1 / 4 / 30_000) ** 0.5)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=25).filter(lambda row: len(set(row)) < 10), min_size=1, max_size=9)
)
def test_negatives_are_never_touched(histories):
    offsets = np.cumsum([0, *map(len, histories)])
    sampler = NegativeSampler(offsets, np.concatenate([*histories, []]).astype(np.int32), 10)
    users = np.repeat(np.arange(len(histories)), 20)
    for user, item in zip(users, sampler.draw(users, np.random.default_rng(0)), strict=True):
        assert item not in histories[user]
        assert 0 <= item < 10


def test_a_user_who_touched_everything_is_left_out_and_said_by_id():
    with pytest.warns(InputWarning, match="user 'bob' has interacted with all 2 items and is left out where negatives"):
        sampler = NegativeSampler.of(["ann", "bob"], np.array([0, 2, 4]), np.array([0, 0, 0, 1]), 2)
    assert sampler.has_negative.tolist() == [True, False]
    assert sampler.draw(np.array([0, 0]), np.random.default_rng(0)).tolist() == [1, 1]


def test_where_everybody_touched_everything_negatives_come_from_the_whole_catalogue():
    # The third user has one item, and so no next item to learn.
    with pytest.warns(InputWarning, match="every user has interacted with all 2 items"):
        sampler = NegativeSampler.of(["a", "b", "c"], np.array([0, 2, 4, 5]), np.array([0, 1, 1, 0, 0]), 2)
    assert sampler.has_negative.all()
    assert set(sampler.draw(np.zeros(50, int), np.random.default_rng(0)).tolist()) == {0, 1}
