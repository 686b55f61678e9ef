"""How figures look: dark on white, told apart without colour, the same every time. The one door to matplotlib."""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b1b1b", "#0072b2", "#d55e00", "#009e73", "#b0589a", "#8a6d00", "#56a3d9", "#777777")
"""After Okabe and Ito, with black first and yellow darkened, so that all of them are seen on white."""
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "||||", "xxxx", "\\\\\\\\", "----", "++++", "//--")
"""Of lines alone: dots make a picture twenty times as large."""
FILLS = ("#4d4d4d", "#cfe3f2", "#fbe1cf", "#cdeae0", "#f0dcea", "#efe6c4", "#e2eef8", "#ffffff")
SHORT_LABEL = 18
"""Four labels of so many characters stand beside each other over a figure."""
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
    """Figures that are made and written inside look alike."""
    from matplotlib import rc_context

    # A title in a script that the font lacks is drawn as boxes, which needs no line on the terminal.
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font", category=UserWarning)
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that no window knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def line_style(place: int) -> dict[str, Any]:
    """Colour, dashes and marker of the curve at this place; no two of the first eight share any."""
    turn = place % len(COLOURS)
    return {
        "color": COLOURS[turn],
        "linestyle": LINES[turn],
        "marker": MARKERS[turn],
        "markersize": 4,
        "linewidth": 1.4,
    }


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
