"""A comparison as text: CSV for programs, Markdown for people, and the cells that every other form shows."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from allrec.experiments.summary import METRICS, SPLITS, is_above, p_of

Cells = list[list[str]]
HEADER = (
    "recipe", "language model", "training, s", "inference, s",
    *(f"{split} {metric}" for split in SPLITS for metric in METRICS), "test HR@1 less the first row's",
    "test HR@1 less its llm-random-items",
)  # fmt: skip


def cells(table: dict[str, Any]) -> Cells:
    """The poster's table as text, a list a row, without its header; the last row is chance."""
    rows = [_cells(row) for row in table["rows"]]
    chance = [f"{table['chance'][metric]:.4f}" for metric in METRICS]
    return [*rows, ["chance", "", "", "", *chance, *chance, "", ""]]


def evidence_cells(table: dict[str, Any]) -> Cells:
    """The scorers of every run beside each other: recipe, scorer, test users, then the metrics."""
    return [
        [row["name"], row["scorer"], f"{row['users'].get('test', 0):,}", *_metrics(row)] for row in table["evidence"]
    ]


EVIDENCE_HEADER = ("recipe", "scorer", "test users", *HEADER[4:-2])


def notes(table: dict[str, Any]) -> list[str]:
    """What a reader must know before quoting a number, in sentences."""
    seeds = table["seeds"]
    kind = (
        f"Student's t over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
        if len(seeds) > 1
        else f"bootstrap over users, seed {seeds[0]} alone"
    )
    users = sorted({f"{row['users'].get('valid', 0):,} and {row['users'].get('test', 0):,}" for row in table["rows"]})
    return [
        f"{table['dataset']}, protocol {table['protocol']}; validation and test users, those that every row scored: "
        f"{'; '.join(users)}.",
        f"Brackets: 95% interval, {kind}. A row's name alone means the scores of its language model.",
        "Time: all of a row's stages as if it ran alone; training apart from inference, which is the evaluation of "
        "both splits with its controls.",
        "Less the first row's: paired over the test users that both rows scored, two-sided sign-flip test, p "
        "corrected by Holm for the number of rows.",
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
    return [_cell(row[split].get(metric)) for split in SPLITS for metric in METRICS]


def _cell(values: list[float] | None) -> str:
    return "–" if values is None else f"{values[0]:.4f} [{values[1]:.3f}, {values[2]:.3f}]"


def _control(row: dict[str, Any]) -> str:
    """How far a row of language model scores is above its own control; in capitals where it is not."""
    test = row["against_random_items"]
    return _test(test) + ("" if test is None or is_above(test) else ", NOT above")


def _test(test: dict[str, Any] | None) -> str:
    return "" if test is None else f"{test['HR@1']['difference']:+.4f}, {p_text(p_of(test['HR@1']))}"


def p_text(p: float) -> str:
    """How a p is written: never as 0."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}"


def _llms(table: dict[str, Any]) -> list[str]:
    names = sorted({row["llm"] for row in table["rows"] if row["llm"]})
    said = [f"Language model: {'; '.join(names)}."] if names else []
    if any(name.startswith("embedded-") for name in names):
        said.append(
            "The embedded language models are small ones of ours, made to copy and choose titles; their rows say "
            "nothing of what the models they stand in for would reach."
        )
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
    for key in ("against_first", "against_random_items"):
        for metric, test in (row[key] or {}).items():
            line |= {f"{key}_{metric}": test["difference"], f"{key}_{metric}_p": test["p"]}
    if row["against_random_items"] is not None:
        line["is_above_random_items"] = str(is_above(row["against_random_items"])).lower()
    return line
