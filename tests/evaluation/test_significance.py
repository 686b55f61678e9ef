from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import permutation_test

from allrec.evaluation import significance
from allrec.evaluation.significance import bootstrap_interval, bootstrap_p, compare, holm, sign_flip_p


def rng():
    return np.random.default_rng(0)


def test_interval_has_the_width_of_the_normal_approximation():
    values = (np.arange(10_000) < 3_000).astype(np.float64)
    low, high = bootstrap_interval(values, rng(), samples=20_000)
    standard_error = (0.3 * 0.7 / 10_000) ** 0.5
    assert low == pytest.approx(0.3 - 1.96 * standard_error, abs=0.1 * standard_error)
    assert high == pytest.approx(0.3 + 1.96 * standard_error, abs=0.1 * standard_error)


def test_drawing_counts_is_drawing_users():
    values = np.random.default_rng(1).random(40)
    drawn = np.random.default_rng(2).choice(values, (20_000, 40)).mean(axis=1)
    expected = np.quantile(drawn, [0.025, 0.975])
    assert bootstrap_interval(values, rng(), samples=20_000) == pytest.approx(expected, abs=2e-3)


def test_interval_covers_the_truth_as_often_as_it_says():
    source = np.random.default_rng(5)
    intervals = [bootstrap_interval(source.random(50), source, level=0.8, samples=300) for _ in range(400)]
    covered = np.mean([low <= 1 / 2 <= high for low, high in intervals])
    # Four standard errors of a share of 0.8 in 400.
    assert covered == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / 400) ** 0.5)


def test_equal_values_and_single_users_have_no_width():
    assert bootstrap_interval(np.full(9, 0.25), rng()) == (0.25, 0.25)
    assert bootstrap_interval(np.array([1.0]), rng()) == (1, 1)


def test_same_seed_same_answer():
    values = np.random.default_rng(1).random(30)
    assert bootstrap_interval(values, rng()) == bootstrap_interval(values, rng())
    assert compare(values, values[::-1], rng()) == compare(values, values[::-1], rng())


def test_p_equals_counting_all_signs():
    differences = np.array([0.5, 0.25, -0.125, 0.5, 0.0, 1.0, -0.25])
    sums = [abs(np.dot(signs, differences)) for signs in product([-1, 1], repeat=7)]
    expected = np.mean([value >= abs(differences.sum()) for value in sums])
    assert sign_flip_p(differences, rng(), samples=100_000) == pytest.approx(expected, abs=0.01)


def test_p_is_the_same_from_either_side_and_one_where_nothing_differs():
    first, second = np.random.default_rng(1).random((2, 60))
    assert sign_flip_p(first - second, rng()) == sign_flip_p(second - first, rng())
    assert sign_flip_p(first - first, rng()) == 1


def test_p_falls_with_the_evidence():
    ones = np.ones(400)
    few, many = (np.where(np.arange(400) < share, 0.0, 1.0) for share in (4, 40))
    assert sign_flip_p(ones - many, rng()) == 1 / (10 * significance.SAMPLES + 1)
    # Four users better and none worse: all signs equal in 2 of 2 ** 4 patterns.
    assert sign_flip_p(ones - few, rng()) == pytest.approx(2 / 2**4, abs=0.01)


def test_p_is_uniform_where_there_is_no_difference():
    source = np.random.default_rng(7)
    values = [sign_flip_p(source.random(30) - source.random(30), source, samples=200) for _ in range(300)]
    # Four standard errors of a share of 0.1 in 300.
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 300) ** 0.5)


def test_comparison_is_positive_where_the_first_is_better():
    comparison = compare(np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 1, 0]), rng())
    assert comparison.difference == (1 + 1 + 0 + 0) / 4
    assert comparison.interval.low <= comparison.difference <= comparison.interval.high


def test_chunks_change_the_draws_but_not_their_number(monkeypatch):
    monkeypatch.setattr(significance, "MAX_DRAWS", 70)
    values = np.random.default_rng(1).random(30)
    low, high = bootstrap_interval(values, rng())
    assert low < values.mean() < high
    assert 1 / (1 + 500) <= sign_flip_p(values - values[::-1], rng(), samples=500) <= 1


def test_unpaired_and_missing_values_are_refused():
    # Where shapes are checked while tests run, the annotation refuses it first.
    with pytest.raises((ValueError, TypeError), match=r"\(3,\) and \(2,\), expected the same users|Type-check"):
        compare(np.ones(3), np.ones(2), rng())
    with pytest.raises(ValueError, match="got 0 values"):
        bootstrap_interval(np.array([]), rng())
    with pytest.raises(ValueError, match="finite number"):
        bootstrap_interval(np.array([1.0, np.nan]), rng())


def closed_testing(p_values):
    """Holm as the closure of Bonferroni: the largest Bonferroni p of any set of hypotheses that holds this one."""
    places = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(places, size)]
    return [
        max(min(1, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets if place in chosen)
        for place in places
    ]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_bonferroni_over_every_set_of_hypotheses(seed):
    source = np.random.default_rng(seed)
    p_values = source.choice([0.001, 0.01, 0.02, 0.04, 0.3, 1.0, *source.random(2) / 10], 7)
    assert holm(p_values) == pytest.approx(closed_testing(p_values))


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([3 * 0.01, 2 * 0.03, 2 * 0.03, 4 * 0.005])
    assert holm(np.array([0.2])).tolist() == [0.2]
    assert holm(np.zeros(0)).tolist() == []


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_holm_refuses_what_is_no_p(value):
    with pytest.raises(ValueError, match="expected numbers from 0 to 1"):
        holm(np.array([0.5, value]))


def drawn_one_by_one(values, clusters, source, samples):
    """Means over drawn seeds and drawn clusters, by loops over seeds, clusters and their users."""
    num_seeds = len(values)
    means = []
    for _ in range(samples):
        users = [user for number in source.choice(np.unique(clusters), len(np.unique(clusters)))
                 for user in np.flatnonzero(clusters == number)]  # fmt: skip
        by_seed = [np.mean([values[seed][user] for user in users]) for seed in range(num_seeds)]
        drawn = np.mean([by_seed[seed] for seed in source.integers(num_seeds, size=num_seeds)])
        # Few seeds are spread out around their mean, so that their variance is unbiased.
        spread = np.sqrt(num_seeds / (num_seeds - 1)) if num_seeds > 1 else 1
        means.append(np.mean(by_seed) + spread * (drawn - np.mean(by_seed)))
    return np.array(means)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_seeds_and_clusters_are_drawn_as_by_loops(num_seeds):
    source = np.random.default_rng(3)
    clusters = np.repeat(np.arange(12), source.integers(1, 6, 12))
    values = 3 * source.random((num_seeds, 1)) + source.random(12)[clusters] + source.random((num_seeds, len(clusters)))
    means = drawn_one_by_one(values, clusters, np.random.default_rng(4), 4000)
    interval = bootstrap_interval(values, rng(), clusters, samples=20_000)
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03 * np.ptp(interval) + 0.01)


def test_users_who_cannot_be_told_apart_are_one_observation():
    values = np.random.default_rng(1).integers(0, 2, 40).astype(float)
    copied, clusters = np.repeat(values, 25), np.repeat(np.arange(40), 25)
    low, high = bootstrap_interval(values, rng(), samples=20_000)
    assert bootstrap_interval(copied, rng(), clusters, samples=20_000) == pytest.approx((low, high), abs=0.01)
    assert np.ptp(bootstrap_interval(copied, rng())) < (high - low) / 3
    assert sign_flip_p(values - 0.4, rng()) == pytest.approx(sign_flip_p(copied - 0.4, rng(), clusters), abs=0.02)
    assert sign_flip_p(copied - 0.4, rng()) < sign_flip_p(values - 0.4, rng()) / 3


def test_p_of_clusters_is_that_of_scipy_over_their_sums():
    differences, clusters = np.random.default_rng(2).normal(0.2, 1, 30), np.repeat(np.arange(10), 3)
    sums = np.array([differences[clusters == number].sum() for number in range(10)])
    expected = permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(differences, rng(), clusters, samples=100_000) == pytest.approx(expected, abs=0.01)


def crossed(source, num_seeds, num_users, of_seeds, of_users):
    """Differences whose mean over all seeds and users is 0."""
    seeds, users = source.normal(0, of_seeds, (num_seeds, 1)), source.normal(0, of_users, num_users)
    return seeds + users + source.normal(0, 1, (num_seeds, num_users))


def test_interval_over_seeds_and_users_covers_where_that_over_users_does_not():
    source = np.random.default_rng(6)
    drawn = [crossed(source, 8, 60, of_seeds=0.4, of_users=1) for _ in range(200)]
    both = [bootstrap_interval(values, source, samples=300) for values in drawn]
    users = [bootstrap_interval(values.mean(axis=0), source, samples=300) for values in drawn]
    share = {
        name: np.mean([low <= 0 <= high for low, high in each]) for name, each in (("both", both), ("users", users))
    }
    # Eight seeds have a normal quantile where Student's is a fifth larger: a little too narrow.
    assert 0.88 <= share["both"] <= 1
    assert share["users"] < 0.85


def test_p_over_seeds_is_below_a_level_where_the_interval_leaves_0_out():
    source = np.random.default_rng(8)
    for shift in (0.0, 0.25, 0.4, 0.8):
        values = crossed(source, 3, 50, of_seeds=0.1, of_users=1) + shift
        low, high = bootstrap_interval(values, rng(), samples=20_000)
        p = bootstrap_p(values, rng())
        assert (p < 0.045) <= (not low <= 0 <= high) <= (p < 0.055)
    assert bootstrap_p(np.zeros((3, 9)), rng()) == 1
    assert bootstrap_p(np.ones((3, 9)), rng(), samples=99) == 2 / 100


def test_not_worse_is_shown_by_an_interval_and_not_by_a_large_p():
    same, few = np.tile([0.0, 1.0], 2000), np.array([0.0, 1.0, 1.0, 0.0])
    assert compare(same, same, rng()).is_not_worse
    unsure = compare(few, few[::-1] * 0.5, rng())
    assert unsure.p > 0.1
    assert not compare(few, np.array([1.0, 1.0, 0.0, 0.0]), rng()).is_not_worse
    worse = np.where(np.arange(4000) < 40, 0.0, same)
    assert not compare(worse, same, rng()).is_not_worse
    assert compare(worse, same, rng(), margin=0.02).is_not_worse


def test_a_comparison_is_a_part_of_a_row():
    assert significance.Comparison(0.25, significance.Interval(0.0, 0.5), 0.04).row() == {
        "difference": 0.25, "ci95": [0.0, 0.5], "p": 0.04, "margin": 0.005, "is_not_worse": True,
    }  # fmt: skip
