"""Rows of metrics.json by arithmetic: segments, intervals, comparisons over the same users, samples."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training.histories import dataset_of

from allrec.evaluation.ranks import excluded_of
from allrec.evaluation.results import Ranking, comparison_rows, corrected, result_rows
from allrec.evaluation.segments import sample_rows


def ranking(scorer, ranks, rows=None, split="test", protocol="paper"):
    ranks = np.array(ranks)
    return Ranking(split, protocol, scorer, np.arange(len(ranks)) if rows is None else np.array(rows), ranks)


MASKS = {
    "all": np.array([True, True, True, True]),
    "warm": np.array([True, False, False, True]),
    "cold": np.array([False, False, True, False]),
    "tail": np.array([False, False, False, False]),
}


def test_a_row_holds_the_metrics_of_its_segment():
    rows = {row["segment"]: row for row in result_rows(ranking("cf", [0, 1, 7, 12]), MASKS, seed=0)}
    assert set(rows) == {"all", "warm", "cold"}
    everybody = rows["all"]
    assert everybody["users"] == 4
    assert everybody["HR@1"] == 1 / 4
    assert everybody["HR@5"] == 2 / 4
    assert everybody["HR@10"] == 3 / 4
    assert everybody["NDCG@5"] == pytest.approx((1 + 1 / np.log2(3)) / 4)
    assert everybody["NDCG@10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(9)) / 4)
    assert everybody["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 8 + 1 / 13) / 4)
    assert (rows["warm"]["users"], rows["warm"]["HR@1"]) == (2, 1 / 2)
    assert (rows["cold"]["users"], rows["cold"]["HR@10"]) == (1, 1.0)


def test_a_row_has_the_keys_of_the_format_and_is_json():
    (row,) = result_rows(ranking("llm", [0, 3], split="valid", protocol="full"), {"all": np.ones(2, bool)}, seed=0)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    keys = "scenario split protocol scorer segment users HR@1 HR@5 HR@10 NDCG@5 NDCG@10 MRR ci95"
    assert set(row) == set(keys.split())
    named = ("standard", "valid", "full", "llm", "all")
    assert tuple(row[key] for key in ("scenario", "split", "protocol", "scorer", "segment")) == named


def test_intervals_hold_their_mean_and_do_not_change():
    ranks = np.random.default_rng(0).integers(0, 20, 200)
    masks = {"all": np.ones(200, bool)}
    (row,) = result_rows(ranking("cf", ranks), masks, seed=3)
    for metric, (low, high) in row["ci95"].items():
        assert low < row[metric] < high
    assert set(row["ci95"]) == {"HR@1", "NDCG@10"}
    assert result_rows(ranking("cf", ranks), masks, seed=3) == [row]
    assert result_rows(ranking("cf", ranks), masks, seed=4) != [row]


def test_segments_look_at_the_rows_that_were_scored():
    # Only the rows 1 and 3 of four were scored, with ranks 5 and 0; row 3 is warm.
    rows = {row["segment"]: row for row in result_rows(ranking("llm", [5, 0], rows=[1, 3]), MASKS, seed=0)}
    assert set(rows) == {"all", "warm"}
    assert (rows["all"]["users"], rows["all"]["HR@1"]) == (2, 1 / 2)
    assert (rows["warm"]["users"], rows["warm"]["HR@1"]) == (1, 1.0)


def test_comparisons_are_paired_over_the_users_that_both_scored():
    # llm scored the rows 0, 2 and 3; cf all of them.
    llm, cf = ranking("llm", [0, 0, 4], rows=[0, 2, 3]), ranking("cf", [0, 9, 2, 0])
    rows = {row["metric"]: row for row in comparison_rows([llm, cf], seed=0)}
    assert set(rows) == {"HR@1", "NDCG@10"}
    row = rows["HR@1"]
    assert (row["scorer"], row["against"], row["users"]) == ("llm", "cf", 3)
    assert (row["split"], row["protocol"]) == ("test", "paper")
    assert row["difference"] == pytest.approx(((1 - 1) + (1 - 0) + (0 - 1)) / 3)
    expected = ((1 - 1) + (1 - 1 / np.log2(4)) + (1 / np.log2(6) - 1)) / 3
    assert rows["NDCG@10"]["difference"] == pytest.approx(expected)
    assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_equal_users_widen_intervals_of_rows_and_comparisons():
    first, second = ranking("llm", [0] * 30 + [1, 2] * 5), ranking("cf", [1] * 30 + [0, 3] * 5)
    clusters = np.array([0] * 30 + list(range(1, 11)))
    mask = {"all": np.ones(40, bool)}
    for alone, together in (
        (
            result_rows(first, mask, 0)[0]["ci95"]["HR@1"],
            result_rows(first, mask, 0, clusters=clusters)[0]["ci95"]["HR@1"],
        ),
        *(
            (one["ci95"], other["ci95"])
            for one, other in zip(
                comparison_rows([first, second], 0),
                comparison_rows([first, second], 0, {"test": clusters}),
                strict=True,
            )
        ),
    ):
        assert np.ptp(together) > 1.5 * np.ptp(alone)
    p = [comparison_rows([first, second], 0, one)[0]["p"] for one in (None, {"test": clusters})]
    assert p[0] < 0.001 < 0.05 < p[1]


def test_comparisons_stay_within_split_and_protocol_and_go_against_the_first():
    rankings = [
        ranking(scorer, [0, 1], split=split, protocol=protocol)
        for split, protocol in (("valid", "paper"), ("test", "paper"), ("test", "full"))
        for scorer in ("llm", "cf", "joint")
    ]
    rows = comparison_rows(rankings, seed=0)
    assert len(rows) == 3 * 2 * 2
    assert {(row["scorer"], row["against"]) for row in rows} == {("llm", "cf"), ("llm", "joint")}


def test_a_clear_difference_is_significant_and_none_is_not():
    better, worse = [0] * 50 + [3] * 10, [3] * 50 + [0] * 10
    (row, _) = comparison_rows([ranking("llm", better), ranking("cf", worse)], seed=0)
    assert row["difference"] == pytest.approx((50 - 10) / 60)
    assert row["p"] < 0.001
    (row, _) = comparison_rows([ranking("llm", better), ranking("cf", better)], seed=0)
    assert (row["difference"], row["p"]) == (0, 1)


def test_one_scorer_has_nothing_to_be_compared_with():
    assert comparison_rows([ranking("cf", [0, 1])], seed=0) == []


def test_excluded_are_the_items_before_each_target():
    dataset = dataset_of([[3, 1, 2, 0], [0, 1], [2, 2, 1]], 5)
    excluded = excluded_of(dataset, dataset.targets["test"].take(np.array([1, 0])), "full")
    told = [excluded.items[s:e].tolist() for s, e in zip(excluded.starts, excluded.ends, strict=True)]
    assert told == [[2, 2], [3, 1, 2]]


@given(num_rows=st.integers(1, 50), size=st.integers(1, 60), seed=st.integers(0, 3))
def test_a_sample_is_fixed_ascending_and_without_repeats(num_rows, size, seed):
    rows = sample_rows(num_rows, size, seed)
    assert (np.diff(rows) > 0).all()
    assert len(rows) == min(size, num_rows)
    assert rows.min() >= 0
    assert rows.max() < num_rows
    assert rows.tolist() == sample_rows(num_rows, size, seed).tolist()
    assert sample_rows(num_rows, None, seed).tolist() == list(range(num_rows))
    assert set(sample_rows(num_rows, max(1, size // 2), seed)) <= set(rows)


def test_samples_of_two_seeds_differ():
    assert sample_rows(1000, 20, 0).tolist() != sample_rows(1000, 20, 1).tolist()


def test_p_is_corrected_within_a_split_protocol_and_metric_alone():
    def row(p, **others):
        return {"split": "test", "protocol": "paper", "metric": "HR@1", "p": p} | others

    rows = [row(0.01), row(0.04), row(0.01, split="valid"), row(0.01, protocol="full"), row(0.03, metric="NDCG@10")]
    found = corrected(rows)
    assert [each["p_holm"] for each in found] == pytest.approx([0.02, 0.04, 0.01, 0.01, 0.03])
    assert [each | {"p_holm": 0} for each in rows] == [each | {"p_holm": 0} for each in found]
    assert corrected([]) == []
