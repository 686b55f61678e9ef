"""Rows of metrics.json: metrics by segment with intervals and paired tests, made of ranks; and ranks on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray

from allrec import seeds
from allrec.data.dataset import Dataset, Targets
from allrec.evaluation.metrics import METRICS, chance, summary, tested_metrics
from allrec.evaluation.segments import repeats, segments
from allrec.evaluation.significance import bootstrap_interval, compare, holm
from allrec.files import load_tensors, save_tensors


@dataclass(frozen=True)
class Ranking:
    """The ranks of one scorer under one protocol on one split.

    Attributes:
        split: "valid" or "test".
        protocol: what the targets were ranked among, an ``EvaluationProtocol``.
        scorer: the evidence or baseline that scored.
        rows: which rows of the split's targets were scored.
        ranks: the targets' 0-based ranks, ties against the target.
        seconds: time spent scoring.
        is_retrieved: whether each target is among the retrieved candidates; None where all candidates were scored.
    """

    split: str
    protocol: str
    scorer: str
    rows: Int[ndarray, "scored"]
    ranks: Int[ndarray, "scored"]
    seconds: float = 0.0
    is_retrieved: Bool[ndarray, "scored"] | None = None


Clusters = Mapping[str, Int[ndarray, "rows"]]
"""The number of each row's cluster, by split: see ``clusters_of``."""


def clusters_of(dataset: Dataset, targets: Targets) -> Int[ndarray, "rows"]:
    """Numbers the distinct pairs of history and target: users of one pair are one observation."""
    starts = dataset.offsets[targets.users]
    ends = starts + targets.positions
    return alike([dataset.items[start:end] for start, end in zip(starts, ends, strict=True)], targets.items)


def alike(histories: Sequence[Int[ndarray, "length"]], targets: Int[ndarray, "rows"]) -> Int[ndarray, "rows"]:
    """The same for histories of any source, oldest item first.

    Example:
        >>> alike([np.array([1, 2]), np.array([2, 1]), np.array([1, 2])], np.array([3, 3, 3])).tolist()
        [0, 1, 0]
    """
    numbers: dict[tuple[bytes, int], int] = {}
    pairs = zip(histories, targets.tolist(), strict=True)
    return np.array([numbers.setdefault((one.tobytes(), item), len(numbers)) for one, item in pairs], np.int64)


def result_rows(
    ranking: Ranking,
    masks: Mapping[str, Bool[ndarray, "rows"]],
    seed: int,
    scenario: str = "standard",
    clusters: Int[ndarray, "rows"] | None = None,
) -> list[dict[str, Any]]:
    """A row of ``metrics.json`` for each segment that holds a scored user.

    Args:
        ranking: the ranks.
        masks: a mask over all rows of the split for each segment.
        seed: of the bootstrap.
        scenario: that the ranks belong to.
        clusters: number of the cluster of every row of the split; None is each by itself.
    """
    rows = []
    for segment, mask in masks.items():
        chosen = mask[ranking.rows]
        ranks = ranking.ranks[chosen]
        if len(ranks) == 0:
            continue
        own = None if clusters is None else clusters[ranking.rows[chosen]]
        is_retrieved = ranking.is_retrieved
        recall = {} if is_retrieved is None else {"retrieved": float(is_retrieved[chosen].mean())}
        rng = seeds.rng(seed, "interval", ranking.split, ranking.protocol, segment)
        intervals = {
            name: list(bootstrap_interval(metric.by_user(ranks), rng, own)) for name, metric in tested_metrics().items()
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
    """The rows of the scenario that a run was trained for; without those of ``cross-domain``."""
    own = metrics["dataset"].get("scenario", "standard")
    return [row for row in metrics["results"] if row["scenario"] == own]


def comparison_rows(rankings: list[Ranking], seed: int, clusters: Clusters | None = None) -> list[dict[str, Any]]:
    """Every later scorer against the first of its split and protocol, over the users that both scored.

    Positive differences speak for the first. p is two-sided, from a paired permutation test; ``is_not_worse`` is
    whether the first is not worse than the other by more than ``margin``.
    """
    groups: dict[tuple[str, str], list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault((ranking.split, ranking.protocol), []).append(ranking)
    return [
        _comparison(first, other, name, seed, (clusters or {}).get(first.split))
        for first, *others in groups.values()
        for other in others
        for name in tested_metrics()
    ]


def _comparison(
    first: Ranking, second: Ranking, metric: str, seed: int, clusters: Int[ndarray, "rows"] | None
) -> dict[str, Any]:
    rows, ours, theirs = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    values = METRICS[metric].by_user
    result = compare(
        values(first.ranks[ours]),
        values(second.ranks[theirs]),
        seeds.rng(seed, "paired", first.split, first.protocol, metric),
        None if clusters is None else clusters[rows],
    )
    return {
        "split": first.split, "protocol": first.protocol, "metric": metric, "scorer": first.scorer,
        "against": second.scorer, "users": len(ours), **result.row(),
    }  # fmt: skip


def corrected(
    comparisons: list[dict[str, Any]], family_keys: Sequence[str] = ("split", "protocol", "metric")
) -> list[dict[str, Any]]:
    """The rows with ``p_holm`` added: p corrected by Holm for all tests that share the values of ``family_keys``."""
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in comparisons:
        families.setdefault(tuple(row[key] for key in family_keys), []).append(row)
    adjusted = {
        id(row): float(p)
        for family in families.values()
        for row, p in zip(family, holm(np.array([row["p"] for row in family])), strict=True)
    }
    return [row | {"p_holm": adjusted[id(row)]} for row in comparisons]


RANKS = "ranks.safetensors"


class StoredRanks(NamedTuple):
    """The stored ranks of a run's evaluations.

    Attributes:
        rankings: by (split, protocol, scorer).
        targets: the target item of every row of a split.
        clusters: the number of every row's cluster, see ``clusters_of``; lacks a split in a run of an earlier day.
        is_new: whether the target is not in the history; lacks the same.
    """

    rankings: dict[tuple[str, str, str], Ranking]
    targets: dict[str, Int[ndarray, "rows"]]
    clusters: dict[str, Int[ndarray, "rows"]]
    is_new: dict[str, Bool[ndarray, "rows"]]


def save_ranks(folder: Path, rankings: list[Ranking], dataset: Dataset) -> None:
    """Writes ``ranks.safetensors``: ``split/protocol/scorer/rows`` and ``.../ranks``, and facts of every target.

    These are ``split/targets``, ``split/clusters`` (see ``clusters_of``) and ``split/new`` (1 for no repeat). Where
    only retrieved candidates were scored, ``.../found`` is 1 for targets among them.
    """
    arrays: dict[str, ndarray] = {}
    for ranking in rankings:
        key = f"{ranking.split}/{ranking.protocol}/{ranking.scorer}"
        arrays |= {f"{key}/rows": ranking.rows, f"{key}/ranks": ranking.ranks}
        if ranking.is_retrieved is not None:
            arrays[f"{key}/found"] = ranking.is_retrieved
    for split in {ranking.split for ranking in rankings}:
        targets = dataset.targets[split]
        arrays |= {f"{split}/targets": targets.items, f"{split}/clusters": clusters_of(dataset, targets)}
        arrays[f"{split}/new"] = ~repeats(dataset, targets)
    tensors = {key: torch.from_numpy(np.array(values, np.int64)) for key, values in arrays.items()}
    save_tensors(folder / RANKS, tensors)


def with_earlier(folder: Path, rankings: list[Ranking]) -> list[Ranking]:
    """The rankings of earlier evaluations that this one does not replace, followed by this one's."""
    if not (folder / RANKS).is_file():
        return rankings
    replaced = {(ranking.split, ranking.protocol, ranking.scorer) for ranking in rankings}
    return [ranking for key, ranking in load_ranks(folder).rankings.items() if key not in replaced] + rankings


def load_ranks(folder: Path) -> StoredRanks:
    """Reads what ``save_ranks`` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    arrays = {key: tensor.numpy() for key, tensor in load_tensors(folder / RANKS).items()}
    rankings = {}
    facts: dict[str, dict[str, ndarray]] = {"targets": {}, "clusters": {}, "new": {}}
    for key, values in arrays.items():
        match key.split("/"):
            case [split, protocol, scorer, "ranks"]:
                start = f"{split}/{protocol}/{scorer}"
                rows, retrieved = arrays[f"{start}/rows"], arrays.get(f"{start}/found")
                is_retrieved = None if retrieved is None else retrieved > 0
                rankings[split, protocol, scorer] = Ranking(split, protocol, scorer, rows, values, 0.0, is_retrieved)
            case [split, fact]:
                facts[fact][split] = values
    is_new = {split: values > 0 for split, values in facts["new"].items()}
    return StoredRanks(rankings, facts["targets"], facts["clusters"], is_new)


def chances(dataset: Dataset, rankings: Sequence[Ranking]) -> dict[str, dict[str, float]]:
    """Chance level of every metric by protocol: a mean over the test lists' own lengths, or over validation's lists."""
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
    """The content of ``metrics.json``.

    Args:
        head: format, data set, recipe, seed, language model and seconds of the run.
        dataset: the run's.
        rankings: of this evaluation and of earlier ones, see ``with_earlier``.
        leads: scorers that the others are tested against; each lead is tested against the later ones only.
        seed: of intervals and tests.
        earlier: the content so far; its rows of other data sets are kept.
    """
    splits = {ranking.split: dataset.targets[ranking.split] for ranking in rankings}
    clusters = {split: clusters_of(dataset, targets) for split, targets in splits.items()}
    masks = {split: masks_of(dataset, targets, clusters[split]) for split, targets in splits.items()}
    rows = [
        row
        for one in rankings
        for row in result_rows(one, masks[one.split], seed, dataset.scenario, clusters[one.split])
    ]
    led = [_led_by(leads, place, rankings) for place in range(len(leads))]
    tests = [row for group in led for row in comparison_rows(group, seed, clusters)]
    return {
        **head,
        "scoring_seconds": scoring_seconds(earlier, rankings),
        "chance": chances(dataset, rankings),
        "results": rows + [row for row in earlier.get("results", []) if "dataset" in row],
        "comparisons": corrected(tests),
        "other_datasets": earlier.get("other_datasets", {}),
    }


def masks_of(dataset: Dataset, targets: Targets, clusters: Int[ndarray, "rows"]) -> dict[str, Bool[ndarray, "rows"]]:
    """The segments, and ``distinct``: the first user of each cluster, so that equal users count once."""
    is_first = np.zeros(len(clusters), bool)
    is_first[np.unique(clusters, return_index=True)[1]] = True
    return segments(dataset, targets) | {"distinct": is_first}


def scoring_seconds(earlier: Mapping[str, Any], rankings: Sequence[Ranking]) -> dict[str, float]:
    """Time by scorer, over splits, protocols and evaluations; stored scores count the time of reading them."""
    seconds: dict[str, float] = dict(earlier.get("scoring_seconds", {}))
    for ranking in rankings:
        seconds[ranking.scorer] = seconds.get(ranking.scorer, 0.0) + ranking.seconds
    return seconds


def _led_by(leads: Sequence[str], place: int, rankings: Sequence[Ranking]) -> list[Ranking]:
    """The rankings that a lead is tested against, its own first; earlier leads are tested against it already."""
    groups = {(ranking.split, ranking.protocol) for ranking in rankings if ranking.scorer == leads[place]}
    chosen = [
        ranking
        for ranking in rankings
        if (ranking.split, ranking.protocol) in groups and ranking.scorer not in leads[:place]
    ]
    return sorted(chosen, key=lambda ranking: ranking.scorer != leads[place])
