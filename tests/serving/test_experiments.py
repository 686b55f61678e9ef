"""Rates of an experiment's groups: by hand, by simulation, and from the store."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from allrec.errors import InputError
from allrec.serving.experiments import compare_groups, difference, experiment_result, rate_over_users
from allrec.serving.store import Answer, Event, Experiment, Feedback

PAIR = Experiment("x", {"old": {"share": 1}, "new": {"share": 1}})


def test_one_answer_a_user_gives_the_interval_of_two_proportions():
    ones = np.ones(10, dtype=int)
    first, second = rate_over_users(ones, np.arange(10) < 2), rate_over_users(ones, np.arange(10) < 5)
    assert first.variance == pytest.approx(0.2 * 0.8 / 9)
    assert second.variance == pytest.approx(0.5 * 0.5 / 9)
    found = difference(first, second)
    a, b = np.arange(10) < 2, np.arange(10) < 5
    expected = stats.ttest_ind(b.astype(float), a.astype(float), equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(0.5 - 0.2)
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_the_variance_is_that_of_users_and_not_of_answers():
    """Users that click at all of their answers or at none count once each, however many answers they got."""
    hundred = np.full(10, 100)
    rate = rate_over_users(hundred, hundred * (np.arange(10) < 5))
    assert rate.value == 0.5
    assert rate.variance == pytest.approx(0.5 * 0.5 / 9)


def test_users_with_more_answers_weigh_more():
    rate = rate_over_users(np.array([1, 3]), np.array([1, 0]))
    assert rate.value == 1 / 4
    # Residuals 1 - 1/4 and 0 - 3/4; two users; four answers.
    assert rate.variance == pytest.approx(2 / 1 * (0.75**2 + 0.75**2) / 4**2)


def test_too_little_to_tell_has_no_interval():
    one = np.array([1])
    assert rate_over_users(np.array([], dtype=int), np.array([], dtype=int)) is None
    assert difference(rate_over_users(one, one), rate_over_users(one, 0 * one)).interval is None
    same = rate_over_users(np.ones(5), np.zeros(5))
    assert difference(same, rate_over_users(np.ones(5), np.arange(5) < 2)).interval is None
    assert difference(None, same) is None


def simulated(rng, rate, num_users=300):
    """Answers of different numbers; each user clicks with a probability of their own, of mean ``rate``."""
    answers = rng.geometric(0.2, num_users)
    hits = rng.binomial(answers, rng.beta(4 * rate, 4 * (1 - rate), num_users))
    return np.stack([answers, hits, hits // 2], axis=1)


def test_nineteen_of_twenty_intervals_hold_the_true_difference():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(1000):
        found = compare_groups(PAIR, {"old": simulated(rng, 0.2), "new": simulated(rng, 0.3)})
        low, high = found.groups["new"].differences["click_rate"].interval
        covered.append(low <= 0.3 - 0.2 <= high)
    # Four standard deviations of a share of 1000, and the half per cent that the delta method may be off by.
    assert abs(np.mean(covered) - 0.95) < 4 * sqrt(0.95 * 0.05 / 1000) + 0.005


def test_intervals_that_take_answers_for_users_would_hold_too_seldom():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        rates = []
        for rate in (0.2, 0.3):
            answers, hits, _ = simulated(rng, rate).T
            share = hits.sum() / answers.sum()
            rates.append((share, share * (1 - share) / answers.sum()))
        half = 1.96 * sqrt(rates[0][1] + rates[1][1])
        covered.append(abs(rates[1][0] - rates[0][0] - 0.1) <= half)
    assert np.mean(covered) < 0.85


def given(number, user, group, experiment="x"):
    return Answer(f"r{number}", user, ("a",), 1, "fusion", float(number), None, experiment, group)


def test_clicks_and_purchases_are_counted_by_answer_and_user(store):
    store.put_experiment("t", PAIR)
    shown = [("u", "old"), ("u", "old"), ("v", "old"), ("w", "new"), (None, "new"), (None, "new")]
    store.add_answers("t", [given(number, *entry) for number, entry in enumerate(shown)])
    store.add_answers("t", [given(99, "u", "new", "another experiment")])
    store.add_feedback("t", [Feedback("r0", item, "click", 1.0) for item in ("a", "b")])
    store.add_feedback("t", [Feedback("r1", "a", "impression", 1.0), Feedback("r3", "a", "click", 1.0)])
    bought = Event("e1", "u", "a", "purchase", 1.0, recommendation_id="r0")
    store.add_events("t", [bought, replace(bought, event_id="e2"), replace(bought, event_id="e3", kind="view")])
    store.add_events("t", [replace(bought, event_id="e4", kind="view", recommendation_id="r4")])
    store.add_answers("other", [given(0, "u", "old")])
    found = experiment_result(store, "t", "x")
    old, new = found.groups["old"], found.groups["new"]
    assert (old.num_users, old.num_answers, old.rates) == (2, 3, {"click_rate": 1 / 3, "conversion_rate": 1 / 3})
    assert (new.num_users, new.num_answers, new.rates) == (3, 3, {"click_rate": 1 / 3, "conversion_rate": 0.0})
    assert old.differences == {}
    assert new.differences["click_rate"].value == 0
    assert new.differences["conversion_rate"].interval is None
    assert "one look" in found.note


def test_an_experiment_without_answers_has_no_rates(store):
    store.put_experiment("t", PAIR)
    found = experiment_result(store, "t", "x").groups["new"]
    assert found.rates == found.differences == {"click_rate": None, "conversion_rate": None}


def test_an_unknown_experiment_is_refused(store):
    store.put_experiment("t", PAIR)
    with pytest.raises(InputError, match=r"no experiment 'y': .*known: x"):
        experiment_result(store, "t", "y")
