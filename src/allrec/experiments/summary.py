"""The table of a comparison: means over seeds, intervals and paired tests, as values, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec import seeds
from allrec.config import Recipe
from allrec.evaluation.metrics import METRICS
from allrec.evaluation.results import StoredRanks, load_ranks
from allrec.evaluation.significance import MARGIN, Comparison, bootstrap_interval, holm
from allrec.evaluation.significance import compare as compare_users
from allrec.runs.run_folder import IN_PLACE, REFIT, RunFolder, llm_label
from allrec.runs.scorers import SCORERS

FUSION = "fusion"

SHOWN = {name: METRICS[name].by_user for name in ("NDCG@10", "HR@10", "HR@1")}
"""The metrics of the table."""
SPLITS = ("valid", "test")
TESTS = ("against_first", "against_random_items")
LEVEL = 0.05
NEW = ("NDCG@10", "HR@1")
"""The metrics that the table also has for targets that are new to the user."""
ABLATIONS = "ablations"
"""Folder inside a run, of the ranks of fusions that were fitted again without some evidence."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: in the table.
        run: first part of its runs' folder names; two rows may share their runs.
        recipe: complete but for the seed and the choice of language model.
        scorer: whose scores are the row's.
        left_out: evidence without which the run's fusion was fitted again for this row.
    """

    name: str
    run: str
    recipe: Recipe
    scorer: str = "llm"
    left_out: tuple[str, ...] = ()


def run_name(row: Row, seed: int) -> str:
    """The folder of a row's run."""
    return f"{row.run}-seed{seed}"


@dataclass
class Result:
    """A row with its finished runs, one a seed.

    Attributes:
        row: what was requested.
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
        if self.row.left_out:
            return [load_ranks(run.path / ABLATIONS / self.row.scorer) for run in self.runs]
        return [load_ranks(run.verified_folder("evaluate")) for run in self.runs]

    @property
    def protocol(self) -> str:
        """The protocol of the table: the paper's, where the row has it."""
        protocols = self.row.recipe.evaluation.protocols
        return "paper" if "paper" in protocols else protocols[0]

    def ranks(self, split: str, scorer: str) -> list[tuple[Int[ndarray, "users"], Int[ndarray, "users"]]]:
        """Rows and ranks of each run; empty where a run lacks them."""
        key = (split, self.protocol, scorer)
        rankings = [stored.rankings[key] for stored in self.stored if key in stored.rankings]
        if len(rankings) < len(self.runs):
            return []
        kept = [np.isin(one.rows, self.users.get(split, one.rows)) for one in rankings]
        return [(one.rows[mask], one.ranks[mask]) for one, mask in zip(rankings, kept, strict=True) if mask.any()]

    def by_seed(self, split: str, scorer: str) -> tuple[Int[ndarray, "users"], Int[ndarray, "seeds users"]]:
        """The users that every seed scored, and their ranks; none where a run lacks them."""
        ranks = self.ranks(split, scorer)
        if not ranks:
            return np.zeros(0, np.int64), np.zeros((len(self.runs), 0), np.int64)
        users = reduce(np.intersect1d, [rows for rows, _ in ranks])
        return users, np.stack([one[np.searchsorted(rows, users)] for rows, one in ranks])

    def clusters(self, split: str, users: Int[ndarray, "users"]) -> Int[ndarray, "users"] | None:
        """The numbers of users' clusters; None in runs of an earlier day."""
        own = self.stored[0].clusters.get(split)
        return None if own is None else own[users]

    def cells(self, split: str, scorer: str) -> dict[str, list[float]]:
        """Mean, low and high of every metric."""
        users, ranks = self.by_seed(split, scorer)
        clusters = self.clusters(split, users)
        return {name: cell(values_of(name, ranks), clusters) for name in SHOWN} if len(users) else {}

    def new_cells(self, scorer: str) -> dict[str, list[float]]:
        """The same of ``NEW`` over the test users whose target is not in their history."""
        users, ranks = self.by_seed("test", scorer)
        is_new = self.stored[0].is_new.get("test", np.zeros(0, bool))
        kept = is_new[users] if len(is_new) else np.zeros(len(users), bool)
        clusters = self.clusters("test", users[kept])
        return {name: cell(values_of(name, ranks[:, kept]), clusters) for name in NEW} if kept.any() else {}


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
    one_a_run = {result.row.run: result for result in results if not result.row.left_out}.values()
    chance = first.metrics[0]["chance"][first.protocol]
    table = [table_row(result, result.row.scorer, first) for result in results]
    for kind in TESTS:
        correct([row[kind] for row in table if row[kind] is not None])
    return {
        "dataset": first.runs[0].manifest["dataset"]["name"],
        "protocol": first.protocol,
        "seeds": list(seeds),
        "chance": {name: chance[name] for name in SHOWN},
        "rows": table,
        "evidence": [table_row(result, scorer, None) for result in one_a_run for scorer in with_refit()
                     if result.ranks("test", scorer)],
    }  # fmt: skip


def with_refit() -> tuple[str, ...]:
    """Every scorer, and each by refitted parts."""
    return (*SCORERS, *(f"{name}-{REFIT}" for name in SCORERS))


def shared_users(results: Sequence[Result]) -> dict[str, Int[ndarray, "users"]]:
    """The rows of each split that every result scored with every seed, so that the table compares like with like."""
    shared_rows = {}
    for split in SPLITS:
        scored = [rows for result in results for rows, _ in result.ranks(split, result.row.scorer)]
        if scored and len(shared := reduce(np.intersect1d, scored)):
            shared_rows[split] = shared
    return shared_rows


def table_row(result: Result, scorer: str, first: Result | None) -> dict[str, Any]:
    """One row: who, with which language model, seconds, numbers of users, metrics, tests."""
    is_first = first is not None and first.row == result.row
    is_table = first is not None and scorer == "llm"
    row = {
        "name": result.row.name if first is not None else result.row.recipe.name,
        "run": result.row.run,
        "scorer": scorer,
        "llm": llm_label(result.runs[0]) if scorer.startswith("llm") else "",
        "seeds": len(result.runs),
        "seconds": seconds(result, scorer),
        "users": {split: len(ranks[0][0]) for split in SPLITS if (ranks := result.ranks(split, scorer))},
    }
    row |= {split: result.cells(split, scorer) for split in SPLITS} | {"new": result.new_cells(scorer)}
    row["against_first"] = None if first is None or is_first else tests(result, scorer, first, first.row.scorer)
    row["against_random_items"] = tests(result, "llm", result, "llm-random-items") if is_table else None
    return row


def seconds(result: Result, scorer: str) -> dict[str, float]:
    """Mean seconds over the seeds, as if each run had run alone: a stage that was taken over counts its own time.

    Refitted parts count what they were before and the refit; a fusion that was fitted again counts as the whole one.
    """
    scorer = FUSION if result.row.left_out else scorer
    name = scorer.removesuffix(f"-{REFIT}")
    stages = SCORERS[name].stages + ((REFIT,) if name != scorer else ())
    training = float(np.mean([sum(map(run.seconds, stages)) for run in result.runs]))
    if scorer == "llm":
        inference = float(np.mean([run.seconds("evaluate") for run in result.runs]))
    else:
        inference = float(np.mean([metrics["scoring_seconds"][scorer] for metrics in result.metrics]))
    return {"training": training, "inference": inference, "total": training + inference}


def tests(ours: Result, scorer: str, theirs: Result, against: str) -> dict[str, Any] | None:
    """Paired comparison on the test users that both scored, over seeds and users; None where there are none."""
    our_users, our_ranks = ours.by_seed("test", scorer)
    their_users, their_ranks = theirs.by_seed("test", against)
    users, mine, other = np.intersect1d(our_users, their_users, assume_unique=True, return_indices=True)
    if len(users) == 0:
        return None
    clusters, rng = ours.clusters("test", users), seeds.rng(0, "comparison", "paired", len(users))
    compared: dict[str, Comparison] = {
        metric: compare_users(
            values_of(metric, our_ranks[:, mine]), values_of(metric, their_ranks[:, other]), rng, clusters
        )
        for metric in SHOWN
    }
    return {metric: one.row() | {"users": len(users)} for metric, one in compared.items()}


def correct(family: Sequence[dict[str, Any]]) -> None:
    """Adds ``p_holm`` to the tests of several rows: p corrected for all of them, each metric by itself."""
    for metric in SHOWN:
        corrected = holm(np.array([test[metric]["p"] for test in family]))
        for test, p in zip(family, corrected, strict=True):
            test[metric]["p_holm"] = float(p)


def p_of(test: dict[str, Any]) -> float:
    """The corrected p of a test, or its own where it is the only one."""
    return float(test.get("p_holm", test["p"]))


def is_above(test: dict[str, Any] | None) -> bool:
    """Whether the row is better by a paired test of HR@1, corrected p below .05."""
    return test is not None and test["HR@1"]["difference"] > 0 and p_of(test["HR@1"]) < LEVEL


def cell(values: Float[ndarray, "*seeds users"], clusters: Int[ndarray, "users"] | None = None) -> list[float]:
    """Mean and 95% interval within 0 and 1, over seeds and users: see ``bootstrap_interval``."""
    low, high = bootstrap_interval(values, seeds.rng(0, "comparison", "interval"), clusters)
    return [float(values.mean()), max(0.0, low), min(1.0, high)]


def values_of(metric: str, ranks: Sequence[Int[ndarray, "users"]] | Int[ndarray, "seeds users"]) -> ndarray:
    """A metric of every user under every seed."""
    return np.stack([SHOWN[metric](one) for one in ranks])


Cells = list[list[str]]
HEADER = (
    "recipe", "language model", "training, s", "inference, s",
    *(f"{split} {metric}" for split in SPLITS for metric in SHOWN), *(f"test, new targets {metric}" for metric in NEW),
    "test HR@1 less the first row's",
    "test HR@1 less its llm-random-items",
)  # fmt: skip


def cells(table: dict[str, Any]) -> Cells:
    """The table as text, a list a row, without its header; the last row is chance."""
    rows = [_cells(row) for row in table["rows"]]
    chance = [f"{table['chance'][metric]:.4f}" for metric in SHOWN]
    by_chance = [f"{table['chance'][metric]:.4f}" for metric in NEW]
    return [*rows, ["chance", "", "", "", *chance, *chance, *by_chance, "", ""]]


def evidence_cells(table: dict[str, Any]) -> Cells:
    """The scorers of every run: recipe, scorer, test users, then the metrics."""
    return [
        [row["name"], row["scorer"], f"{row['users'].get('test', 0):,}", *_metrics(row)] for row in table["evidence"]
    ]


EVIDENCE_HEADER = ("recipe", "scorer", "test users", *HEADER[4:-2])


def notes(table: dict[str, Any]) -> list[str]:
    """Notes on the table: data set, users, intervals, tests, language models, warnings."""
    seeds = table["seeds"]
    over = f"seeds ({', '.join(map(str, seeds))}) and users" if len(seeds) > 1 else f"users, seed {seeds[0]} alone"
    test = "bootstrap of seeds and users" if len(seeds) > 1 else "sign-flip test"
    users = sorted({f"{row['users'].get('valid', 0):,} and {row['users'].get('test', 0):,}" for row in table["rows"]})
    return [
        f"{table['dataset']}, protocol {table['protocol']}; validation and test users, those that every row scored: "
        f"{'; '.join(users)}.",
        f"Brackets: 95% interval, bootstrap over {over}; users of one history and one target are drawn as one. A row's "
        "name alone means the scores of its language model; new targets are those that the user's history lacks.",
        "Time: all of a row's stages as if it ran alone; training apart from inference, which is the evaluation of "
        "both splits with its controls.",
        f"Less the first row's: paired over the test users that both rows scored, two-sided {test}, p corrected by "
        f"Holm for the number of rows. A row is not worse where the interval of its difference is above -{MARGIN}.",
        *_llms(table),
        *_warnings(table),
    ]


def to_markdown(table: dict[str, Any]) -> str:
    """Both tables and the notes."""
    parts = [_markdown(HEADER, cells(table)), *(f"- {note}" for note in notes(table)), "", "Scorers of each recipe:"]
    return "\n".join([*parts, "", _markdown(EVIDENCE_HEADER, evidence_cells(table))]) + "\n"


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """A line a row, its name first; intervals, tests and seconds in columns of their own."""
    lines = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = [_seconds(row["seconds"][kind]) for kind in ("training", "inference")]
    return [row["name"], row["llm"], *seconds, *_metrics(row), _test(row["against_first"]), _control(row)]


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _metrics(row: dict[str, Any]) -> list[str]:
    shown = [_cell(row[split].get(metric)) for split in SPLITS for metric in SHOWN]
    return shown + [_cell(row.get("new", {}).get(metric)) for metric in NEW]


def _cell(values: list[float] | None) -> str:
    return "–" if values is None else f"{values[0]:.4f} [{values[1]:.3f}, {values[2]:.3f}]"


def _control(row: dict[str, Any]) -> str:
    """How far a row of language model scores is above its own control; in capitals where it is not."""
    test = row["against_random_items"]
    return _test(test) + ("" if test is None or is_above(test) else ", NOT above")


def _test(test: dict[str, Any] | None) -> str:
    if test is None:
        return ""
    text = f"{test['HR@1']['difference']:+.4f}, {p_text(p_of(test['HR@1']))}"
    return text + (", not worse" if test["HR@1"].get("is_not_worse") and not is_above(test) else "")


def p_text(p: float) -> str:
    """How a p is written: never as 0."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}"


def _llms(table: dict[str, Any]) -> list[str]:
    names = sorted({row["llm"] for row in table["rows"] if row["llm"]})
    said = [f"Language model: {'; '.join(names)}."] if names else []
    if any(IN_PLACE in name for name in names):
        said.append("A model in place of a larger one does not show what that would reach.")
    return said


def _warnings(table: dict[str, Any]) -> list[str]:
    rows = [row for row in table["rows"] if row["scorer"] == "llm"]
    untested = [row["name"] for row in rows if row["against_random_items"] is None]
    low = [
        f"{row['name']} ({_test(row['against_random_items'])})"
        for row in rows
        if row["against_random_items"] is not None and not is_above(row["against_random_items"])
    ]
    above = len(rows) - len(low) - len(untested)
    said = [f"Above its own llm-random-items (soft tokens exchanged; HR@1, p < .05): {above} of {len(rows)} rows."]
    said += [f"NOT above its own llm-random-items: {', '.join(low)}."] if low else []
    why = "Not tested against llm-random-items (not scored, or the prompt has no items' soft tokens)"
    return said + ([f"{why}: {', '.join(untested)}."] if untested else [])


def _markdown(header: Sequence[str], rows: Cells) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines) + "\n"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"recipe": row["name"], "scorer": row["scorer"], "llm": row["llm"], "seeds": row["seeds"]}
    line |= {f"{kind}_seconds": round(value, 3) for kind, value in row["seconds"].items()}
    line |= {f"{split}_users": number for split, number in row["users"].items()}
    for split in SPLITS:
        for metric, (mean, low, high) in row[split].items():
            line |= {f"{split}_{metric}": mean, f"{split}_{metric}_low": low, f"{split}_{metric}_high": high}
    for metric, (mean, low, high) in row.get("new", {}).items():
        line |= {f"test_new_{metric}": mean, f"test_new_{metric}_low": low, f"test_new_{metric}_high": high}
    for key in ("against_first", "against_random_items"):
        for metric, test in (row[key] or {}).items():
            line |= {f"{key}_{metric}": test["difference"], f"{key}_{metric}_p": test["p"]}
    if row["against_random_items"] is not None:
        line["is_above_random_items"] = str(is_above(row["against_random_items"])).lower()
    return line
