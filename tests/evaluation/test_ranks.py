import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allrec.evaluation import ranks as ranking
from allrec.evaluation.metrics import chance, hit_rate_at
from allrec.evaluation.ranks import Excluded, candidate_ranks, catalogue_ranks


def test_rank_counts_the_better_candidates():
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    candidates = np.array([[7, 8, 9], [7, 8, 9]])
    assert candidate_ranks(scores, candidates, np.array([9, 7])).tolist() == [1, 0]


def test_ties_count_against_the_target():
    assert candidate_ranks(np.zeros((1, 4)), np.array([[3, 1, 2, 0]]), np.array([3])).tolist() == [3]
    assert candidate_ranks(np.full((1, 2), -np.inf), np.array([[3, 1]]), np.array([3])).tolist() == [1]


def test_padding_is_no_candidate_whatever_its_score():
    scores = np.array([[0.5, np.nan, np.inf]])
    assert candidate_ranks(scores, np.array([[4, -1, -1]]), np.array([4])).tolist() == [0]


def test_bad_scores_and_candidates_are_refused():
    candidates = np.array([[4, 5], [4, 5]])
    with pytest.raises(ValueError, match="row 1 scores item 5 with nan"):
        candidate_ranks(np.array([[0.0, 1.0], [0.0, np.nan]]), candidates, np.array([4, 4]))
    with pytest.raises(ValueError, match="row 1 holds its target 6 0 times, expected once"):
        candidate_ranks(np.zeros((2, 2)), candidates, np.array([4, 6]))
    with pytest.raises(ValueError, match="row 0 holds its target 4 2 times"):
        candidate_ranks(np.zeros((1, 2)), np.array([[4, 4]]), np.array([4]))
    with pytest.raises(ValueError, match="row 0 holds its target -1 0 times"):
        candidate_ranks(np.zeros((1, 2)), np.array([[4, -1]]), np.array([-1]))


@given(st.integers(0, 2**32 - 1))
def test_constant_and_random_scores_do_not_beat_chance(seed):
    rng = np.random.default_rng(seed)
    candidates = rng.permuted(np.tile(np.arange(20), (2000, 1)), axis=1)
    targets = np.zeros(2000, dtype=np.int64)
    assert hit_rate_at(candidate_ranks(np.ones((2000, 20)), candidates, targets), 10) == 0
    random = hit_rate_at(candidate_ranks(rng.random((2000, 20)), candidates, targets), 10)
    # Seven standard errors of a share of one half.
    assert random <= chance("HR@10", 20) + 7 * (1 / 4 / 2000) ** 0.5


def full_ranks_one_by_one(scores, targets, excluded):
    ranks = []
    for row, target in enumerate(targets):
        history = set() if excluded is None else set(excluded.items[excluded.starts[row] : excluded.ends[row]].tolist())
        others = [item for item in range(scores.shape[1]) if item != target and item not in history]
        ranks.append(sum(scores[row, item] >= scores[row, target] for item in others))
    return ranks


@pytest.mark.parametrize("max_scores", [1, 30, 10_000])
@pytest.mark.parametrize("is_excluding", [False, True])
def test_catalogue_ranks_equal_counting_one_by_one(monkeypatch, max_scores, is_excluding):
    monkeypatch.setattr(ranking, "MAX_SCORES", max_scores)
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 6, (25, 12)).astype(np.float64)
    targets = rng.integers(0, 12, 25)
    starts = rng.integers(0, 30, 25)
    # Rows without a history, and histories that hold the target and repeats, are among these.
    excluded = Excluded(starts, starts + rng.integers(0, 8, 25), rng.integers(0, 12, 40).astype(np.int32))
    excluded = excluded if is_excluding else None
    tensor = torch.from_numpy(scores)
    ranks = catalogue_ranks(lambda rows: tensor[rows], targets, 12, excluded)
    assert ranks.tolist() == full_ranks_one_by_one(scores, targets, excluded)
    assert torch.equal(tensor, torch.from_numpy(scores))


def test_excluded_items_stay_out_even_where_the_target_scores_lowest():
    excluded = Excluded(np.array([0]), np.array([2]), np.array([1, 2]))
    scores = torch.tensor([[-torch.inf, 5.0, -torch.inf, -torch.inf]])
    assert catalogue_ranks(lambda rows: scores[rows], np.array([0]), 4, excluded).tolist() == [1]


def test_catalogue_ranks_never_hold_more_than_a_chunk(monkeypatch):
    monkeypatch.setattr(ranking, "MAX_SCORES", 100)
    monkeypatch.setattr(ranking, "ROWS", 1)
    seen = []

    def scores(rows):
        seen.append(rows.stop - rows.start)
        return torch.zeros(rows.stop - rows.start, 10)

    assert catalogue_ranks(scores, np.zeros(25, dtype=np.int64), 10).tolist() == [9] * 25
    assert seen == [10, 10, 5]


def test_a_score_that_is_no_number_is_refused_with_its_place(monkeypatch):
    monkeypatch.setattr(ranking, "MAX_SCORES", 4)
    scores = torch.zeros(4, 2)
    scores[3, 1] = torch.nan
    with pytest.raises(ValueError, match="row 3 scores item 1 with nan"):
        catalogue_ranks(lambda rows: scores[rows], np.zeros(4, dtype=np.int64), 2)
