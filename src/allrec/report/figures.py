"""The figures of the page: each takes what was measured and gives a figure, or None where there is nothing."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec.evaluation.metrics import hits_at
from allrec.evaluation.significance import bootstrap_interval
from allrec.report.style import COLOURS, LINES, bar_style, legend_above, line_style, new_figure
from allrec.report.view import Confidence, RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.2
"""Inches; the page shows them at 100% of its column."""
STAGE_TITLES = {
    "backbone": "Backbone", "alignment": "Stage 1, alignment", "warm_up": "Stage 2, warm-up",
    "language_model": "Stage 2, soft tokens", "content": "Content tower, then backbone", "readout": "Read-out head",
}  # fmt: skip
FIT_TITLES = {
    "lists": "Given lists", "catalogue": "Whole catalogue",
    "lists-llm": "Given lists, added by the language model",
    "catalogue-llm": "Whole catalogue, added by the language model",
}  # fmt: skip
SEEN_EDGES = (0, 1, 2, 3, 6, 11, 21, 51, 101)
MIN_USERS = 5
"""A point of a curve over fewer users says nothing."""


class Series(NamedTuple):
    """A named list of ``metrics.json`` rows, one a segment."""

    name: str
    rows: list[dict[str, Any]]


class Seen(NamedTuple):
    """A named scorer's ranks, with how often each target was seen in training."""

    name: str
    ranks: Int[ndarray, "users"]
    counts: Int[ndarray, "users"]


def losses(view: RunView) -> "Figure | None":
    """Every loss of every stage against optimizer steps, and the validation that decides when to stop."""
    stages = view.trained()
    if not stages:
        return None
    figure, panels = _panels(len(stages), 2 if len(stages) == 4 else min(len(stages), 3), 3.2)
    for axes, stage in zip(panels, stages, strict=True):
        _draw_losses(axes, view, stage)
        axes.set_title(STAGE_TITLES.get(stage, stage.replace("_", " ")), loc="left", fontsize=10)
        axes.set_xlabel("optimizer step")
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=5, handlelength=3.2, fontsize=8.5)
    return figure


def _panels(number: int, columns: int, height: float) -> "tuple[Figure, Sequence[Axes]]":
    """A figure with so many panels in rows of so many columns, each row so many inches high."""
    rows = -(-number // columns)
    figure = new_figure(WIDTH, height * rows)
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in every[number:]:
        axes.set_axis_off()
    return figure, list(every[:number])


def _draw_losses(axes: "Axes", view: RunView, stage: str) -> None:
    curves = {name.rpartition("/")[2]: points for name, points in view.curves.items() if name.startswith(f"{stage}/")}
    report = view.reports.get(stage)
    if "total" in curves:
        grey = {"color": "#aaaaaa", "linewidth": 0.7} if report else {"color": "#111111", "label": "total"}
        axes.plot(*zip(*curves["total"], strict=True), **grey)
    parts = sorted(curves.keys() - {"total", "validation"})
    for place, name in enumerate(parts, 1):
        axes.plot(*zip(*curves[name], strict=True), color=COLOURS[place], linestyle=LINES[place], linewidth=1.1,
                  label=name.replace("_", " "))  # fmt: skip
    # Stage 1 adds squared distances to nats.
    axes.set_ylabel("loss" if stage == "alignment" else "loss, nats")
    if parts:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if report and report["losses"]:
        _draw_epochs(axes, report)


def _draw_epochs(axes: "Axes", report: dict[str, Any]) -> None:
    """Means of epochs, and validation on an axis of its own."""
    steps = np.arange(1, len(report["losses"]) + 1) * report["steps"] / len(report["losses"])
    marker = "o" if len(steps) < 30 else None
    axes.plot(steps, report["losses"], color="#111111", marker=marker, markersize=3.5, label="total")
    if report["validations"]:
        other = axes.twinx()
        other.plot(steps, report["validations"], color=COLOURS[1], linestyle="--")
        other.set_ylabel("validation NDCG@10 (dashed)")
        other.spines["right"].set_visible(True)
        other.grid(False)


def fusion_losses(view: RunView) -> "Figure | None":
    """Cross-entropy of every member of every fusion against epochs: fitted, and on those who decide when to stop."""
    if not view.fits:
        return None
    figure, panels = _panels(len(view.fits), min(2, len(view.fits)), 2.9)
    for axes, (name, reports) in zip(panels, view.fits.items(), strict=True):
        for place, report in enumerate(reports):
            epochs = np.arange(1, len(report["losses"]) + 1)
            axes.plot(epochs, report["losses"], color="#aaaaaa", linewidth=1, label="fitted" if place == 0 else None)
            axes.plot(epochs, -np.array(report["validations"]), color="#111111", linestyle="--", linewidth=1.1,
                      label="held out" if place == 0 else None)  # fmt: skip
        axes.set_title(FIT_TITLES.get(name, name), loc="left", fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_ylabel("cross-entropy, nats")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8.5)
    return figure


def segment_bars(series: Sequence[Series], chance: float | None) -> "Figure | None":
    """HR@1 by segment, a group of bars a segment and a bar a series, with 95% intervals over users."""
    series = [one for one in series if one.rows]
    if not series:
        return None
    segments = list(dict.fromkeys(row["segment"] for one in series for row in one.rows))
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    width = 0.84 / len(series)
    for place, one in enumerate(series):
        found = [(segments.index(row["segment"]), row["HR@1"], *row["ci95"]["HR@1"]) for row in one.rows]
        where, means, lows, highs = (np.array(values) for values in zip(*found, strict=True))
        middle = where - 0.42 + width * (place + 0.5)
        errors = np.clip([means - lows, highs - means], 0, None)
        axes.bar(middle, means, width, yerr=errors, error_kw={"elinewidth": 0.8, "capsize": 1.5}, label=one.name,
                 **bar_style(place))  # fmt: skip
    _draw_chance(axes, chance)
    users = {row["segment"]: row["users"] for one in reversed(series) for row in one.rows}
    axes.set_xticks(range(len(segments)), [f"{name}\nn={users[name]:,}" for name in segments], fontsize=8)
    axes.set_ylabel("HR@1, share of users")
    axes.set_ylim(bottom=0)
    axes.grid(False, axis="x")
    legend_above(axes)
    return figure


def by_popularity(series: Sequence[Seen], chance: float | None) -> "Figure | None":
    """HR@1 against how often the target was seen in training, with 95% intervals over users."""
    series = [one for one in series if any(_enough(one, bucket) for bucket in range(len(SEEN_EDGES)))]
    if not series:
        return None
    figure = new_figure(WIDTH, 3.5)
    axes = figure.subplots()
    for place, one in enumerate(series):
        points = [(bucket, *_hit_rate(one, bucket)) for bucket in range(len(SEEN_EDGES)) if _enough(one, bucket)]
        where, means, lows, highs = (np.array(values) for values in zip(*points, strict=True))
        shifted = where + (place - (len(series) - 1) / 2) * 0.07
        errors = np.clip([means - lows, highs - means], 0, None)
        axes.errorbar(shifted, means, errors, label=one.name, capsize=1.5, elinewidth=0.7, **line_style(place))
    _draw_chance(axes, chance)
    counts = [int((_buckets(series[0].counts) == bucket).sum()) for bucket in range(len(SEEN_EDGES))]
    labels = [f"{name}\nn={count:,}" for name, count in zip(_bucket_names(), counts, strict=True)]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel("training interactions with the target (n: users of the first curve)")
    axes.set_ylabel("HR@1, share of users")
    # Points at nought are seen whole.
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
    legend_above(axes)
    return figure


def _enough(one: Seen, bucket: int) -> bool:
    return int((_buckets(one.counts) == bucket).sum()) >= MIN_USERS


def _hit_rate(one: Seen, bucket: int) -> tuple[float, float, float]:
    hits = hits_at(one.ranks[_buckets(one.counts) == bucket], 1)
    return (float(hits.mean()), *bootstrap_interval(hits, np.random.default_rng([0, bucket])))


def _buckets(counts: Int[ndarray, "users"]) -> Int[ndarray, "users"]:
    return np.searchsorted(SEEN_EDGES, counts, side="right") - 1


def _bucket_names() -> list[str]:
    inner = [str(low) if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(SEEN_EDGES)]
    return [*inner, f"{SEEN_EDGES[-1]} or more"]


def calibration(found: dict[str, Confidence], bins: int = 10) -> "Figure | None":
    """Share of hits against the probability that a scorer gave its first choice, in bins of equally many users."""
    if not found:
        return None
    figure = new_figure(WIDTH * 0.7, 3.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#777777", linewidth=0.9, linestyle=":", label="calibrated")
    for place, (name, confidence) in enumerate(found.items()):
        means, rates, error = reliability(confidence, bins)
        axes.plot(means, rates, label=f"{name} (expected error {error:.3f})", **line_style(place))
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="probability of the first choice", ylabel="share of hits")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), handlelength=3.2, fontsize=8.5)
    return figure


def reliability(confidence: Confidence, bins: int = 10) -> tuple[Float[ndarray, "bins"], Float[ndarray, "bins"], float]:
    """Mean probability and share of hits of each bin of equally many users, and their mean absolute difference."""
    order = np.argsort(confidence.values, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    means = np.array([confidence.values[part].mean() for part in parts])
    rates = np.array([confidence.is_hit[part].mean() for part in parts])
    shares = np.array([len(part) for part in parts]) / len(order)
    return means, rates, float((shares * np.abs(means - rates)).sum())


def stage_times(rows: Sequence[tuple[str, dict[str, float]]]) -> "Figure | None":
    """Seconds of every stage, a stacked bar a run, as if each had been alone."""
    stages = list(dict.fromkeys(stage for _, seconds in rows for stage in seconds))
    if not stages:
        return None
    figure = new_figure(WIDTH, 1.1 + 0.36 * len(rows))
    axes = figure.subplots()
    start = np.zeros(len(rows))
    for place, stage in enumerate(stages):
        lengths = np.array([seconds.get(stage, 0.0) for _, seconds in rows])
        axes.barh(range(len(rows)), lengths, 0.62, left=start, label=stage.replace("_", " "), **bar_style(place))
        start += lengths
    for place, total in enumerate(start):
        axes.text(total, place, f" {total:,.0f} s", va="center", fontsize=8.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlim(0, max(start.max(), 1e-9) * 1.1)
    axes.set_xlabel("seconds")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    legend_above(axes, columns=6)
    return figure


def _draw_chance(axes: "Axes", chance: float | None) -> None:
    if chance is not None:
        axes.axhline(chance, color="#111111", linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
