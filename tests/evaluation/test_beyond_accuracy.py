"""Beyond accuracy: against plain writings of each definition, and at its edges."""

from itertools import combinations
from math import log2

import numpy as np
import pytest
import torch

from allrec.evaluation import beyond_accuracy as module
from allrec.evaluation.beyond_accuracy import (
    beyond_accuracy,
    coverage,
    intra_list_diversity,
    novelty,
    popularity_lift,
)

COUNTS = np.array([7, 3, 0, 0])


def drawn(seed=0, num_users=50, num_items=30, k=6):
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(num_items)[:k] for _ in range(num_users)])
    # Lists of 1 to k items.
    lists[np.arange(k) > rng.integers(0, k, num_users)[:, None]] = -1
    return lists, rng.integers(0, 20, num_items), torch.from_numpy(rng.normal(size=(num_items, 5)))


def test_coverage_counts_each_item_once():
    assert coverage(np.array([[0, 1], [1, 3], [-1, -1]]), 4) == 3 / 4
    assert coverage(np.full((2, 3), -1), 4) == 0


def test_novelty_is_the_mean_self_information():
    # 10 interactions and one more for each of 4 items.
    expected = (-log2(8 / 14) - log2(1 / 14) - log2(4 / 14)) / 3
    assert novelty(np.array([[0, 2], [1, -1]]), COUNTS) == pytest.approx(expected)


def test_novelty_equals_a_plain_writing():
    lists, counts, _ = drawn()
    total = sum(counts) + len(counts)
    bits = [-log2((counts[item] + 1) / total) for row in lists for item in row if item >= 0]
    assert novelty(lists, counts) == pytest.approx(sum(bits) / len(bits))


@pytest.mark.parametrize("rows", [4096, 7])
def test_diversity_equals_a_plain_writing(monkeypatch, rows):
    monkeypatch.setattr(module, "ROWS", rows)
    lists, _, vectors = drawn()
    vectors = vectors.numpy()
    expected = []
    for row in lists:
        pairs = list(combinations([vectors[item] for item in row if item >= 0], 2))
        if pairs:
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
            expected.append(1 - sum(cosines) / len(pairs))
    assert intra_list_diversity(lists, torch.from_numpy(vectors)) == pytest.approx(np.mean(expected))
    assert 0 < len(expected) < len(lists)


def test_diversity_of_equal_opposite_and_textless_items():
    vectors = torch.tensor([[1.0, 0], [2, 0], [-1, 0], [0, 0]])
    assert intra_list_diversity(np.array([[0, 1]]), vectors) == pytest.approx(0)
    assert intra_list_diversity(np.array([[0, 2]]), vectors) == pytest.approx(2)
    assert intra_list_diversity(np.array([[0, 3]]), vectors) == pytest.approx(1)


def test_popularity_lift_compares_with_the_histories():
    # Recommended: 7, 7 and 0; chosen before: 3 and 7.
    assert popularity_lift(np.array([[0, -1], [0, 2]]), np.array([1, 0]), COUNTS) == pytest.approx((14 / 3) / 5 - 1)
    assert popularity_lift(np.array([[0], [1]]), np.array([1, 0]), COUNTS) == pytest.approx(0)


def test_all_measures_have_a_name():
    lists, counts, vectors = drawn()
    found = beyond_accuracy(lists, np.arange(30), counts, vectors)
    assert found["coverage"] == coverage(lists, 30)
    assert found["novelty"] == novelty(lists, counts)
    assert found["diversity"] == intra_list_diversity(lists, vectors)
    assert found["popularity_lift"] == popularity_lift(lists, np.arange(30), counts)


def test_nothing_to_measure_is_refused():
    empty = np.full((2, 2), -1)
    with pytest.raises(ValueError, match="got empty lists alone"):
        novelty(empty, COUNTS)
    with pytest.raises(ValueError, match="no list of two items"):
        intra_list_diversity(np.array([[0, -1]]), torch.eye(4))
    with pytest.raises(ValueError, match="histories without a training interaction"):
        popularity_lift(np.array([[0]]), np.array([2, 3]), COUNTS)
    with pytest.raises(ValueError, match="histories without a training interaction"):
        popularity_lift(np.array([[0]]), np.zeros(0, np.int64), COUNTS)
