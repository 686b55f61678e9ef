"""Ranks come back from disk as they were."""

import numpy as np
import pytest
from tests.training.histories import dataset_of

from allrec.errors import InputError
from allrec.evaluation.results import Ranking, alike, clusters_of, load_ranks, masks_of, save_ranks, with_earlier


def test_ranks_rows_and_facts_of_targets_come_back(tmp_path):
    # Users 0 and 2 have one history and one target; user 1 repeats an item.
    dataset = dataset_of([[4, 5, 7], [5, 6, 5], [4, 5, 7]], 10)
    rankings = [
        Ranking("valid", "full", "cf", np.arange(3), np.array([2, 0, 1])),
        Ranking("test", "paper", "llm-no-soft", np.array([0, 2]), np.array([3, 19])),
    ]
    save_ranks(tmp_path, rankings, dataset)
    stored = load_ranks(tmp_path)
    assert stored.rankings.keys() == {("valid", "full", "cf"), ("test", "paper", "llm-no-soft")}
    found = stored.rankings["test", "paper", "llm-no-soft"]
    assert (found.rows.tolist(), found.ranks.tolist()) == ([0, 2], [3, 19])
    assert stored.targets["test"][found.rows].tolist() == [7, 7]
    assert stored.targets["valid"].tolist() == [5, 6, 5]
    assert stored.clusters["test"].tolist() == [0, 1, 0]
    assert stored.clusters["valid"].tolist() == [0, 1, 0]
    assert stored.is_new["test"].tolist() == [True, False, True]


def test_users_are_alike_by_history_and_target_alone():
    same = dataset_of([[1, 2, 3], [2, 1, 3], [1, 2, 4], [1, 2, 3]], 6)
    assert clusters_of(same, same.targets["test"]).tolist() == [0, 1, 2, 0]
    masks = masks_of(same, same.targets["test"], clusters_of(same, same.targets["test"]))
    assert masks["distinct"].tolist() == [True, True, True, False]
    # A concatenation would take 1 before 23 for 12 before 3.
    assert alike([np.array([1, 2]), np.array([1])], np.array([3, 23])).tolist() == [0, 1]


def test_a_later_evaluation_keeps_what_it_did_not_ask_for(tmp_path):
    dataset = dataset_of([[4, 5, 7], [5, 6, 8]], 10)
    rows, older, newer = np.arange(2), np.array([1, 1]), np.array([0, 0])
    cf, joint = (Ranking("test", "paper", scorer, rows, older) for scorer in ("cf", "joint"))
    again, full = (Ranking("test", protocol, "cf", rows, newer) for protocol in ("paper", "full"))
    assert with_earlier(tmp_path, [cf]) == [cf]
    save_ranks(tmp_path, [cf, joint], dataset)
    found = with_earlier(tmp_path, [again, full])
    assert [(one.protocol, one.scorer) for one in found] == [("paper", "joint"), ("paper", "cf"), ("full", "cf")]
    assert found[0].ranks.tolist() == [1, 1]
    assert found[1:] == [again, full]


def test_a_run_without_ranks_says_so(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_ranks(tmp_path)


def test_where_retrieval_found_the_target_comes_back(tmp_path):
    dataset = dataset_of([[4, 5, 7], [5, 6, 8]], 10)
    found = Ranking("test", "full", "fusion", np.arange(2), np.array([0, 9]), 0.0, np.array([True, False]))
    save_ranks(tmp_path, [found, Ranking("test", "full", "cf", np.arange(2), np.array([1, 1]))], dataset)
    stored = load_ranks(tmp_path).rankings
    assert stored["test", "full", "fusion"].is_retrieved.tolist() == [True, False]
    assert stored["test", "full", "cf"].is_retrieved is None
