"""The best of many, and the fusion of ranked lists: against plain sorting."""

import numpy as np
import pytest
import torch

from allrec.hybrid import retrieval as search
from allrec.hybrid.retrieval import reciprocal_rank_fusion, scan, top_k


def plainly(scores, k):
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize(("num_items", "k"), [(1, 1), (7, 3), (7, 20), (300, 1), (300, 40), (1000, 999), (5000, 100)])
@pytest.mark.parametrize("kind", ["normal", "few values", "constant", "ascending"])
def test_the_best_are_those_of_a_stable_sort(num_items, k, kind):
    rng = np.random.default_rng(0)
    scores = {
        "normal": rng.normal(size=(5, num_items)),
        "few values": rng.integers(-2, 3, (5, num_items)) * 0.5,
        "constant": np.zeros((5, num_items)),
        "ascending": np.tile(np.arange(num_items) - num_items / 2, (5, 1)),
    }[kind].astype(np.float32)
    scores[0] = -0.0
    np.testing.assert_array_equal(top_k(torch.from_numpy(scores), k), plainly(scores, k))


def test_of_equal_scores_the_lower_position_comes_first_and_is_kept():
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0, -0.0, 0.0, -1.0, 0.0, 1.0]])
    assert top_k(scores, 3).tolist() == [[1, 3, 2], [5, 0, 1]]
    # So too where equal scores are many more than k.
    wide = torch.ones(2, 50_000)
    wide[1, 40_000] = 2
    assert top_k(wide, 3).tolist() == [[0, 1, 2], [40_000, 0, 1]]


def test_nothing_is_wanted():
    assert top_k(torch.zeros(2, 5), 0).shape == (2, 0)
    assert top_k(torch.zeros(0, 5), 3).shape == (0, 3)


def fused_plainly(lists, own):
    rows = []
    for row in range(len(own)):
        weights = {}
        for item in own[row][own[row] >= 0]:
            weights[item] = weights.get(item, 0) + search.OWN
        for one in lists:
            for place, item in enumerate(one[row]):
                if item >= 0:
                    weights[item] = weights.get(item, 0) + search.LIST_WEIGHT // (search.SMOOTHING + place)
        rows.append(sorted(weights, key=lambda item: (-weights[item], item)))
    return rows


def test_lists_fuse_into_their_union_by_reciprocal_ranks_and_own_items_stand_first():
    rng = np.random.default_rng(0)
    lists = [np.stack([rng.permutation(60)[:12] for _ in range(30)]) for _ in range(3)]
    lists[1][4] = -1
    own = np.where(rng.random((30, 4)) < 0.3, -1, rng.integers(0, 60, (30, 4)))
    found = reciprocal_rank_fusion(lists, own)
    for row, expected in enumerate(fused_plainly(lists, own)):
        assert found[row][: len(expected)].tolist() == expected
        assert (found[row][len(expected) :] == -1).all()
        assert set(expected[: len(set(own[row]) - {-1})]) == set(own[row]) - {-1}


def test_rows_without_anything_are_padding():
    nothing = np.full((2, 3), -1)
    assert reciprocal_rank_fusion([nothing], nothing).shape == (2, 0)
    assert reciprocal_rank_fusion([np.array([[4, 2], [-1, -1]])], nothing[:, :1]).tolist() == [[4, 2], [-1, -1]]


def test_one_pass_gives_the_best_and_the_normaliser_whatever_goes_together(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(9, 4, generator=generator), torch.randn(50, 4, generator=generator)
    queries[3] = 0
    scores = (queries.double() @ items.double().T).numpy()
    for queries_together in (1, 4):
        monkeypatch.setattr(search, "CELLS", 1)
        monkeypatch.setattr(search, "QUERIES", queries_together)
        nearest, normalisers = scan(queries, items, 6, 40)
        expected = plainly(scores, 6)
        expected[3] = -1
        np.testing.assert_array_equal(nearest, expected)
        np.testing.assert_allclose(normalisers, np.log(np.exp(scores[:, :40]).sum(axis=1)), rtol=1e-5)
