"""What an experiment shows: click and conversion rates of its groups, and their differences with intervals.

The rates are shares of answers with at least one click, and with at least one purchase. One user's answers are alike,
so that users are the sample: a rate is a ratio of two sums over users, and its variance comes by the delta method
(Deng, Knoblich and Lu, KDD 2018, arXiv:1803.06336).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from scipy import stats
from sqlalchemy import and_, case, func, select

from allrec.errors import InputError, nearest
from allrec.serving.records import Experiment
from allrec.serving.schema import answers, events, feedback
from allrec.serving.store import Store

NOTE = (
    "An interval holds for one look, at a time that was fixed before the experiment began. "
    "Who looks often and stops at the first difference finds one too often."
)
CONFIDENCE = 0.95
MEASURES = ("click_rate", "conversion_rate")


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of answers, with its variance over users; the variance is None for fewer than two users."""

    value: float
    variance: float | None
    num_users: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A group's rate less that of the first group; the interval is None where there is too little to tell one."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What a group's users did."""

    num_users: int
    num_answers: int
    rates: dict[str, float | None]
    differences: dict[str, Difference | None]  # from the first group, which has none


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """The groups in the order of the experiment; the first is what the others are compared with."""

    name: str
    groups: dict[str, GroupResult]
    confidence: float = CONFIDENCE
    note: str = NOTE


def experiment_result(store: Store, tenant: str, name: str) -> ExperimentResult:
    """Reads an experiment's answers, clicks and purchases, and compares its groups.

    Raises:
        InputError: the tenant has no experiment of that name.
    """
    known = store.experiments(tenant)
    if name not in known:
        raise InputError(f"no experiment {name!r}: {nearest(name, list(known))}")
    return compare_groups(known[name], _counts_by_user(store, tenant, name))


def compare_groups(experiment: Experiment, counts: Mapping[str, np.ndarray]) -> ExperimentResult:
    """Compares an experiment's groups.

    Args:
        counts: group to (user, 3): a user's answers, those with a click, those with a purchase.
    """
    none = np.zeros((0, 3), dtype=np.int64)
    by_group = {group: counts.get(group, none) for group in experiment.groups}
    rates = {
        group: {measure: rate_over_users(table[:, 0], table[:, 1 + place]) for place, measure in enumerate(MEASURES)}
        for group, table in by_group.items()
    }
    first = next(iter(rates))
    groups = {
        group: GroupResult(
            num_users=len(table),
            num_answers=int(table[:, 0].sum()),
            rates={measure: rate.value if rate else None for measure, rate in rates[group].items()},
            differences={m: difference(rates[first][m], rates[group][m]) for m in MEASURES if group != first},
        )
        for group, table in by_group.items()
    }
    return ExperimentResult(experiment.name, groups)


def rate_over_users(num_answers: np.ndarray, num_hits: np.ndarray) -> Rate | None:
    """Hits in answers, and the rate's variance when users are drawn; None without an answer.

    Args:
        num_answers: (user,) answers that a user got, at least 1.
        num_hits: (user,) those of them with a click, or a purchase.
    """
    num_users = len(num_answers)
    if not num_users:
        return None
    value = float(num_hits.sum() / num_answers.sum())
    if num_users < 2:
        return Rate(value, None, num_users)
    residuals = num_hits - value * num_answers
    variance = num_users / (num_users - 1) * float((residuals**2).sum()) / float(num_answers.sum()) ** 2
    return Rate(value, variance, num_users)


def difference(first: Rate | None, second: Rate | None) -> Difference | None:
    """The second rate less the first, with Welch's interval; None where a group has no answer.

    The interval is None where a group has fewer than two users, or all of a group's users have the same rate.
    """
    if first is None or second is None:
        return None
    value = second.value - first.value
    if not first.variance or not second.variance:
        return Difference(value, None)
    variance = first.variance + second.variance
    freedom = variance**2 / (first.variance**2 / (first.num_users - 1) + second.variance**2 / (second.num_users - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * sqrt(variance)
    return Difference(value, (value - half, value + half))


def _counts_by_user(store: Store, tenant: str, name: str) -> dict[str, np.ndarray]:
    clicked = (
        select(feedback.c.recommendation_id)
        .where(feedback.c.tenant == tenant, feedback.c.kind == "click")
        .distinct()
        .subquery()
    )
    bought = (
        select(events.c.recommendation_id)
        .where(events.c.tenant == tenant, events.c.kind == "purchase", events.c.recommendation_id.is_not(None))
        .distinct()
        .subquery()
    )
    # Answers to nobody in particular are each a user of their own.
    stranger = case((answers.c.user_id.is_(None), answers.c.recommendation_id))
    query = (
        select(
            answers.c.experiment_group,
            func.count().label("num_answers"),
            func.count(clicked.c.recommendation_id),
            func.count(bought.c.recommendation_id),
        )
        .select_from(
            answers.outerjoin(clicked, clicked.c.recommendation_id == answers.c.recommendation_id).outerjoin(
                bought, bought.c.recommendation_id == answers.c.recommendation_id
            )
        )
        .where(and_(answers.c.tenant == tenant, answers.c.experiment == name))
        .group_by(answers.c.experiment_group, answers.c.user_id, stranger)
    )
    with store.database.read() as connection:
        return _grouped(connection.execute(query).all())


def _grouped(rows: Iterable[Any]) -> dict[str, np.ndarray]:
    tables: dict[str, list[tuple[int, ...]]] = {}
    for group, *counts in rows:
        tables.setdefault(group, []).append(tuple(counts))
    return {group: np.array(table) for group, table in tables.items()}
