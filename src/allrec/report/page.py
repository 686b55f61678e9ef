"""The page: one HTML file about a run or about a comparison, which needs no network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allrec.artifacts import read_json, write_text
from allrec.base import InputError
from allrec.experiments.compare import COMPARISON, RUNS, is_comparison
from allrec.experiments.tables import EVIDENCE_HEADER, HEADER, cells, evidence_cells, notes
from allrec.report import html
from allrec.report.sections import (
    alignment_table,
    bars_of_runs,
    curves_of_runs,
    details,
    scores_table,
    times,
    what_ran,
)
from allrec.report.style import has_matplotlib, house_style
from allrec.report.view import RunView, load_view
from allrec.run_folder import MANIFEST

PAGE = "report.html"
NO_FIGURES = "Without matplotlib there are no figures. Install it: pip install 'allrec[report]'"


def write_report(path: Path | str, *, out: Path | str | None = None) -> Path:
    """Writes the page of a run or of a comparison, and returns its place.

    Args:
        path: a run folder, or the folder of a comparison.
        out: the file to write; ``report.html`` in ``path`` if left out.

    Raises:
        InputError: neither a run nor a comparison lies there.
    """
    path = Path(path)
    target = Path(out) if out is not None else path / PAGE
    if is_comparison(path):
        text = _comparison_page(path)
    elif (path / MANIFEST).is_file():
        text = _run_page(path)
    else:
        raise InputError(f"{path} is neither a run nor a comparison. Make one: allrec train, or allrec compare.")
    write_text(target, text)
    return target


def _run_page(path: Path) -> str:
    view = load_view(path)
    title = f"{view.name} on {view.run.manifest['dataset']['name']}"
    parts = [html.heading(title, 1), *_remarks(), *what_ran([view])]
    return html.document(title, [*parts, *scores_table(view), *_figures(view), *alignment_table([view])])


def _comparison_page(path: Path) -> str:
    stored = read_json(path / COMPARISON)
    table = stored.get("table")
    if table is None:
        raise InputError(f"the comparison in {path} has no table yet. Go on with it: allrec compare ... --resume")
    names = sorted(run.parent.name for run in (path / RUNS).glob(f"*/{MANIFEST}"))
    views = [load_view(path / RUNS / name, _shown(name, table)) for name in _in_table_order(names, table)]
    title = f"Recipes compared on {table['dataset']}"
    parts = [html.heading(title, 1), *_remarks(), html.heading("Results"), html.table(HEADER, cells(table), "results")]
    parts += [*_notes(table), html.paragraph(_cost(stored["seconds"]))]
    parts += [
        html.heading("Every scorer of every recipe"),
        html.table(EVIDENCE_HEADER, evidence_cells(table), "scorers"),
    ]
    first_seed = [view for view in views if view.recipe.seed == table["seeds"][0]]
    if has_matplotlib():
        with house_style():
            parts += [*bars_of_runs(first_seed), *curves_of_runs(first_seed), *times(views)]
    parts += alignment_table(first_seed)
    parts += [html.heading("Each run")]
    parts += [html.folded(view.name, _figures(view)) for view in first_seed]
    return html.document(title, [*parts, *what_ran(views)])


def _in_table_order(names: list[str], table: dict[str, Any]) -> list[str]:
    wanted = [f"{row['run']}-seed{seed}" for row in table["rows"] for seed in table["seeds"]]
    return [name for name in dict.fromkeys(wanted) if name in names]


def _shown(name: str, table: dict[str, Any]) -> str:
    """How the page calls a run: with its seed where there are several."""
    return name if len(table["seeds"]) > 1 else name.removesuffix(f"-seed{table['seeds'][0]}")


def _figures(view: RunView) -> list[str]:
    if not has_matplotlib():
        return []
    with house_style():
        return list(details(view))


def _remarks() -> Iterator[str]:
    if not has_matplotlib():
        yield html.paragraph(NO_FIGURES, "alarm")


def _notes(table: dict[str, Any]) -> list[str]:
    said = notes(table)
    alarms = [html.paragraph(note, "alarm") for note in said if note.startswith("NOT ")]
    return [*alarms, html.bullets([note for note in said if not note.startswith("NOT ")])]


def _cost(seconds: dict[str, float]) -> str:
    return (
        f"The comparison took {seconds['compare']:,.1f} s, of which its stages, each shared one once, took "
        f"{seconds['stages']:,.1f} s: {seconds['overhead']:.1%} above them."
    )
