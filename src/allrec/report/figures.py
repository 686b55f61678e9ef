"""The figures of a report, as matplotlib draws them, and their style."""

import base64
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec import seeds
from allrec.evaluation.metrics import hits_at
from allrec.evaluation.significance import bootstrap_interval
from allrec.report.view import Confidence, Joint, RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b1b1b", "#0072b2", "#d55e00", "#009e73", "#b0589a", "#8a6d00", "#56a3d9", "#777777")
"""After Okabe and Ito, with black first and yellow darkened, so that all are visible on white."""
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "||||", "xxxx", "\\\\\\\\", "----", "++++", "//--")
"""Of lines alone: dots make a picture twenty times as large."""
FILLS = ("#4d4d4d", "#cfe3f2", "#fbe1cf", "#cdeae0", "#f0dcea", "#efe6c4", "#e2eef8", "#ffffff")
SHORT_LABEL = 18
"""Characters of a label at most, so that four of them fit in a row above a figure."""
SETTINGS: Any = {
    "font.size": 9.5, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#333333", "text.color": "#111111", "axes.labelcolor": "#111111", "xtick.color": "#111111",
    "text.parse_math": False,
    "ytick.color": "#111111", "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "svg.hashsalt": "allrec", "hatch.linewidth": 0.6, "figure.facecolor": "white",
}  # fmt: skip


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    return find_spec("matplotlib") is not None


@contextmanager
def house_style() -> Iterator[None]:
    """Within the block, figures are drawn and written in one style."""
    from matplotlib import rc_context

    # A title in a script that the font lacks is drawn as boxes, which needs no warning.
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font", category=UserWarning)
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def line_style(place: int) -> dict[str, Any]:
    """Colour, dashes and marker of the curve at this place; no two of the first eight share any."""
    turn = place % len(COLOURS)
    look = {"color": COLOURS[turn], "linestyle": LINES[turn], "marker": MARKERS[turn]}
    return {**look, "markersize": 4, "linewidth": 1.4}


def bar_style(place: int) -> dict[str, Any]:
    """Fill and hatch of the bar at this place."""
    turn = place % len(FILLS)
    return {"facecolor": FILLS[turn], "hatch": HATCHES[turn], "edgecolor": "#111111", "linewidth": 0.6}


def legend_above(axes: "Axes", columns: int | None = None) -> None:
    """A legend over the plot, where it hides nothing; four columns, or three where names are long."""
    longest = max((len(label) for label in axes.get_legend_handles_labels()[1]), default=0)
    columns = columns or (4 if longest <= SHORT_LABEL else 3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, handlelength=3.2)


def data_uri(figure: "Figure") -> str:
    """The figure as an SVG picture inside a URI; equal figures have equal ones."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=150)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


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
"""Fewest users of a point of a curve."""


class Series(NamedTuple):
    """A named list of ``metrics.json`` rows, one a segment."""

    name: str
    rows: list[dict[str, Any]]


class Seen(NamedTuple):
    """A named scorer's ranks, with each target's training count, and the numbers of users' clusters."""

    name: str
    ranks: Int[ndarray, "users"]
    counts: Int[ndarray, "users"]
    clusters: Int[ndarray, "users"] | None = None


def losses(view: RunView) -> "Figure | None":
    """Every loss of every stage against optimizer steps, and the validation of early stopping."""
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
    """A figure with ``number`` panels in rows of ``columns``, each row ``height`` inches high."""
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
    """Cross-entropy of every member of every fusion against epochs, on fitted and held-out users."""
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
        points = [(segments.index(row["segment"]), row["HR@1"], *row["ci95"]["HR@1"]) for row in one.rows]
        where, means, lows, highs = (np.array(values) for values in zip(*points, strict=True))
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
    # Points at 0 are drawn whole.
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
    legend_above(axes)
    return figure


def _enough(one: Seen, bucket: int) -> bool:
    return int((_buckets(one.counts) == bucket).sum()) >= MIN_USERS


def _hit_rate(one: Seen, bucket: int) -> tuple[float, float, float]:
    chosen = _buckets(one.counts) == bucket
    hits, clusters = hits_at(one.ranks[chosen], 1), None if one.clusters is None else one.clusters[chosen]
    return (float(hits.mean()), *bootstrap_interval(hits, seeds.rng(0, "figures", "interval", bucket), clusters))


def _buckets(counts: Int[ndarray, "users"]) -> Int[ndarray, "users"]:
    return np.searchsorted(SEEN_EDGES, counts, side="right") - 1


def _bucket_names() -> list[str]:
    inner = [str(low) if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(SEEN_EDGES)]
    return [*inner, f"{SEEN_EDGES[-1]} or more"]


def calibration(by_scorer: dict[str, Confidence]) -> "Figure | None":
    """Share of hits against the probability of a scorer's first choice, in bins of equally many users."""
    if not by_scorer:
        return None
    figure = new_figure(WIDTH * 0.7, 3.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#777777", linewidth=0.9, linestyle=":", label="calibrated")
    for place, (name, confidence) in enumerate(by_scorer.items()):
        means, rates, error = reliability(confidence)
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
    """Seconds of every stage, a stacked bar a run, as if each had run alone."""
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


MAX_ITEMS, MAX_LINES = 600, 30
MAX_CATEGORIES = 7
OTHERS = "others"


class Plane(NamedTuple):
    """Two principal components of e and q together.

    Attributes:
        items: e_i on the plane.
        texts: q_i on the plane.
        shares: of the variance, by component.
    """

    items: Float[ndarray, "items 2"]
    texts: Float[ndarray, "items 2"]
    shares: Float[ndarray, "2"]


def principal_plane(items: Float[ndarray, "items joint"], texts: Float[ndarray, "items joint"]) -> Plane:
    """The plane that keeps most of the variance of e and q, each around its own mean.

    The distance of the means is a measure of its own, and would dominate a plane of both. The larger loading of each
    axis is positive.
    """
    both = np.concatenate([items - items.mean(0), texts - texts.mean(0)]).astype(np.float64)
    _, sizes, directions = np.linalg.svd(both, full_matrices=False)
    axes = directions[:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    places = np.zeros((len(both), 2))
    places[:, : len(axes)] = both @ axes.T
    shares = np.zeros(2)
    shares[: len(sizes[:2])] = (sizes**2 / max((sizes**2).sum(), 1e-12))[:2]
    return Plane(places[: len(items)], places[len(items) :], shares)


def item_map(joint: Joint, categories: list[str | None] | None) -> "Figure | None":
    """e_i filled and q_i hollow, a colour and a shape a category, and a line between an item's two for some items."""
    known = np.flatnonzero(joint.has_text & (joint.seen > 0))
    if len(known) < 3:
        return None
    rng = seeds.rng(0, "figures", "items")
    chosen = np.sort(rng.permutation(known)[:MAX_ITEMS])
    plane = principal_plane(joint.items[chosen], joint.texts[chosen])
    groups = _groups(chosen, categories)
    figure = new_figure(9.2, 6.2)
    axes = figure.subplots()
    names = [name for name, _ in Counter(groups).most_common() if name != OTHERS]
    for place, name in enumerate([*names, OTHERS] if OTHERS in groups else names, 1):
        members = np.array([group == name for group in groups])
        _draw_group(axes, plane, members, place, name if len(set(groups)) > 1 else "item")
    lines = rng.permutation(len(chosen))[:MAX_LINES]
    ends = np.stack([plane.items[lines], plane.texts[lines]])
    axes.plot(ends[..., 0], ends[..., 1], color="#333333", linewidth=0.7, zorder=0.5)
    axes.set_xlabel(f"first principal component ({plane.shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({plane.shares[1]:.0%} of the variance)")
    axes.grid(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
    return figure


def _groups(chosen: Int[ndarray, "sample"], categories: list[str | None] | None) -> list[str]:
    names = [None if categories is None else categories[item] for item in chosen]
    common = {name for name, _ in Counter(name for name in names if name).most_common(MAX_CATEGORIES)}
    return [name if name is not None and name in common else OTHERS for name in names]


def _draw_group(axes: "Axes", plane: Plane, members: ndarray, place: int, name: str) -> None:
    turn = place % len(COLOURS)
    look: dict[str, Any] = {"s": 20, "marker": MARKERS[turn], "rasterized": True, "alpha": 0.8}
    full, hollow = {"color": COLOURS[turn], "linewidths": 0}, {"facecolors": "none", "edgecolors": COLOURS[turn]}
    axes.scatter(*plane.items[members].T, label=f"{name}: e", **(look | full))
    axes.scatter(*plane.texts[members].T, label=f"{name}: q", **(look | hollow | {"linewidths": 0.7}))
