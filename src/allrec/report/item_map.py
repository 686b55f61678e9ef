"""A map of both joint embeddings of the items, as far as two dimensions can show them."""

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec.report.style import COLOURS, MARKERS, new_figure
from allrec.report.view import Joint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

    How far the means lie apart is a measure of its own, and would be all that a plane of both shows. The larger loading
    of each axis is positive.
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
    rng = np.random.default_rng(0)
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
    found = [None if categories is None else categories[item] for item in chosen]
    common = {name for name, _ in Counter(name for name in found if name).most_common(MAX_CATEGORIES)}
    return [name if name is not None and name in common else OTHERS for name in found]


def _draw_group(axes: "Axes", plane: Plane, members: ndarray, place: int, name: str) -> None:
    turn = place % len(COLOURS)
    look: dict[str, Any] = {"s": 20, "marker": MARKERS[turn], "rasterized": True, "alpha": 0.8}
    full, hollow = {"color": COLOURS[turn], "linewidths": 0}, {"facecolors": "none", "edgecolors": COLOURS[turn]}
    axes.scatter(*plane.items[members].T, label=f"{name}: e", **(look | full))
    axes.scatter(*plane.texts[members].T, label=f"{name}: q", **(look | hollow | {"linewidths": 0.7}))
