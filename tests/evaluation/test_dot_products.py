import numpy as np
import pytest
import torch

from allrec.evaluation import ranks as dot_products
from allrec.evaluation.ranks import Excluded, catalogue_ranks, ranks_among_all


def drawn(num_rows, num_items, dim=5, seed=0):
    # Small whole numbers, so that many scores are equal and sums are exact in any order.
    rng = np.random.default_rng(seed)
    users, items = (torch.from_numpy(rng.integers(-2, 3, (count, dim))).float() for count in (num_rows, num_items))
    starts = rng.integers(0, 30, num_rows)
    # Rows without a history, and histories that hold the target and repeats, are among these.
    excluded = Excluded(starts, starts + rng.integers(0, 8, num_rows), rng.integers(0, num_items, 40).astype(np.int32))
    return users, items, rng.integers(0, num_items, num_rows).astype(np.int32), excluded


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 4), (7, 12), (25, 5), (256, 2048)])
@pytest.mark.parametrize("is_excluding", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_count_what_whole_rows_of_scores_do(monkeypatch, rows, width, is_excluding, threads):
    monkeypatch.setattr(dot_products, "USERS_TOGETHER", rows)
    monkeypatch.setattr(dot_products, "ITEMS", width)
    users, items, targets, excluded = drawn(25, 12)
    excluded = excluded if is_excluding else None
    expected = catalogue_ranks(lambda part: users[part] @ items.T, targets, 12, excluded)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert ranks_among_all(users, items, targets, excluded).tolist() == expected.tolist()
    finally:
        torch.set_num_threads(before)


def test_nothing_to_rank_has_no_ranks():
    assert ranks_among_all(torch.zeros(0, 3), torch.zeros(4, 3), np.zeros(0, np.int64)).tolist() == []


def test_what_is_given_stays_as_it_was():
    users, items, targets, excluded = drawn(6, 9)
    before = [users.clone(), items.clone(), targets.copy(), *(part.copy() for part in excluded)]
    ranks_among_all(users, items, targets, excluded)
    assert all(
        (np.asarray(a) == np.asarray(b)).all() for a, b in zip(before, [users, items, targets, *excluded], strict=True)
    )


@pytest.mark.parametrize("num_rows", [1, 3, 40, 257])
@pytest.mark.parametrize("dim", [3, 50, 129, 384])
def test_an_item_of_the_same_embedding_ties_wherever_it_stands(monkeypatch, num_rows, dim):
    # Products of other shapes round otherwise, by which an equal item would stand before or behind the target.
    monkeypatch.setattr(dot_products, "ITEMS", 20)
    generator = torch.Generator().manual_seed(dim)
    users, items = torch.randn(num_rows, dim, generator=generator), torch.randn(61, dim, generator=generator)
    is_same = np.arange(61) % 4 == 0
    items[is_same] = items[0].clone()
    scores = users.double() @ items.double().T
    before = (scores[:, ~is_same] > scores[:, :1]).sum(dim=1) + int(is_same.sum()) - 1
    for target in np.flatnonzero(is_same):
        assert ranks_among_all(users, items, np.full(num_rows, target)).tolist() == before.tolist()


def test_a_target_scored_otherwise_by_a_product_of_another_shape_is_counted_again(monkeypatch):
    users, items, targets, excluded = drawn(25, 12, seed=1)
    expected = ranks_among_all(users, items, targets, excluded)
    count, least = dot_products._count, []

    def counting(*given):
        least.append(given[3])
        return count(*given)

    monkeypatch.setattr(dot_products, "_count", counting)
    # The first guess is wrong for every row.
    monkeypatch.setattr(torch.Tensor, "diagonal", lambda scores: torch.full((len(scores),), 0.5))
    assert ranks_among_all(users, items, targets, excluded).tolist() == expected.tolist()
    assert len(least) == 2
    assert torch.equal(least[1], (users * items[targets]).sum(dim=1))


@pytest.mark.parametrize(("value", "row"), [(torch.nan, 0), (torch.inf, 4)])
def test_a_score_that_is_no_number_is_refused_with_its_place(monkeypatch, value, row):
    monkeypatch.setattr(dot_products, "USERS_TOGETHER", 2)
    monkeypatch.setattr(dot_products, "ITEMS", 3)
    # Of the last item the last user has infinity less infinity, and all others a number or infinity. (Products that
    # overflow are no case: a processor that multiplies and adds in one step has no infinity between.)
    users, items = torch.tensor([[1.0, -1.0]]).repeat(5, 1), torch.ones(8, 2)
    items[7] = torch.tensor([value, -value])
    users[4] = 1.0
    with pytest.raises(ValueError, match=f"row {row} scores item 7 with nan"):
        ranks_among_all(users, items, np.zeros(5, np.int64))


def test_infinite_scores_are_ranked():
    users, items = torch.full((1, 1), 1e30), torch.tensor([[1e30], [2e30], [1.0], [-1e30]])
    assert ranks_among_all(users, items, np.array([0])).tolist() == [1]
    assert ranks_among_all(users, items, np.array([3])).tolist() == [3]
    excluded = Excluded(np.array([0]), np.array([2]), np.array([0, 1]))
    assert ranks_among_all(users, items, np.array([3]), excluded).tolist() == [1]
    # Rows that fill up a product score nothing, and nothing times infinity is no number.
    items = torch.tensor([[torch.inf], [1.0], [-torch.inf]])
    assert ranks_among_all(torch.ones(1, 1), items, np.array([1])).tolist() == [1]
