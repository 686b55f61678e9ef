"""What ``allrec baselines`` says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allrec.experiments.baseline_table import BASELINES, K, run_baselines
from allrec.experiments.tables import p_text
from allrec.progress import observing
from allrec.terminal_compare import seed_of

out = Console()


def run_baselines_command(dataset: Path, folder: Path, seeds: tuple[str, ...], resume: bool) -> None:
    """Runs every baseline, prints the tables and says where they lie."""
    numbers = [seed_of(text) for text in seeds]
    with observing() as observer:
        result = run_baselines(dataset, folder, seeds=numbers, resume=resume, observer=observer)
    show_baselines(result)
    _say(f"Written: {folder / BASELINES}")


def show_baselines(result: dict[str, Any]) -> None:
    """Prints metrics with intervals, what lists are like, and paired tests against the best."""
    name, rows = result["dataset"]["name"], result["table"]
    columns = {"paper": ("HR@1", "HR@10", "NDCG@10"), "full": ("HR@10", "NDCG@10")}
    for protocol, metrics in columns.items():
        cells = [[row["name"], *(_cell(row[f"test/{protocol}"][metric]) for metric in metrics)] for row in rows]
        chance = result["chance"][protocol]
        cells.append(["chance", *(f"{chance[metric]:.4f}" for metric in metrics)])
        out.print(_table(f"{name}, test, protocol {protocol}", ["baseline", *metrics], cells))
    header = [
        "baseline",
        "setting",
        "HR@1 less the best's",
        "coverage",
        "novelty, bits",
        "diversity",
        "popularity lift",
    ]
    tests = {row["against"]: row for row in result["comparisons"] if _is_first(row)}
    out.print(_table(f"Tests, and the {K} best of the catalogue", header, [_aside(row, tests) for row in rows]))
    _say(
        f"Settings, and the best of all ({result['best']}), were chosen on validation. Paired over the test users, "
        f"two-sided sign-flip test, p corrected by Holm for {len(rows) - 1} rows. Seeds: "
        f"{', '.join(map(str, result['seeds']))}; intervals over seeds, over users where there is one."
    )


def _aside(row: dict[str, Any], tests: dict[str, dict[str, Any]]) -> list[str]:
    beyond = row["chosen"][0][f"beyond@{K}"]
    setting = ", ".join(f"{key} {value:g}" for key, value in row["chosen"][0]["setting"].items())
    test = tests.get(row["name"])
    said = "" if test is None else f"{-test['difference']:+.4f}, {p_text(test['p_holm'])}"
    measures = [f"{beyond[name]:.3f}" for name in ("coverage", "novelty", "diversity", "popularity_lift")]
    return [row["name"], setting, said, *measures]


def _is_first(row: dict[str, Any]) -> bool:
    return (row["protocol"], row["metric"]) == ("paper", "HR@1")


def _cell(values: Sequence[float]) -> str:
    return f"{values[0]:.4f}\n{values[1]:.3f}-{values[2]:.3f}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=escape(title))
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row), style="dim" if row[0] == "chance" else "")
    return table


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
