"""What ``allrec compare`` and ``allrec report`` say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from allrec.cli.progress import err, observing, out, say
from allrec.errors import InputError
from allrec.experiments.compare import compare, rows_of
from allrec.experiments.summary import EVIDENCE_HEADER, HEADER, Cells, cells, evidence_cells, notes
from allrec.report.page import write_report
from allrec.runs.stages import Observer

NAMES = ("recipe", "scorer")
"""Columns of names, which are not broken."""
Asked = tuple[tuple[str, ...], str | None, tuple[str, ...], tuple[str, ...]]
"""Recipes, ablations, backbones and changes."""


def run_compare(
    dataset: Path, folder: Path, asked: Asked, seeds: tuple[str, ...], llm: str | None, resume: bool
) -> None:
    """Compares, prints the tables and says where they lie."""
    recipes, ablations, backbones, sets = asked
    rows = rows_of(recipes, ablations=ablations, backbones=backbones, sets=sets)
    numbers = [seed_of(text) for text in seeds]
    result = compare(dataset, rows, folder, seeds=numbers, llm=llm, resume=resume, watch=watching)
    page = write_report(folder)
    show_comparison(result)
    say(f"Written: {folder / 'table.csv'}, {folder / 'table.md'}, {page}")


def run_report(path: Path, page: Path | None) -> None:
    """Writes the page and says where it lies."""
    say(f"Written: {write_report(path, out=page)}")


@contextmanager
def watching(sentence: str) -> Iterator[Observer]:
    """Says which run comes, and shows how far its stages have come."""
    err.print(sentence, markup=False, highlight=False, soft_wrap=True)
    with observing() as observer:
        yield observer


def show_comparison(result: dict[str, Any]) -> None:
    """Prints the poster's table, the scorers of each recipe, the notes, and what comparing cost."""
    table = result["table"]
    what = f"{table['dataset']}, protocol {table['protocol']}"
    header, rows = [name.rpartition(" ")[2] for name in HEADER], cells(table)
    for split, chosen in (("validation", (0, 4, 5, 6)), ("test", (0, 7, 8, 9))):
        out.print(_table(f"{what}, {split}", [header[place] for place in chosen], _chosen(rows, chosen)))
    aside = ["recipe", "training", "inference", "HR@1 less first row's", "less its llm-random-items"]
    out.print(_table("Seconds, and paired tests on test users", aside, _chosen(rows[:-1], (0, 2, 3, 10, 11))))
    names = [EVIDENCE_HEADER[place] for place in (0, 1, 2)] + header[7:10]
    scorers = _chosen(evidence_cells(table), (0, 1, 2, 6, 7, 8))
    out.print(_table(f"{what}, test: every scorer", names, [_means(row) for row in scorers]))
    for note in notes(table):
        say(note)
    seconds = result["seconds"]
    say(
        f"The comparison took {seconds['compare']:,.1f} s, its stages {seconds['stages']:,.1f} s: "
        f"{seconds['overhead']:.1%} above them."
    )


def _chosen(rows: Cells, places: Sequence[int]) -> Cells:
    return [[row[place] for place in places] for row in rows]


def _means(row: list[str]) -> list[str]:
    return [text.partition(" [")[0] for text in row]


def _table(title: str, header: Sequence[str], rows: Cells) -> Table:
    table = Table(title=escape(title))
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=name in NAMES)
    for row in rows:
        # An interval goes below its mean and a p below its difference, so that the table fits a terminal.
        lines = [text.replace(" [", "\n[").replace(", p ", "\np ").replace(", NOT", "\nNOT") for text in row]
        table.add_row(*map(escape, lines), style="dim" if row[0] == "chance" else "")
    return table


def seed_of(text: str) -> int:
    """A seed as it was typed.

    Raises:
        InputError: it is no whole number.
    """
    if not text.isdecimal():
        raise InputError(f"got the seed {text!r}, expected whole numbers with commas, such as --seeds 0,1,2")
    return int(text)
