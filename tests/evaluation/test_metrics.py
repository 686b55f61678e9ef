import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrec.evaluation.metrics import chance, gains_at, hit_rate_at, hits_at, mrr, ndcg_at, reciprocal_ranks, summary

RANKS = np.array([0, 1, 4, 9, 10, 19])
METRICS = {"HR": hit_rate_at, "NDCG": ndcg_at}

ranks_lists = st.lists(st.integers(0, 50), min_size=1, max_size=40).map(np.array)


def test_hit_rate_counts_the_first_k():
    assert hit_rate_at(RANKS, 1) == 1 / 6
    assert hit_rate_at(RANKS, 5) == 3 / 6
    assert hit_rate_at(RANKS, 10) == 4 / 6
    assert hits_at(RANKS, 5).tolist() == [1, 1, 1, 0, 0, 0]


def test_ndcg_discounts_by_the_place():
    assert ndcg_at(RANKS, 10) == pytest.approx((1 / np.log2(2) + 1 / np.log2(3) + 1 / np.log2(6) + 1 / np.log2(11)) / 6)
    assert gains_at(np.array([9, 10]), 10).tolist() == [1 / np.log2(11), 0]


def test_mrr_has_no_cut_off():
    assert mrr(RANKS) == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 10 + 1 / 11 + 1 / 20) / 6)
    assert reciprocal_ranks(np.array([0, 3])).tolist() == [1, 1 / 4]


def test_ndcg_at_one_is_the_hit_rate_at_one():
    assert ndcg_at(RANKS, 1) == hit_rate_at(RANKS, 1)


@given(ranks_lists, st.integers(1, 60))
def test_metrics_lie_between_zero_and_one(ranks, k):
    for value in (hit_rate_at(ranks, k), ndcg_at(ranks, k), mrr(ranks)):
        assert 0 <= value <= 1
    assert ndcg_at(ranks, k) <= hit_rate_at(ranks, k)


@given(ranks_lists, st.integers(1, 60))
def test_metrics_fall_as_the_rank_grows(ranks, k):
    assert hit_rate_at(ranks, k) >= hit_rate_at(ranks + 1, k)
    assert ndcg_at(ranks, k) >= ndcg_at(ranks + 1, k)
    assert mrr(ranks) > mrr(ranks + 1)


@given(ranks_lists, st.integers(1, 60))
def test_metrics_grow_with_the_cut_off(ranks, k):
    assert hit_rate_at(ranks, k) <= hit_rate_at(ranks, k + 1)
    assert ndcg_at(ranks, k) <= ndcg_at(ranks, k + 1)


def test_chance_is_the_mean_over_all_ranks():
    assert chance("HR@1", 20) == 1 / 20
    assert chance("HR@10", 20) == 10 / 20
    assert chance("HR@10", 7) == 1
    assert chance("NDCG@5", 2) == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert chance("NDCG@5", 8) == pytest.approx(sum(1 / np.log2(rank + 2) for rank in range(5)) / 8)
    assert chance("MRR", 3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


@pytest.mark.parametrize(("metric", "k"), [("HR", 1), ("HR", 5), ("HR", 10), ("NDCG", 5), ("NDCG", 10)])
def test_uniform_ranks_come_near_chance(metric, k):
    ranks = np.random.default_rng(0).integers(0, 20, 40_000)
    # The largest standard deviation of a value in [0, 1] is 1/2, so six standard errors are 3 / 200.
    assert METRICS[metric](ranks, k) == pytest.approx(chance(f"{metric}@{k}", 20), abs=3 / 200)


def test_summary_has_the_names_of_the_metrics_file():
    values = summary(RANKS)
    assert list(values) == ["HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"]
    assert values["HR@5"] == 3 / 6
    assert values["NDCG@10"] == ndcg_at(RANKS, 10)


def test_a_target_alone_is_always_found():
    assert chance("HR@1", 1) == chance("NDCG@10", 1) == chance("MRR", 1) == 1.0
    assert hits_at(RANKS, 5).dtype == np.float64


def test_what_has_no_value_is_refused():
    with pytest.raises(ValueError, match=r"^got no ranks: a metric over no users has no value; leave the segment out$"):
        hit_rate_at(np.array([], dtype=np.int64), 1)
    with pytest.raises(ValueError, match="from -1, expected whole numbers from 0"):
        mrr(np.array([0, -1]))
    # Where shapes and types are checked while tests run, the annotation refuses it first.
    with pytest.raises((ValueError, TypeError), match=r"type float64|Type-check"):
        mrr(np.array([0.5]))
    with pytest.raises(ValueError, match="cut-off of 0"):
        ndcg_at(RANKS, 0)
    with pytest.raises(ValueError, match="0 candidates"):
        chance("HR@1", 0)


@pytest.mark.filterwarnings("ignore")
def test_metrics_agree_with_ranx(monkeypatch):
    # Compiling its functions takes half a minute, running them in plain Python two seconds.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    ranx = pytest.importorskip("ranx", reason="ranx, the independent metrics library, is not installed")
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 20, 50)
    judged = {str(user): {"target": 1} for user in range(50)}
    scored = {}
    for user, rank in enumerate(ranks):
        names = [f"other{place}" for place in range(19)]
        names.insert(rank, "target")
        scored[str(user)] = {name: 20.0 - place for place, name in enumerate(names)}
    names = ["hit_rate@1", "hit_rate@10", "ndcg@5", "ndcg@10", "mrr"]
    theirs = ranx.evaluate(ranx.Qrels(judged), ranx.Run(scored), names)
    ours = [hit_rate_at(ranks, 1), hit_rate_at(ranks, 10), ndcg_at(ranks, 5), ndcg_at(ranks, 10), mrr(ranks)]
    assert [theirs[name] for name in names] == pytest.approx(ours)
