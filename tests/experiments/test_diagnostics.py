"""Diagnostics of scorers whose habits are known: blind to order, bound to the last item, bound to a place."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.training.histories import dataset_of

from allrec.errors import InputError
from allrec.evaluation.segments import sample_rows
from allrec.experiments.diagnostics import (
    EvaluatedLists,
    by_place,
    dot_product,
    even_p,
    mean_correlation,
    order_of_history,
    place_in_prompt,
    reordered,
    sample_test_lists,
    written_answers,
)

NUM_ITEMS = 12


def drawn(num_users=200, width=6, seed=0):
    rng = np.random.default_rng(seed)
    histories = [rng.permutation(NUM_ITEMS)[:4] for _ in range(num_users)]
    candidates = np.stack([rng.permutation(NUM_ITEMS)[:width] for _ in range(num_users)])
    # What follows the last item is the target, wherever it stands.
    targets = np.array([(history[-1] + 1) % NUM_ITEMS for history in histories])
    for row, target in enumerate(targets):
        if target not in candidates[row]:
            candidates[row, rng.integers(width)] = target
    return EvaluatedLists(histories, candidates, targets)


def bag(histories, candidates):
    """Blind to the order of the history."""
    return np.array(
        [[np.sin(history.sum() * 7 + item) for item in row] for history, row in zip(histories, candidates, strict=True)]
    )


def last(histories, candidates):
    """Right as long as the last item is the last."""
    return np.array(
        [
            [float(item == (history[-1] + 1) % NUM_ITEMS) for item in row]
            for history, row in zip(histories, candidates, strict=True)
        ]
    )


def third(histories, candidates):
    """Likes the third place, whatever stands there."""
    return np.tile(np.arange(candidates.shape[1]) == 2, (len(candidates), 1)).astype(float)


def test_a_scorer_that_is_blind_to_order_loses_nothing_and_one_that_reads_the_last_item_does():
    rows = {(row["scorer"], row["metric"]): row for row in order_of_history({"bag": bag, "last": last}, drawn(), 0)}
    blind, bound = rows["bag", "HR@1"], rows["last", "HR@1"]
    assert (blind["difference"], blind["changed"], blind["p"]) == (0, 0, 1)
    assert blind["correlation"] == pytest.approx(1)
    assert bound["kept"] == 1
    # The last of four items stays the last in one order in four.
    assert bound["shuffled"] == pytest.approx(1 / 4, abs=4 * (1 / 4 * 3 / 4 / 200) ** 0.5)
    assert bound["difference"] == pytest.approx(bound["kept"] - bound["shuffled"])
    assert bound["p_holm"] == pytest.approx(2 * bound["p"])
    assert bound["ci95"][0] > 0


def test_users_without_an_order_are_left_out():
    lists = drawn(6)
    lists.histories[0], lists.histories[1] = np.array([3]), np.array([5, 5, 5])
    assert order_of_history({"last": last}, lists, 0)[0]["users"] == 4
    assert order_of_history({"last": last}, lists.rows(np.array([0, 1])), 0) == []


def test_a_reordered_history_is_another_one_of_the_same_items():
    rng = np.random.default_rng(0)
    for _ in range(50):
        history = np.array([1, 1, 2])
        mixed = reordered(history, rng)
        assert mixed.tolist() != history.tolist()
        assert sorted(mixed.tolist()) == [1, 1, 2]


def test_a_scorer_bound_to_a_place_is_found_out():
    found = place_in_prompt(third, drawn(), 4, 0)
    places = {row["place"]: row for row in found["places"]}
    assert places[3]["first_choices"] == 1
    assert places[3]["HR@1"] == 1
    assert places[1]["HR@1"] == places[6]["HR@1"] == 0
    assert found["p"] == 1 / 20_001
    assert found["HR@1"] == pytest.approx(1 / 6, abs=0.05)
    assert sum(row["targets"] for row in found["places"]) == 4 * 200
    # Averaged over orders no candidate is sure to stand out, and ties count against the target.
    assert found["averaged"] < 0.5


def test_a_scorer_that_is_blind_to_places_is_even():
    found = place_in_prompt(last, drawn(), 4, 0)
    assert found["by_order"] == [1, 1, 1, 1]
    assert (found["HR@1"], found["averaged"]) == (1, 1)
    assert found["p"] > 0.01
    assert all(row["HR@1"] == 1 for row in found["places"])


def test_averaging_gathers_each_candidates_own_scores():
    lists, seen = drawn(5), []

    def noisy(histories, candidates):
        scores = np.random.default_rng(len(seen)).normal(size=candidates.shape)
        seen.append(
            [dict(zip(row.tolist(), values, strict=True)) for row, values in zip(candidates, scores, strict=True)]
        )
        return scores

    found = place_in_prompt(noisy, lists, 3, 0)
    hits = []
    for row, target in enumerate(lists.targets.tolist()):
        means = {item: np.mean([order[row][item] for order in seen]) for item in lists.candidates[row].tolist()}
        hits.append(max(means, key=means.get) == target)
    assert found["averaged"] == np.mean(hits)
    assert len({tuple(order[0]) for order in seen}) == 3


def test_padding_stays_behind_and_is_never_chosen():
    lists = drawn(50)
    lists.candidates[:25, 5:] = -1
    for row in range(25):
        if lists.targets[row] not in lists.candidates[row]:
            lists.candidates[row, 0] = lists.targets[row]

    def check(histories, candidates):
        assert (candidates[:25, 5:] == -1).all()
        return np.where(candidates < 0, -np.inf, last(histories, candidates))

    assert place_in_prompt(check, lists, 2, 0)["places"][5]["targets"] <= 50


def test_even_p_is_right_about_chance_and_lists_of_two_lengths():
    rng = np.random.default_rng(0)
    candidates = np.zeros((400, 4), int)
    candidates[:200, 2:] = -1
    # Lists of two put 100 on each of two places, lists of four 50 on each of four.
    assert even_p(np.array([150, 150, 50, 50]), candidates, 1, rng) > 0.9
    assert even_p(np.array([100, 100, 100, 100]), candidates, 1, rng) < 0.001
    drawn_p = [even_p(rng.multinomial(200, [1 / 4] * 4), np.zeros((200, 4), int), 1, rng) for _ in range(200)]
    # p is uniform where there is no effect: four standard errors of a share of a fifth.
    assert np.mean(np.array(drawn_p) < 0.2) == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 200) ** 0.5)


def test_rows_by_place_by_hand():
    rows = by_place(np.array([0, 0, 2]), np.array([1.0, 0, 1]), np.array([1, 1, 0]), 3)
    assert [(row["place"], row["targets"], row["HR@1"]) for row in rows] == [(1, 2, 1 / 2), (2, 0, None), (3, 1, 1)]
    assert [row["first_choices"] for row in rows] == [1 / 3, 2 / 3, 0]


def test_answers_by_hand():
    def answer(ids, in_catalogue, is_candidate):
        return SimpleNamespace(item_ids=ids, is_in_catalogue=in_catalogue, is_candidate=is_candidate)

    lists = EvaluatedLists([np.array([user]) for user in range(4)], np.zeros((4, 1), int), np.array([0, 1, 2, 0]))
    answers = [
        answer(["a", "b"], True, True),
        answer(["c"], True, True),
        answer(["c"], True, False),
        answer([], False, False),
    ]
    found = written_answers(answers, ["a", "b", "c"], lists)
    # The third wrote the target's title, so it is a hit, whatever the list said.
    assert (found["invalid"], found["outside_catalogue"], found["HR@1"]) == (2 / 4, 1 / 4, 2 / 4)


def test_correlation_leaves_out_padding_and_equal_scores():
    first = np.array([[1.0, 2, 3, 99], [1, 1, 1, 1], [1, 2, 3, 4]])
    second = np.array([[2.0, 4, 6, -99], [1, 2, 3, 4], [4, 3, 2, 1]])
    is_candidate = np.array([[True, True, True, False], [True] * 4, [True] * 4])
    assert mean_correlation(first, second, is_candidate) == pytest.approx((1 - 1) / 2)
    assert mean_correlation(first[1:2], second[1:2], is_candidate[1:2]) is None


def test_dot_products_score_lists():
    score = dot_product(
        lambda histories: torch.tensor([[1.0, 2.0]] * len(histories)), torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    )
    assert score([np.array([0])], np.array([[2, 1, -1]]))[0, :2].tolist() == [3, 2]


def test_the_sample_is_that_of_the_evaluation():
    dataset = dataset_of([[0, 1, 2, item] for item in range(3, 9)], 9)
    lists = sample_test_lists(dataset, "paper", 4, 7)
    rows = sample_rows(6, 4, 7)
    assert lists.targets.tolist() == dataset.targets["test"].items[rows].tolist()
    assert [history.tolist() for history in lists.histories] == [[0, 1, 2]] * 4
    with pytest.raises(InputError, match="stores no test lists of protocol 'sampled-99'"):
        sample_test_lists(dataset, "sampled-99", 4, 7)
