"""Rows of metrics.json: ranks become metrics by segment, with intervals and paired tests; and ranks on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray

from allrec import seeds
from allrec.data.dataset import Dataset
from allrec.evaluation.metrics import METRICS, chance, summary, tested_metrics
from allrec.evaluation.segments import segments
from allrec.evaluation.significance import bootstrap_interval, compare, holm
from allrec.files import load_tensors, save_tensors


@dataclass(frozen=True)
class Ranking:
    """What one scorer did under one protocol on one split.

    Attributes:
        split: "valid" or "test".
        protocol: what the targets were ranked among, an ``EvaluationProtocol``.
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
        intervals = {
            name: list(bootstrap_interval(metric.by_user(ranks), rng)) for name, metric in tested_metrics().items()
        }
        rows.append(
            {"scenario": scenario, "split": ranking.split, "protocol": ranking.protocol, "scorer": ranking.scorer}
            | {"segment": segment, "users": len(ranks)}
            | summary(ranks)
            | recall
            | {"ci95": intervals}
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
        for name in tested_metrics()
    ]


def _against_first(group: list[Ranking]) -> list[tuple[Ranking, Ranking]]:
    return [(group[0], other) for other in group[1:]]


def _comparison(first: Ranking, second: Ranking, metric: str, seed: int) -> dict[str, Any]:
    _, ours, theirs = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    values = METRICS[metric].by_user
    result = compare(
        values(first.ranks[ours]),
        values(second.ranks[theirs]),
        seeds.rng(seed, "paired", first.split, first.protocol, metric),
    )
    return {
        "split": first.split, "protocol": first.protocol, "metric": metric, "scorer": first.scorer,
        "against": second.scorer, "users": len(ours), **result.row(),
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


def chances(dataset: Dataset, rankings: Sequence[Ranking]) -> dict[str, dict[str, float]]:
    """What a random order gives, by protocol: a mean over test lists as long as they are, or validation's lists."""
    splits: dict[str, set[str]] = {}
    for ranking in rankings:
        splits.setdefault(ranking.protocol, set()).add(ranking.split)
    levels = {}
    for protocol, among in sorted(splits.items()):
        listed = dataset.targets["test" if "test" in among else "valid"].candidates.get(protocol)
        sizes = np.array([dataset.num_items]) if listed is None else (listed >= 0).sum(axis=1)
        lengths, counts = np.unique(sizes, return_counts=True)
        shares = counts / counts.sum()
        levels[protocol] = {name: float(shares @ [chance(name, int(length)) for length in lengths]) for name in METRICS}
    return levels


def metrics_of(
    head: Mapping[str, Any],
    dataset: Dataset,
    rankings: Sequence[Ranking],
    *,
    leads: Sequence[str],
    seed: int,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``metrics.json`` holds.

    Args:
        head: format, data set, recipe, seed, language model and seconds of the run.
        dataset: the run's.
        rankings: of this evaluation and of earlier ones, as ``with_earlier`` joins them.
        leads: scorers that the others are tested against; each of them against the ones after it alone.
        seed: of intervals and tests.
        earlier: what ``metrics.json`` held; rows of other data sets that joined it stay.
    """
    masks = {split: segments(dataset, dataset.targets[split]) for split in {ranking.split for ranking in rankings}}
    rows = [row for one in rankings for row in result_rows(one, masks[one.split], seed, dataset.scenario)]
    tests = [row for place in range(len(leads)) for row in comparison_rows(_led_by(leads, place, rankings), seed)]
    return {
        **head,
        "scoring_seconds": scoring_seconds(earlier, rankings),
        "chance": chances(dataset, rankings),
        "results": rows + [row for row in earlier.get("results", []) if "dataset" in row],
        "comparisons": corrected(tests),
        "other_datasets": earlier.get("other_datasets", {}),
    }


def scoring_seconds(earlier: Mapping[str, Any], rankings: Sequence[Ranking]) -> dict[str, float]:
    """Time by scorer, over splits, protocols and evaluations; scores that an earlier attempt kept count as read."""
    seconds: dict[str, float] = dict(earlier.get("scoring_seconds", {}))
    for ranking in rankings:
        seconds[ranking.scorer] = seconds.get(ranking.scorer, 0.0) + ranking.seconds
    return seconds


def _led_by(leads: Sequence[str], place: int, rankings: Sequence[Ranking]) -> list[Ranking]:
    """The rankings that a lead is tested against, its own first; earlier leads were tested against it already."""
    groups = {(ranking.split, ranking.protocol) for ranking in rankings if ranking.scorer == leads[place]}
    chosen = [
        ranking
        for ranking in rankings
        if (ranking.split, ranking.protocol) in groups and ranking.scorer not in leads[:place]
    ]
    return sorted(chosen, key=lambda ranking: ranking.scorer != leads[place])
