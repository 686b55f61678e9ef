"""From finished runs to the numbers of a table: means with intervals over seeds, and paired tests over users."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec.config import Recipe
from allrec.evaluation.metrics import gains_at, hits_at
from allrec.evaluation.protocols import Values
from allrec.evaluation.significance import Interval, bootstrap_interval, holm
from allrec.evaluation.significance import compare as compare_users
from allrec.evaluation.stored_ranks import StoredRanks, load_ranks
from allrec.experiments.rows import Row, run_name
from allrec.run_folder import RunFolder

METRICS: dict[str, Values] = {
    "NDCG@10": lambda ranks: gains_at(ranks, 10),
    "HR@10": lambda ranks: hits_at(ranks, 10),
    "HR@1": lambda ranks: hits_at(ranks, 1),
}
SPLITS = ("valid", "test")
TRAINING = {
    "llm": ("backbone", "text", "alignment", "language_model"),
    "cf": ("backbone",),
    "text": ("text",),
    "fusion": ("backbone", "text", "alignment", "content", "ensemble", "fusion"),
    "readout": ("backbone", "text", "alignment", "language_model", "readout"),
    "allround": ("backbone", "text", "alignment", "content", "ensemble", "language_model", "readout", "fusion"),
}
"""The stages that a row's time counts; a backbone alone needs no other."""
EVIDENCE = ("cf", "joint", "text", "fusion", "llm", "llm-random-items", "llm-no-soft", "readout", "allround")
TESTS = ("against_first", "against_random_items")
LEVEL = 0.05
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5% point of Student's t for 1 to 30 degrees of freedom."""


@dataclass
class Result:
    """A row with its finished runs, one a seed.

    Attributes:
        row: what was asked for.
        runs: in the order of the seeds.
        users: rows of each split that count; all where a split is missing.
    """

    row: Row
    runs: list[RunFolder]
    users: dict[str, Int[ndarray, "users"]] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """``metrics.json`` of each run."""
        return [run.metrics() for run in self.runs]

    @cached_property
    def stored(self) -> list[StoredRanks]:
        """The ranks of each run."""
        return [load_ranks(run.folder("evaluate")) for run in self.runs]

    @property
    def protocol(self) -> str:
        """The protocol of the table: the paper's, where the row has it."""
        protocols = self.row.recipe.evaluation.protocols
        return "paper" if "paper" in protocols else protocols[0]

    def ranks(self, split: str, scorer: str) -> list[tuple[Int[ndarray, "users"], Int[ndarray, "users"]]]:
        """Rows and ranks of each run; empty where a run lacks them."""
        key = (split, self.protocol, scorer)
        found = [stored.rankings[key] for stored in self.stored if key in stored.rankings]
        if len(found) < len(self.runs):
            return []
        kept = [np.isin(one.rows, self.users.get(split, one.rows)) for one in found]
        return [(one.rows[mask], one.ranks[mask]) for one, mask in zip(found, kept, strict=True) if mask.any()]

    def cells(self, split: str, scorer: str) -> dict[str, list[float]]:
        """Mean, low and high of every metric."""
        ranks = [ranks for _, ranks in self.ranks(split, scorer)]
        return {name: cell([values(one) for one in ranks]) for name, values in METRICS.items()} if ranks else {}

    def by_user(self, metric: str, scorer: str) -> tuple[Int[ndarray, "users"], Float[ndarray, "users"]]:
        """The test users that every seed scored, and each one's mean over the seeds."""
        ranks = self.ranks("test", scorer)
        users = reduce(np.intersect1d, [rows for rows, _ in ranks], ranks[0][0] if ranks else np.zeros(0, np.int64))
        values = [METRICS[metric](ranks)[np.searchsorted(rows, users)] for rows, ranks in ranks]
        return users, np.mean(values, axis=0) if values else np.zeros(0)


def summarise(runs: Path, rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, Any]:
    """The whole table as plain values, for ``compare.json`` and everything that shows it.

    Args:
        runs: the folder of the runs.
        rows: the rows; the others are tested against the first.
        seeds: of each row's runs.
    """
    results = [Result(row, [RunFolder.open(runs / run_name(row, seed)) for seed in seeds]) for row in rows]
    users = shared_users(results)
    for result in results:
        result.users = users
    first = results[0]
    one_a_run = {result.row.run: result for result in results}.values()
    chance = first.metrics[0]["chance"][first.protocol]
    table = [table_row(result, result.row.scorer, first) for result in results]
    for kind in TESTS:
        correct([row[kind] for row in table if row[kind] is not None])
    return {
        "dataset": first.runs[0].manifest["dataset"]["name"],
        "protocol": first.protocol,
        "seeds": list(seeds),
        "chance": {name: chance[name] for name in METRICS},
        "rows": table,
        "evidence": [table_row(result, scorer, None) for result in one_a_run for scorer in EVIDENCE
                     if result.ranks("test", scorer)],
    }  # fmt: skip


def shared_users(results: Sequence[Result]) -> dict[str, Int[ndarray, "users"]]:
    """The rows of each split that every result scored with every seed, so that the table compares like with like."""
    found = {}
    for split in SPLITS:
        scored = [rows for result in results for rows, _ in result.ranks(split, result.row.scorer)]
        if scored and len(shared := reduce(np.intersect1d, scored)):
            found[split] = shared
    return found


def table_row(result: Result, scorer: str, first: Result | None) -> dict[str, Any]:
    """One row: who, with which language model, seconds, numbers of users, metrics, tests."""
    is_first = first is not None and first.row == result.row
    is_table = first is not None and scorer == "llm"
    row = {
        "name": result.row.name if first is not None else result.row.recipe.name,
        "run": result.row.run,
        "scorer": scorer,
        "llm": llm_label(result.runs[0].recipe()) if scorer.startswith("llm") else "",
        "seeds": len(result.runs),
        "seconds": seconds(result, scorer),
        "users": {split: len(ranks[0][0]) for split in SPLITS if (ranks := result.ranks(split, scorer))},
    }
    row |= {split: result.cells(split, scorer) for split in SPLITS}
    row["against_first"] = None if first is None or is_first else tests(result, scorer, first, first.row.scorer)
    row["against_random_items"] = tests(result, "llm", result, "llm-random-items") if is_table else None
    return row


def seconds(result: Result, scorer: str) -> dict[str, float]:
    """Mean seconds over the seeds, as if each run had been alone: a stage that was taken over counts with its own."""
    stages = TRAINING.get(scorer, TRAINING["llm"])
    training = float(np.mean([sum(run.seconds(stage) for stage in stages) for run in result.runs]))
    if scorer == "llm":
        inference = float(np.mean([run.seconds("evaluate") for run in result.runs]))
    else:
        inference = float(np.mean([metrics["scoring_seconds"][scorer] for metrics in result.metrics]))
    return {"training": training, "inference": inference, "total": training + inference}


def tests(ours: Result, scorer: str, theirs: Result, against: str) -> dict[str, Any] | None:
    """Paired comparison on the test users that both scored; None where there are none."""
    found = {}
    for metric in METRICS:
        our_users, our_values = ours.by_user(metric, scorer)
        their_users, their_values = theirs.by_user(metric, against)
        _, mine, other = np.intersect1d(our_users, their_users, assume_unique=True, return_indices=True)
        if len(mine) == 0:
            return None
        result = compare_users(our_values[mine], their_values[other], np.random.default_rng([0, len(mine)]))
        found[metric] = {
            "difference": result.difference, "ci95": list(result.interval), "p": result.p, "users": len(mine),
        }  # fmt: skip
    return found


def correct(family: Sequence[dict[str, Any]]) -> None:
    """Adds ``p_holm`` to the tests of several rows: p corrected for all of them, each metric by itself."""
    for metric in METRICS:
        corrected = holm(np.array([test[metric]["p"] for test in family]))
        for test, p in zip(family, corrected, strict=True):
            test[metric]["p_holm"] = float(p)


def p_of(test: dict[str, Any]) -> float:
    """The corrected p of a test, or its own where it stands alone."""
    return float(test.get("p_holm", test["p"]))


def is_above(test: dict[str, Any] | None) -> bool:
    """Whether a paired test of HR@1 speaks for the row, corrected p below .05."""
    return test is not None and test["HR@1"]["difference"] > 0 and p_of(test["HR@1"]) < LEVEL


def cell(values: Sequence[Float[ndarray, "users"]]) -> list[float]:
    """Mean and 95% interval within 0 and 1: over seeds where there are several, else over users.

    Args:
        values: one value a user, for each seed.
    """
    means = np.array([one.mean() for one in values])
    low, high = seed_interval(means) if len(means) > 1 else bootstrap_interval(values[0], np.random.default_rng(0))
    return [float(means.mean()), max(0.0, low), min(1.0, high)]


def seed_interval(means: Float[ndarray, "seeds"]) -> Interval:
    """Student's 95% interval of a mean over at least two seeds."""
    freedom = len(means) - 1
    point = STUDENT[freedom - 1] if freedom <= len(STUDENT) else _student(freedom)
    width = point * float(means.std(ddof=1)) / len(means) ** 0.5
    return Interval(float(means.mean()) - width, float(means.mean()) + width)


def _student(freedom: int, z: float = 1.95996) -> float:
    # Expansion about the normal's point, good to four digits beyond the table: Abramowitz and Stegun, 26.7.5.
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def llm_label(recipe: Recipe) -> str:
    """Which language model was used, and in whose place."""
    chosen, published = recipe.llm.chosen, recipe.llm.published
    if chosen is None or chosen.name == published.name:
        return published.name
    return f"{chosen.name} in place of {published.name}"
