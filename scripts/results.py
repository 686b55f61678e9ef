"""Makes the results that README.md and docs/results.md show, and writes their tables: one source for every number.

    python scripts/results.py run [NAME ...]    what docs/results/ lacks of scripts/results.toml; stopped, it goes on
    python scripts/results.py write             the tables between the markers of both documents

Data sets are read from the folder that ALLREC_DATA names; runs go to runs/results, or where ALLREC_RESULTS says.
A table stands between two markers, which name what makes it and the entries that it shows:

    <!-- table: scores luxury-beauty-allround -->
    <!-- end of table -->
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from allrec.cli.progress import observing, say
from allrec.data import prepare
from allrec.data.dataset import is_dataset
from allrec.experiments.baselines import BASELINES, run_baselines
from allrec.experiments.compare import COMPARISON, RUNS, compare, rows_of
from allrec.experiments.summary import p_of, p_text, run_name
from allrec.files import read_json, write_text
from allrec.parallel import Observer
from allrec.runs.run_folder import RunFolder, machine

ROOT = Path(__file__).parents[1]
ENTRIES, KEPT = ROOT / "scripts" / "results.toml", ROOT / "docs" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
MARKED = re.compile(r"(<!-- table: (\w+) ([\w. -]+?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
METRICS = ("users", "HR@1", "HR@10", "NDCG@10", "retrieved", "ci95")
SEGMENTS = ("distinct", "cold", "cold5", "warm5", "unseen", "repeat", "new")
"""Columns of a table of segments, after all targets."""
Entry = Mapping[str, Any]
Cells = list[list[str]]


def entries() -> dict[str, Entry]:
    """The entries of results.toml by name."""
    return {one["name"]: one for one in tomllib.loads(ENTRIES.read_text(encoding="utf-8"))["entry"]}


def run(names: Sequence[str], kept: Path = KEPT) -> None:
    """Makes the entries that are missing, or that were made from another line of results.toml."""
    known = entries()
    for name in names or list(known):
        path, entry = kept / f"{name}.json", known[name]
        if path.is_file() and read_json(path)["entry"] == entry:
            say(f"{name}: is there.")
            continue
        say(f"{name}: begins.")
        write_text(path, as_text({"entry": entry, "made": made()} | measured(entry)))


def measured(entry: Entry) -> dict[str, Any]:
    """Trains and evaluates what an entry asks for, or goes on with it; everything but ranks and candidates."""
    out = Path(os.environ.get("ALLREC_RESULTS", "runs/results"))
    dataset, folder = prepared(entry["dataset"], out), out / entry.get("runs", entry["name"])
    if entry.get("baselines"):
        with observing() as observer:
            resume = (folder / BASELINES).is_file()
            result = run_baselines(dataset, folder, seeds=entry["seeds"], resume=resume, observer=observer)
        rows = [row | {"chosen": [one["setting"] for one in row["chosen"]]} for row in result["table"]]
        return {"chance": result["chance"], "best": result["best"], "rows": rows, "tests": result["comparisons"]}
    rows, resume = rows_of_entry(entry), (folder / COMPARISON).is_file()
    table = compare(dataset, rows, folder, seeds=entry["seeds"], resume=resume, watch=watching)["table"]
    runs = {seed: RunFolder.open(folder / RUNS / run_name(rows[0], seed)) for seed in entry["seeds"]}
    metrics = {str(seed): slim(one.metrics()) for seed, one in runs.items()}
    return {"chance": table["chance"], "protocol": table["protocol"], "rows": table["rows"], "metrics": metrics}


def rows_of_entry(entry: Entry) -> list[Any]:
    """The rows of an entry's comparison."""
    rows = rows_of([entry["recipe"]], ablations=entry.get("ablations"), sets=entry.get("sets", ()))
    if "ablations" in entry:
        return rows
    return [replace(rows[0], name=scorer, scorer=scorer) for scorer in entry["scorers"]]


def prepared(name: str, out: Path) -> Path:
    """A data set of ALLREC_DATA, prepared once."""
    folder = out / "datasets" / name
    if not is_dataset(folder):
        prepare(Path(os.environ["ALLREC_DATA"]) / name, folder)
    return folder


def slim(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """``metrics.json`` without what no table shows: test rows, and of them a few metrics."""
    rows = [row for row in metrics["results"] if row["split"] == "test"]
    kept = [
        {key: row[key] for key in ("protocol", "scorer", "segment", *METRICS) if key in row}
        for row in rows
        if row["segment"] in ("all", *SEGMENTS)
    ]
    tests = [row for row in metrics["comparisons"] if row["split"] == "test"]
    head = {key: metrics[key] for key in ("dataset", "recipe", "llm", "seconds", "chance")}
    return head | {"results": kept, "comparisons": tests}


def made() -> dict[str, str]:
    """When, of which code and where a result was made."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"day": f"{datetime.now(UTC):%Y-%m-%d}", "commit": found.stdout.strip() or "unknown", "machine": machine()}


@contextmanager
def watching(sentence: str) -> Iterator[Observer]:
    """Says what begins, and shows its progress."""
    say(sentence)
    with observing() as observer:
        yield observer


def as_text(value: Any, depth: int = 0) -> str:
    """JSON with a line for each entry of outer lists and tables, numbers to six digits."""
    indent, ends = " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, Mapping) and depth < 4:
        lines = [f"{indent}{json.dumps(str(key))}: {as_text(one, depth + 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(lines) + ends + "}" + ("\n" if depth == 0 else "")
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + ",\n".join(indent + json.dumps(rounded(one), ensure_ascii=False) for one in value) + ends + "]"
    return json.dumps(rounded(value), ensure_ascii=False, allow_nan=False)


def rounded(value: Any) -> Any:
    """The same with six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def number(value: float | None) -> str:
    """As tables write a share: .697; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def interval(cell: Sequence[float] | None) -> str:
    """A mean and its 95% interval."""
    return "–" if cell is None else f"{number(cell[0])} ({number(cell[1])} to {number(cell[2])})"


def difference(test: Mapping[str, Any] | None, sign: int = 1) -> str:
    """A paired difference, its interval, p by Holm, and whether the row is not worse."""
    if test is None:
        return ""
    low, high = sorted(sign * one for one in test["ci95"])
    text = f"{sign * test['difference']:+.4f} ({low:+.4f} to {high:+.4f}), {p_text(p_of(dict(test)))}"
    return text + (", not worse" if low > -test["margin"] and sign * test["difference"] <= 0 else "")


def mean_of(result: Mapping[str, Any], scorer: str, protocol: str, segment: str, metric: str) -> float | None:
    """The mean over the seeds of a metric of ``metrics.json``; None where a seed lacks it."""
    wanted = (protocol, scorer, segment)
    values = [
        row[metric]
        for one in result["metrics"].values()
        for row in one["results"]
        if (row["protocol"], row["scorer"], row["segment"]) == wanted and metric in row
    ]
    return float(np.mean(values)) if values and len(values) == len(result["metrics"]) else None


def scores(results: Sequence[Mapping[str, Any]]) -> Cells:
    """Every row of comparisons: given lists, targets new to the user, the whole catalogue."""
    header = ["data set", "scorer", "seeds", "users", "HR@1 (95%)", "NDCG@10", "new: HR@1"]
    header += ["`full` NDCG@10", "`full`, distinct: NDCG@10", "`full`, new: NDCG@10"]
    return [[*header, "HR@1 less the first row's"], *(line for one in results for line in _scores(one))]


def _scores(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in result["rows"]:
        scorer, test = row["scorer"], row["test"]
        full = [mean_of(result, scorer, "full", segment, "NDCG@10") for segment in ("all", "distinct", "new")]
        new, users = row["new"].get("HR@1"), f"{row['users'].get('test', 0):,}"
        against = difference(None if row["against_first"] is None else row["against_first"]["HR@1"])
        shown = [row["name"], str(row["seeds"]), users, interval(test.get("HR@1")), number(test["NDCG@10"][0])]
        yield [result["entry"]["dataset"], *shown, number(None if new is None else new[0]), *map(number, full), against]
    chance = [number(result["chance"][metric]) for metric in ("HR@1", "NDCG@10")]
    yield [result["entry"]["dataset"], "chance", "", "", *chance, chance[0], "", "", "", ""]


def segments(results: Sequence[Mapping[str, Any]]) -> Cells:
    """HR@1 under protocol ``paper`` by segment of the target, a mean over the seeds; scorers may have fewer users."""
    lines = [
        [one["entry"]["dataset"], row["name"], f"{mean_of(one, row['scorer'], 'paper', 'all', 'users') or 0:,.0f}",
         *(number(mean_of(one, row["scorer"], "paper", segment, "HR@1")) for segment in ("all", *SEGMENTS))]
        for one in results for row in one["rows"]
    ]  # fmt: skip
    return [["data set", "scorer", "users", "all", *SEGMENTS], *lines]


def worth(results: Sequence[Mapping[str, Any]]) -> Cells:
    """A fusion without parts of its evidence, less the whole one."""
    header = ["data set", "fusion", "HR@1", "HR@1 less the whole fusion's", "NDCG@10 less the whole fusion's"]
    lines = []
    for one in results:
        for row in one["rows"]:
            tests = row["against_first"] or {}
            compared = [difference(tests.get(metric)) for metric in ("HR@1", "NDCG@10")]
            lines.append([one["entry"]["dataset"], row["name"], number(row["test"]["HR@1"][0]), *compared])
    return [header, *lines]


def baselines(results: Sequence[Mapping[str, Any]]) -> Cells:
    """Every baseline over given lists and the whole catalogue, all targets and those new to the user."""
    header = ["data set", "baseline", "HR@1 (95%)", "new: HR@1", "`full` HR@10", "`full` NDCG@10"]
    header += ["`full`, new: NDCG@10", "HR@1 less the best's"]
    lines = []
    for one in results:
        tests = {row["against"]: row for row in one["tests"] if (row["protocol"], row["metric"]) == ("paper", "HR@1")}
        for row in one["rows"]:
            paper, full = row["test/paper"], row["test/full"]
            places = (("paper", "HR@1"), ("full", "NDCG@10"))
            new = [row.get(f"test/{protocol}/new", {}).get(metric, [None])[0] for protocol, metric in places]
            shown = [interval(paper["HR@1"]), number(new[0]), number(full["HR@10"][0])]
            shown += [number(full["NDCG@10"][0]), number(new[1])]
            lines.append([one["entry"]["dataset"], row["name"], *shown, difference(tests.get(row["name"]), -1)])
    return [header, *lines]


TABLES: dict[str, Callable[[Sequence[Mapping[str, Any]]], Cells]] = {
    "scores": scores, "segments": segments, "worth": worth, "baselines": baselines,
}  # fmt: skip


def table(kind: str, names: Sequence[str], kept: Path = KEPT) -> str:
    """A table in Markdown, and below it when each entry was made; entries that are not made yet are named."""
    known, there = entries(), [name for name in names if (kept / f"{name}.json").is_file()]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"scripts/results.toml has no entry {unknown[0]!r}")
    results = [json.loads((kept / f"{name}.json").read_text(encoding="utf-8")) for name in there]
    lines = TABLES[kind](results) if results else []
    text = [f"| {' | '.join(line)} |" for line in lines]
    text[1:1] = ["|" + "---|" * len(lines[0])] if lines else []
    notes = [
        f"`{one['entry']['name']}`: {one['made']['day']}, commit {one['made']['commit']}{llm_of(one)}."
        for one in results
    ]
    missing = [f"`{name}`: not measured yet." for name in names if name not in there]
    return "\n".join([*text, *([""] if text else []), " ".join([*notes, *missing])]) + "\n"


def llm_of(result: Mapping[str, Any]) -> str:
    """The language model behind a result, as tables name it, where one was asked."""
    named = sorted({one["llm"].get("label", one["llm"]["name"]) for one in result.get("metrics", {}).values()})
    return "".join(f", language model {name}" for name in named if name != "none")


def filled(text: str, kept: Path = KEPT) -> str:
    """A document with every table between its markers."""
    return MARKED.sub(lambda found: found[1] + table(found[2], found[3].split(), kept) + found[5], text)


def write() -> None:
    """Writes the tables of both documents."""
    for document in DOCUMENTS:
        write_text(document, filled(document.read_text(encoding="utf-8")))


def main() -> None:
    """See the beginning of this file."""
    match sys.argv[1:]:
        case ["run", *names]:
            run(names)
        case ["write"]:
            write()
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
