from itertools import combinations, product

import numpy as np
import pytest

from allrec.evaluation import significance
from allrec.evaluation.significance import bootstrap_interval, compare, holm, sign_flip_p, student_interval


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
    assert sign_flip_p(differences, np.zeros(7), rng(), samples=100_000) == pytest.approx(expected, abs=0.01)


def test_p_is_the_same_from_either_side_and_one_where_nothing_differs():
    first, second = np.random.default_rng(1).random((2, 60))
    assert sign_flip_p(first, second, rng()) == sign_flip_p(second, first, rng())
    assert sign_flip_p(first, first, rng()) == 1


def test_p_falls_with_the_evidence():
    ones = np.ones(400)
    few, many = (np.where(np.arange(400) < share, 0.0, 1.0) for share in (4, 40))
    assert sign_flip_p(ones, many, rng()) == 1 / (10 * significance.SAMPLES + 1)
    # Four users better and none worse: all signs equal in 2 of 2 ** 4 patterns.
    assert sign_flip_p(ones, few, rng()) == pytest.approx(2 / 2**4, abs=0.01)


def test_p_is_uniform_where_there_is_no_difference():
    source = np.random.default_rng(7)
    values = [sign_flip_p(source.random(30), source.random(30), source, samples=200) for _ in range(300)]
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
    assert 1 / (1 + 500) <= sign_flip_p(values, values[::-1], rng(), samples=500) <= 1


def test_unpaired_and_missing_values_are_refused():
    # Where shapes are checked while tests run, the annotation refuses it first.
    with pytest.raises((ValueError, TypeError), match=r"3 and 2 values, expected the same users|Type-check"):
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


def test_students_interval_has_the_quantile_in_closed_form():
    # One degree of freedom is Cauchy's distribution; with two, t = (2p - 1) · sqrt(2 / (4p(1 - p))).
    cauchy = np.tan(np.pi * (0.975 - 0.5))
    assert student_interval(np.array([0.0, 2.0])) == pytest.approx((1 - cauchy, 1 + cauchy))
    two = 0.95 * np.sqrt(2 / (4 * 0.975 * 0.025))
    assert student_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - two / 3**0.5, 2 + two / 3**0.5))
    narrow = student_interval(np.array([0.0, 2.0]), level=0.5)
    assert narrow == pytest.approx((1 - 1, 1 + 1))


def test_students_interval_of_one_mean_is_refused():
    with pytest.raises(ValueError, match="expected two at least"):
        student_interval(np.array([0.5]))


def test_a_comparison_is_a_part_of_a_row():
    assert significance.Comparison(0.25, significance.Interval(0.0, 0.5), 0.04).row() == {
        "difference": 0.25, "ci95": [0.0, 0.5], "p": 0.04,
    }  # fmt: skip
