"""The report: one self-contained HTML page about a run or a comparison."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allrec.errors import InputError
from allrec.evaluation.results import own_results
from allrec.evaluation.significance import MARGIN
from allrec.experiments.compare import COMPARISON, RUNS, is_comparison
from allrec.experiments.summary import EVIDENCE_HEADER, HEADER, cells, evidence_cells, notes, p_text
from allrec.files import read_json, write_text
from allrec.report import html
from allrec.report.figures import (
    Seen,
    Series,
    by_popularity,
    calibration,
    data_uri,
    fusion_losses,
    has_matplotlib,
    house_style,
    item_map,
    losses,
    segment_bars,
    stage_times,
)
from allrec.report.view import RunView, load_view
from allrec.runs.run_folder import MANIFEST, llm_label
from allrec.runs.stages import EVALUATE, STAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOGETHER = 6
"""Runs of one figure at most; more go into further figures, each with the first run again."""
SEGMENTS = ("all", "new")
SCORE_HEADER = ("scorer", "split", "targets", "users", "HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR")
PROVENANCE = ("run", "seed", "language model", "data set", "machine", "versions")
LLM_SCORERS = ("llm", "llm-random-items", "llm-no-soft")


def scores_table(view: RunView) -> Iterator[str]:
    """Every scorer under every protocol over all users and those with a new target, with chance, and paired tests."""
    if view.metrics is None:
        yield html.paragraph("This run has not been evaluated.", "alarm")
        return
    for protocol, chance in view.metrics["chance"].items():
        yield html.heading(f"Scores, protocol {protocol}")
        rows = [row for row in own_results(view.metrics) if row["protocol"] == protocol and row["segment"] in SEGMENTS]
        lines = [[row["scorer"], row["split"], row["segment"], f"{row['users']:,}", *_scores(row)] for row in rows]
        by_chance = [f"{chance[name]:.4f}" if name in chance else "" for name in SCORE_HEADER[4:]]
        yield html.table(SCORE_HEADER, [*lines, ["chance", "", "", "", *by_chance]])
    yield html.paragraph(
        "Targets: all, or those that are new to the user. Brackets: 95% bootstrap interval over users, drawn as "
        "one where history and target are the same. Ties count against the target."
    )
    yield from paired_tests([row for row in view.metrics["comparisons"] if row["metric"] == "HR@1"])


def paired_tests(comparisons: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Every paired test: a row a pair of scorers, a column a split and protocol."""
    if not comparisons:
        return
    where = list(dict.fromkeys((row["split"], row["protocol"]) for row in comparisons))
    tests = {(row["scorer"], row["against"], row["split"], row["protocol"]): row for row in comparisons}
    pairs = list(dict.fromkeys((row["scorer"], row["against"]) for row in comparisons))
    yield html.heading("HR@1 of each scorer less that of another", 3)
    yield html.table(
        ("scorer", "less", *(f"{split}, {protocol}" for split, protocol in where)),
        [[*pair, *(_test(tests.get((*pair, *place))) for place in where)] for pair in pairs],
    )
    yield html.paragraph(
        "Differences over the users that both scored, the fewer of the two rows above; p of a paired two-sided sign-"
        "flip test, corrected by Holm for the tests of a split and protocol; not worse: the interval of the difference "
        f"is above -{MARGIN}."
    )


def _test(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    margin = ", not worse" if row.get("is_not_worse") and row["difference"] <= 0 else ""
    return f"{row['difference']:+.4f}, {p_text(row.get('p_holm', row['p']))}{margin}"


def details(view: RunView) -> Iterator[str]:
    """The figures of one run."""
    chance = _chance(view)
    yield from _figure("Losses", lambda: losses(view), _LOSSES)
    yield from _figure("Fitting fusion", lambda: fusion_losses(view), _FITS)
    series = [Series(scorer, view.rows(scorer)) for scorer in view.scorers()]
    yield from _figure("Segments", lambda: segment_bars(series, chance), f"{_SEGMENTS} {_on(view)}")
    seen = [one for scorer in view.scorers() if (one := _seen(view, scorer, scorer)) is not None]
    yield from _figure("How often the target was seen", lambda: by_popularity(seen, chance), f"{_SEEN} {_on(view)}")
    joint = view.joint
    if joint is not None:
        yield from _figure("The joint space", lambda: item_map(joint, view.categories), _MAP)
    confidences = {name: sure for name in LLM_SCORERS if (sure := view.confidence(name)) is not None}
    yield from _figure("Calibration", lambda: calibration(confidences), f"{_CALIBRATION} {_on(view)}")
    yield from times([view])


def bars_of_runs(views: Sequence[RunView]) -> Iterator[str]:
    """Segments of the language model's scores, a bar a run."""
    for part in _parts(views):
        series = [Series(view.name, view.rows("llm")) for view in part]
        caption = f"{_SEGMENTS} The language model's scores of each run. {_on(part[0])}"
        yield from _figure("Segments", lambda s=series, v=part[0]: segment_bars(s, _chance(v)), caption)  # type: ignore[misc]


def curves_of_runs(views: Sequence[RunView]) -> Iterator[str]:
    """HR@1 of the language model by how often the target was seen, a curve a run."""
    for part in _parts(views):
        series = [one for view in part if (one := _seen(view, "llm", view.name)) is not None]
        caption = f"{_SEEN} The language model's scores of each run. {_on(part[0])}"
        title = "How often the target was seen"
        yield from _figure(title, lambda s=series, v=part[0]: by_popularity(s, _chance(v)), caption)  # type: ignore[misc]


def times(views: Sequence[RunView]) -> Iterator[str]:
    """Seconds by stage, a bar a run."""
    names = [*list(STAGES)[1:], EVALUATE]
    ran = [stage for stage in names if any(view.run.seconds(stage) for view in views)]
    rows = [(view.name, {stage: view.run.seconds(stage) for stage in ran}) for view in views]
    yield from _figure("Time by stage", lambda: stage_times(rows), _TIME)


def alignment_table(views: Sequence[RunView]) -> Iterator[str]:
    """The measures of stage 1, a column a run; nothing where no run has them."""
    measures = {view.name: flatten((view.metrics or {}).get("alignment") or {}) for view in views}
    measures = {name: values for name, values in measures.items() if values}
    if not measures:
        return
    names = list(dict.fromkeys(key for values in measures.values() for key in values))
    yield html.heading("Does the alignment do what is claimed?")
    yield html.table(
        ("measure", *measures),
        [[name.replace("_", " "), *(_number(values.get(name)) for values in measures.values())] for name in names],
    )
    yield html.paragraph(_ALIGNMENT)


def what_ran(views: Sequence[RunView]) -> Iterator[str]:
    """The provenance of each run: seed, language model, data set, machine, versions."""
    yield html.heading("What ran")
    lines = [_provenance(view) for view in views]
    if len(lines) == 1:
        yield html.table(("what", "which"), list(zip(PROVENANCE, lines[0], strict=True)), "words")
    else:
        yield html.table(PROVENANCE, lines, "words")


def flatten(value: Any, prefix: str = "") -> dict[str, float]:
    """Numbers of nested tables by their path; an entry of a list is named by its first text.

    Example:
        >>> flatten({"rank": {"e": 2}, "distance": [{"seen": "0", "mean": 0.5}]})
        {'rank, e': 2.0, 'distance, seen 0, mean': 0.5}
    """
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, (int, float)):
        return {prefix: float(value)}
    pairs = value.items() if isinstance(value, dict) else ((_entry_name(one, n), one) for n, one in enumerate(value))
    numbers: dict[str, float] = {}
    for key, one in pairs:
        numbers |= flatten(one, f"{prefix}, {key}" if prefix else str(key))
    return numbers


def _entry_name(entry: Any, place: int) -> str:
    words = [f"{key} {word}" for key, word in entry.items() if isinstance(word, str)] if isinstance(entry, dict) else []
    return words[0] if words else str(place)


def _figure(title: str, draw: "Callable[[], Figure | None]", caption: str) -> Iterator[str]:
    figure = draw()
    if figure is not None:
        yield html.heading(title, 3)
        yield html.picture(data_uri(figure), caption)


def _parts(views: Sequence[RunView]) -> Iterator[Sequence[RunView]]:
    views = [view for view in views if view.rows("llm")]
    yield from [views[:TOGETHER]] if views else []
    for start in range(TOGETHER, len(views), TOGETHER - 1):
        yield [views[0], *views[start : start + TOGETHER - 1]]


def _seen(view: RunView, scorer: str, name: str) -> Seen | None:
    key = ("test", view.protocol, scorer)
    if view.stored is None or key not in view.stored.rankings or view.counts is None:
        return None
    ranking = view.stored.rankings[key]
    clusters = view.stored.clusters.get("test", np.arange(len(view.stored.targets["test"])))[ranking.rows]
    return Seen(name, ranking.ranks, view.counts[view.stored.targets["test"][ranking.rows]], clusters)


def _chance(view: RunView) -> float | None:
    return None if view.metrics is None else view.metrics["chance"].get(view.protocol, {}).get("HR@1")


def _on(view: RunView) -> str:
    return f"Test split, protocol {view.protocol}."


def _scores(row: dict[str, Any]) -> list[str]:
    texts = {name: f"{row[name]:.4f}" for name in SCORE_HEADER[4:]}
    for name, (low, high) in row["ci95"].items():
        texts[name] += f" [{low:.3f}, {high:.3f}]"
    return [texts[name] for name in SCORE_HEADER[4:]]


def _provenance(view: RunView) -> list[str]:
    manifest = view.run.manifest
    dataset, llm = manifest["dataset"], manifest["llm"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return [
        view.name, str(manifest["seed"]),
        llm_label(view.run) + (f", revision {llm['revision']}" if llm.get("revision") else ""),
        f"{dataset['name']}: {dataset['users']:,} users, {dataset['items']:,} items, "
        f"{dataset['interactions']:,} interactions, {dataset['sha256'][:12]}", manifest.get("machine", "not recorded"),
        versions,
    ]  # fmt: skip


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3f}"


_LOSSES = (
    "Losses that each stage minimises, by optimizer step: thin grey single steps, black the mean of each epoch, "
    "colours its parts where it has some; dashed the validation of early stopping."
)
_FITS = (
    "Fusion on validation users by epoch, a line a member, each without the users of one fold: grey on the users it is "
    "fitted on (weighted), dashed on held-out ones. What the language model adds is fitted on top."
)
_SEGMENTS = (
    "HR@1 by segment of the target, with 95% bootstrap intervals over users: warm and cold are the most and least seen "
    "35% of items, cold5 and warm5 targets seen at most, and more than, 5 times, head, torso and tail thirds of the "
    "interactions; n is the users of the first bar, and a scorer on a sample has wider intervals."
)
_SEEN = "HR@1 against how often the target was seen in training, with 95% bootstrap intervals over users."
_MAP = (
    "Joint embeddings of items that were seen in training and have a text, on the two principal components of both "
    "kinds, each around its own mean (how far the means lie apart is the measure gap): e (from the backbone) filled, q "
    "(from the text) hollow; lines join the two of some items."
)
_CALIBRATION = (
    "Calibration of the language model's probabilities: softmax over the candidates' log-likelihoods, users "
    "in ten bins of equal size by the probability of their first choice; on the dotted line the share of hits "
    "equals the probability."
)
_TIME = "Seconds by stage, as if each run had run alone; evaluate holds every scorer and control of both splits."
_ALIGNMENT = (
    "Gap: distance between the means of e and q, over the spread of e; all else is measured around each mean. "
    "Retrieval: how often an item's other embedding is among the nearest 1 or 10. Effective rank: how many dimensions "
    "a space uses. Alignment: mean squared distance of e and q on the unit sphere (0 is best); uniformity: how evenly "
    "a space fills the sphere (lower is more even). Neighbours: share of an item's ten nearest that two spaces have in "
    "common. Distance: 1 less the cosine of e and q, by how often the item was seen; relative to that of other items."
)


PAGE = "report.html"
NO_FIGURES = "Without matplotlib there are no figures. Install it: pip install 'allrec[report]'"


def write_report(path: Path | str, *, out: Path | str | None = None) -> Path:
    """Writes the page of a run or of a comparison, and returns its path.

    Args:
        path: a run folder, or the folder of a comparison.
        out: the file to write; ``report.html`` in ``path`` if left out.

    Raises:
        InputError: the path is neither a run nor a comparison.
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
        raise InputError(f"the comparison in {path} has no table yet. Continue it: allrec compare ... --resume")
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
    """The name of a run: with its seed where there are several."""
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
    texts = notes(table)
    alarms = [html.paragraph(note, "alarm") for note in texts if note.startswith("NOT ")]
    return [*alarms, html.bullets([note for note in texts if not note.startswith("NOT ")])]


def _cost(seconds: dict[str, float]) -> str:
    return (
        f"The comparison took {seconds['compare']:,.1f} s, of which its stages, each shared one once, took "
        f"{seconds['stages']:,.1f} s: {seconds['overhead']:.1%} above them."
    )
