"""Rows of ``metrics.json``: ranks under a protocol become metrics by segment, with intervals and paired tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from allrec.data import Dataset, Targets
from allrec.evaluation.metrics import gains_at, hits_at, summary
from allrec.evaluation.ranking import Excluded
from allrec.evaluation.significance import bootstrap_interval, compare, holm

Values = Callable[[Int[ndarray, "users"]], Float[ndarray, "users"]]
METRIC_VALUES: dict[str, Values] = {
    "HR@1": lambda ranks: hits_at(ranks, 1),
    "NDCG@10": lambda ranks: gains_at(ranks, 10),
}
"""The metrics that get an interval and a paired test, as one value a user."""


@dataclass(frozen=True)
class Ranking:
    """What one scorer did under one protocol on one split.

    Attributes:
        split: "valid" or "test".
        protocol: "paper", "sampled-99", "full" or "full-repeat".
        scorer: the evidence or baseline that scored.
        rows: which rows of the split's targets were scored.
        ranks: the targets' 0-based ranks, ties against us.
        seconds: time spent scoring.
        is_retrieved: whether retrieval found each target; None where all of the candidates were scored.
    """

    split: str
    protocol: str
    scorer: str
    rows: Int[ndarray, "scored"]
    ranks: Int[ndarray, "scored"]
    seconds: float = 0.0
    is_retrieved: Bool[ndarray, "scored"] | None = None


def result_rows(
    ranking: Ranking, masks: Mapping[str, Bool[ndarray, "rows"]], seed: int, scenario: str = "standard"
) -> list[dict[str, Any]]:
    """A row of ``metrics.json`` for each segment that holds a scored user.

    Args:
        ranking: the ranks.
        masks: a mask over all rows of the split for each segment.
        seed: of the bootstrap.
        scenario: in which the ranks were found.
    """
    rows = []
    for segment, mask in masks.items():
        chosen = mask[ranking.rows]
        ranks = ranking.ranks[chosen]
        if len(ranks) == 0:
            continue
        found = ranking.is_retrieved
        recall = {} if found is None else {"retrieved": float(found[chosen].mean())}
        rng = np.random.default_rng([seed, len(ranks)])
        intervals = {name: list(bootstrap_interval(values(ranks), rng)) for name, values in METRIC_VALUES.items()}
        rows.append(
            {"scenario": scenario, "split": ranking.split, "protocol": ranking.protocol, "scorer": ranking.scorer}
            | {"segment": segment, "users": len(ranks)}
            | summary(ranks)
            | recall
            | {"ci95": intervals, "invalid": 0}
        )
    return rows


def own_results(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the scenario that a run was trained for; those of ``cross-domain`` join them later."""
    own = metrics["dataset"].get("scenario", "standard")
    return [row for row in metrics["results"] if row["scenario"] == own]


def comparison_rows(rankings: list[Ranking], seed: int) -> list[dict[str, Any]]:
    """Every later scorer against the first of its split and protocol, over the users that both scored.

    Positive differences speak for the first. p is two-sided, from a paired permutation test.
    """
    groups: dict[tuple[str, str], list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault((ranking.split, ranking.protocol), []).append(ranking)
    return [
        _comparison(first, second, name, seed)
        for group in groups.values()
        for first, second in _against_first(group)
        for name in METRIC_VALUES
    ]


def _against_first(group: list[Ranking]) -> list[tuple[Ranking, Ranking]]:
    return [(group[0], other) for other in group[1:]]


def _comparison(first: Ranking, second: Ranking, metric: str, seed: int) -> dict[str, Any]:
    _, ours, theirs = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    values = METRIC_VALUES[metric]
    result = compare(values(first.ranks[ours]), values(second.ranks[theirs]), np.random.default_rng([seed, len(ours)]))
    return {
        "split": first.split, "protocol": first.protocol, "metric": metric, "scorer": first.scorer,
        "against": second.scorer, "users": len(ours), "difference": result.difference,
        "ci95": list(result.interval), "p": result.p,
    }  # fmt: skip


def corrected(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with ``p_holm`` besides: p corrected for all tests of the same split, protocol and metric."""
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in comparisons:
        families.setdefault((row["split"], row["protocol"], row["metric"]), []).append(row)
    adjusted = {
        id(row): float(p)
        for family in families.values()
        for row, p in zip(family, holm(np.array([row["p"] for row in family])), strict=True)
    }
    return [row | {"p_holm": adjusted[id(row)]} for row in comparisons]


def excluded_history(dataset: Dataset, targets: Targets, rows: Int[ndarray, "scored"]) -> Excluded:
    """What protocol ``full`` takes out of the catalogue: the items before each target."""
    starts = dataset.offsets[targets.users[rows]]
    return Excluded(starts, starts + targets.positions[rows], dataset.items)


def sample_rows(num_rows: int, size: int | None, seed: int) -> Int[ndarray, "scored"]:
    """A fixed random sample of a split's rows, ascending; all of them where ``size`` is None or not smaller.

    A smaller sample is part of every larger one, so that two scorers share as many users as they can.
    """
    if size is None or size >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng([seed, num_rows]).permutation(num_rows)[:size])
