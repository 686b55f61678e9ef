"""The measures of stage 1 against arithmetic and against plain NumPy, one item at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allrec.alignment import measures
from allrec.alignment.measures import (
    alignment_distance,
    distances_by_count,
    effective_rank,
    mean_gap,
    measure_alignment,
    neighbours,
    overlap,
    recalls,
    retrieval_ranks,
    space_measures,
    uniformity,
)
from allrec.alignment.model import Alignment, AlignmentConfig, NoAlignment


def spaces(num_items=9, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, num_items, dim))


def cosine(first, second):
    return first @ second / math.sqrt((first @ first) * (second @ second))


def unit(row):
    return row / math.sqrt(row @ row)


@pytest.fixture(params=[2, 4, 100])
def chunk(request, monkeypatch):
    """Every number of rows at a time gives the same."""
    monkeypatch.setattr(measures, "CHUNK", request.param)


# Retrieval


@pytest.mark.usefixtures("chunk")
def test_retrieval_ranks_equal_counting():
    queries, keys = spaces()
    expected = [
        sum(cosine(queries[i], keys[j]) >= cosine(queries[i], keys[i]) for j in range(9) if j != i) for i in range(9)
    ]
    assert retrieval_ranks(torch.from_numpy(queries), torch.from_numpy(keys)).tolist() == expected
    assert len(set(expected)) > 3


def test_an_item_of_equal_text_counts_against_us_though_it_differ_in_its_last_bits():
    items = torch.eye(3, dtype=torch.float64)
    texts = items.clone()
    texts[1] = texts[0] + torch.tensor([0, 1e-12, 0])
    # Item 1's own text is a hair nearer than the others, which is rounding.
    assert retrieval_ranks(items, texts).tolist() == [1, 2, 0]
    assert retrieval_ranks(texts, items).tolist() == [0, 2, 0]


def test_constant_embeddings_find_nothing():
    same = torch.ones(30, 4, dtype=torch.float64)
    assert recalls(retrieval_ranks(same, same)) == {"recall@1": 0, "recall@10": 0}


def test_recall_is_the_share_under_the_cut_off():
    assert recalls(np.array([0, 0, 1, 9, 10])) == {"recall@1": 2 / 5, "recall@10": 4 / 5}


# Effective rank, alignment, uniformity


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_effective_rank_counts_equal_directions(rank):
    # Plus and minus each axis: centred, and all singular values equal.
    axes = torch.eye(5)[:rank]
    assert effective_rank(torch.cat([axes, -axes]) + 7) == pytest.approx(rank, rel=1e-5)


def test_effective_rank_is_exp_of_the_entropy_of_singular_values():
    space = torch.tensor([[3.0, 0], [-3.0, 0], [0, 1.0], [0, -1.0]])
    # Singular values are 3·√2 and √2: shares 3/4 and 1/4.
    assert effective_rank(space) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_a_point_has_no_effective_rank():
    assert effective_rank(torch.ones(4, 3)) == 0


def test_alignment_is_the_mean_squared_distance_on_the_sphere():
    first = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    second = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-4.0, 0.0]])
    assert alignment_distance(first, second) == pytest.approx((0 + 2 + 4) / 3)


@pytest.mark.usefixtures("chunk")
def test_uniformity_equals_its_equation():
    space = spaces()[0]
    potentials = [
        math.exp(-2 * np.sum((unit(space[i]) - unit(space[j])) ** 2)) for i in range(9) for j in range(9) if i != j
    ]
    assert uniformity(torch.from_numpy(space)) == pytest.approx(math.log(np.mean(potentials)))


def test_uniformity_of_one_point_and_of_two_poles():
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)
    assert uniformity(torch.tensor([[1.0, 0], [-1.0, 0]])) == pytest.approx(-2 * 2**2)


# Neighbours


@pytest.mark.usefixtures("chunk")
def test_neighbours_are_the_most_similar_others():
    space = spaces()[0]
    found = neighbours(torch.from_numpy(space), 3)
    for item in range(9):
        others = sorted((j for j in range(9) if j != item), key=lambda j: -cosine(space[item], space[j]))
        assert found[item].tolist() == others[:3]


def test_few_items_have_all_others_as_neighbours():
    assert neighbours(torch.eye(3), 10).shape == (3, 2)


def test_overlap_is_the_mean_share_of_common_neighbours():
    assert overlap(torch.tensor([[1, 2], [3, 0]]), torch.tensor([[2, 1], [3, 2]])) == (1 + 1 / 2) / 2


@given(seed=st.integers(0, 50))
def test_a_rotation_keeps_every_neighbour_and_chance_keeps_few(seed):
    space, other = (torch.from_numpy(rows) for rows in spaces(60, 4, seed))
    rotation = torch.linalg.qr(other[:4]).Q
    assert overlap(neighbours(space, 5), neighbours(3 * space @ rotation, 5)) == 1
    assert overlap(neighbours(space, 5), neighbours(other, 5)) < 0.4


# Distances by count


def test_distances_by_count_are_means_of_each_bucket():
    items = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [1.0, 0]])
    texts = torch.tensor([[1.0, 0], [0, 1.0], [0, 3.0], [-1.0, 0]])
    rows = distances_by_count(items, texts, torch.tensor([0, 3, 5, 21]))
    assert [(row["seen"], row["items"]) for row in rows] == [("0", 1), ("2 to 5", 2), ("21 or more", 1)]
    assert [row["distance"] for row in rows] == pytest.approx([0, (1 + 0) / 2, 2])
    # Distances to all four texts: 0, 1, 1, 2 from (1, 0) and 1, 0, 0, 1 from (0, 1).
    from_right, from_top = (0 + 1 + 1 + 2) / 4, (1 + 0 + 0 + 1) / 4
    assert [row["relative"] for row in rows] == pytest.approx(
        [0, (1 / 2) / ((from_right + from_top) / 2), 2 / from_right]
    )


def test_texts_exchanged_at_random_are_as_far_as_any():
    items, texts = (torch.from_numpy(rows) for rows in spaces(3000, 8))
    (row,) = distances_by_count(items, texts, torch.ones(3000))
    assert row["relative"] == pytest.approx(1, abs=0.03)


# All together


def make_alignment():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Alignment(4, 6, AlignmentConfig(joint_dim=5)).eval()


def embeddings_of(num_items=30):
    rng = np.random.default_rng(2)
    items, texts = (torch.from_numpy(rng.normal(size=(num_items, dim))).float() for dim in (4, 6))
    counts = rng.integers(1, 30, num_items)
    return items, texts, counts


def test_the_gap_is_the_distance_of_the_means_over_the_spread_of_the_first():
    first, second = torch.tensor([[1.0, 0], [3.0, 0]]), torch.tensor([[5.0, 4], [5.0, 4], [5.0, 4]])
    assert mean_gap(first, second) == pytest.approx(math.sqrt((5 - 2) ** 2 + 4**2) / 1)
    assert mean_gap(second, first) == 0


@pytest.mark.parametrize("side", ["items", "texts"])
def test_an_offset_of_a_whole_space_changes_the_gap_alone(side):
    items, texts, counts = embeddings_of()
    alignment, moved = (Alignment(4, 6, AlignmentConfig(joint_dim=5, activation="linear")) for _ in range(2))
    moved.load_state_dict(alignment.state_dict())
    with torch.no_grad():
        getattr(moved, side).encoder.bias += 9
    first, second = (measure_alignment(one, items, texts, counts) for one in (alignment, moved))
    assert second["gap"] > first["gap"] + 1
    assert second["retrieval"] == first["retrieval"]
    assert second["neighbours"] == first["neighbours"]
    assert second["uniformity"]["q"] == pytest.approx(first["uniformity"]["q"])


def test_unseen_items_and_items_without_text_are_left_out():
    items, texts, counts = embeddings_of()
    counts[:4] = 0
    texts[3:6] = 0
    alignment = make_alignment()
    whole = measure_alignment(alignment, items, texts, counts)
    rest = measure_alignment(alignment, items[6:], texts[6:], counts[6:])
    assert whole["items"] == 30 - 6
    assert {key: value for key, value in whole.items() if key != "distance"} == {
        key: value for key, value in rest.items() if key != "distance"
    }
    assert whole["distance"][0]["seen"] == "0"
    assert sum(row["items"] for row in whole["distance"]) == 30 - 3


def test_measures_are_the_same_each_time_and_leave_the_alignment_alone():
    items, texts, counts = embeddings_of()
    alignment = make_alignment()
    first = measure_alignment(alignment, items, texts, counts)
    assert alignment.items.encoder.weight.dtype == torch.float32
    assert measure_alignment(alignment, items, texts, counts) == first


def test_many_items_are_sampled_always_the_same(monkeypatch):
    items, texts, counts = embeddings_of()
    monkeypatch.setattr(measures, "MAX_ITEMS", 12)
    first = measure_alignment(make_alignment(), items, texts, counts)
    assert first["items"] == 12
    assert measure_alignment(make_alignment(), items, texts, counts) == first


def test_spaces_that_agree_are_seen_to_agree():
    items, texts, _ = embeddings_of()
    found = space_measures(items, texts, items.double(), items.double())
    assert found["retrieval"] == {way: {"recall@1": 1, "recall@10": 1} for way in ("q to e", "e to q")}
    assert found["alignment"] == 0
    assert found["neighbours"]["E and e"] == found["neighbours"]["e and q"] == 1
    assert found["neighbours"]["E and Q"] == found["neighbours"]["Q and q"] < 1
    assert found["effective_rank"]["e"] == pytest.approx(found["effective_rank"]["E"])


def test_each_way_of_retrieval_has_its_own_name():
    # Two items of one embedding: a text finds both, which counts against it; their embedding finds the first text.
    items, texts = torch.tensor([[1.0, 0], [1.0, 0]]), torch.tensor([[1.0, 0], [1.0, 0.1]])
    found = space_measures(items, texts, items.double(), texts.double())["retrieval"]
    assert (found["q to e"]["recall@1"], found["e to q"]["recall@1"]) == (0, 1 / 2)


def test_without_stage_1_or_without_two_items_there_is_nothing_to_measure():
    items, texts, counts = embeddings_of()
    assert measure_alignment(NoAlignment(), items, texts, counts) is None
    counts[1:] = 0
    assert measure_alignment(make_alignment(), items, texts, counts) is None
