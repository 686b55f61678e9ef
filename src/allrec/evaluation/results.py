"""Rows of metrics.json: ranks become metrics by segment, with intervals and paired tests; and ranks on disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from allrec import seeds
from allrec.data.dataset import Dataset
from allrec.evaluation.metrics import gains_at, hits_at, summary
from allrec.evaluation.significance import bootstrap_interval, compare, holm
from allrec.files import load_tensors, save_tensors

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
        rng = seeds.rng(seed, "interval", ranking.split, ranking.protocol, segment)
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
    result = compare(
        values(first.ranks[ours]),
        values(second.ranks[theirs]),
        seeds.rng(seed, "paired", first.split, first.protocol, metric),
    )
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


RANKS = "ranks.safetensors"


class StoredRanks(NamedTuple):
    """What an evaluation found.

    Attributes:
        rankings: by (split, protocol, scorer).
        targets: the target item of every row of a split.
    """

    rankings: dict[tuple[str, str, str], Ranking]
    targets: dict[str, Int[ndarray, "rows"]]


def save_ranks(folder: Path, rankings: list[Ranking], dataset: Dataset) -> None:
    """Writes ``ranks.safetensors``: ``split/protocol/scorer/rows`` and ``.../ranks``, and ``split/targets``.

    Where retrieval chose the candidates, ``.../found`` says where it found the target.
    """
    arrays: dict[str, ndarray] = {}
    for ranking in rankings:
        key = f"{ranking.split}/{ranking.protocol}/{ranking.scorer}"
        arrays |= {f"{key}/rows": ranking.rows, f"{key}/ranks": ranking.ranks}
        if ranking.is_retrieved is not None:
            arrays[f"{key}/found"] = ranking.is_retrieved
        arrays[f"{ranking.split}/targets"] = dataset.targets[ranking.split].items
    tensors = {key: torch.from_numpy(np.array(values, np.int64)) for key, values in arrays.items()}
    save_tensors(folder / RANKS, tensors)


def with_earlier(folder: Path, rankings: list[Ranking]) -> list[Ranking]:
    """What earlier evaluations of the run found and this one did not ask for, then what this one found."""
    if not (folder / RANKS).is_file():
        return rankings
    found = {(ranking.split, ranking.protocol, ranking.scorer) for ranking in rankings}
    return [ranking for key, ranking in load_ranks(folder).rankings.items() if key not in found] + rankings


def load_ranks(folder: Path) -> StoredRanks:
    """Reads what ``save_ranks`` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    arrays = {key: tensor.numpy() for key, tensor in load_tensors(folder / RANKS).items()}
    rankings, targets = {}, {}
    for key, values in arrays.items():
        match key.split("/"):
            case [split, protocol, scorer, "ranks"]:
                start = f"{split}/{protocol}/{scorer}"
                rows, found = arrays[f"{start}/rows"], arrays.get(f"{start}/found")
                is_retrieved = None if found is None else found > 0
                rankings[split, protocol, scorer] = Ranking(split, protocol, scorer, rows, values, 0.0, is_retrieved)
            case [split, "targets"]:
                targets[split] = values
    return StoredRanks(rankings, targets)
