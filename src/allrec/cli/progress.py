"""Progress: a bar a stage on a terminal, plain lines in a log; and the notes of the library."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from allrec.errors import InputWarning

out, err = Console(), Console(stderr=True)
STAGE_NAMES = {
    "prepare": "preparation",
    "backbone": "backbone (SASRec)",
    "text": "text embeddings",
    "second_text": "second text encoder",
    "text_tuning": "tuned text encoder",
    "alignment": "stage 1, alignment",
    "warm_up": "stage 2, warm-up",
    "language_model": "stage 2, soft tokens",
    "title_priors": "titles without a history",
    "readout": "read-out head",
    "content": "content tower and backbone",
    "ensemble": "ensemble of other seeds",
    "fusion": "fusion",
    "evaluate": "evaluation",
    "recommend_all": "recommendations",
    "seeds": "runs of all seeds",
}
UNITS = {
    "step": ("steps", 1.0),
    "texts": ("texts", 1.0),
    "titles": ("titles", 1.0),
    "users": ("users", 1.0),
    "rows": ("rows", 1.0),
    "seeds": ("seeds", 1.0),
    "bytes": ("MB", 1e6),
}
"""Progress value -> the unit's name, and the value of one unit."""
COUNTED_FROM_ZERO = ("texts", "titles", "users", "rows", "seeds")
"""Values that a stage counts from its own beginning; the others may continue from an earlier process."""
SHOWN = {"total": "loss", "validation": "valid NDCG@10"}
WINDOW = 10.0
"""Seconds over which a bar's rate is a mean."""
LINE_EVERY = 60.0
"""Seconds between two lines of a stage in a log."""
TICK = 0.2
"""Seconds between two points of a rate, at least."""


class Reporter(Protocol):
    """An observer of stages that takes a remark too."""

    def __call__(self, stage: str, share: float, values: dict[str, float], note: str = "") -> None: ...


class Pace:
    """A stage's count of its own unit, and its rate.

    Args:
        clock: monotonic seconds.
        start: when the stage began, by that clock; now if left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, start: float | None = None) -> None:
        self.clock, self.unit = clock, ""
        self.start = clock() if start is None else start
        self.first: tuple[float, float] | None = None
        self.last = (0.0, 0.0)
        self.recent: deque[tuple[float, float]] = deque()

    def update(self, values: dict[str, float]) -> None:
        """Takes the count from named values; values without one change nothing."""
        key = next((key for key in UNITS if key in values), None)
        if key is None:
            return
        self.unit, size = UNITS[key]
        self.last = (self.clock(), values[key] / size)
        if self.first is None:
            self.first = (self.start, 0.0) if key in COUNTED_FROM_ZERO else self.last
            self.recent.append(self.first)
        if self.last[0] - self.recent[-1][0] >= TICK:
            self.recent.append(self.last)
        while len(self.recent) > 1 and self.last[0] - self.recent[0][0] > WINDOW:
            self.recent.popleft()

    def rate(self) -> str:
        """The rate of the last seconds, such as "35 steps/s"; "" before there is one."""
        return self._between(self.recent[0] if self.recent else None)

    def mean_rate(self) -> str:
        """The rate since the stage began."""
        return self._between(self.first)

    def done(self) -> str:
        """The count, such as "1,200 steps"; "" of a stage that counts nothing."""
        return f"{number(self.last[1])} {self.unit}" if self.unit else ""

    def _between(self, start: tuple[float, float] | None) -> str:
        if start is None or self.last[0] <= start[0] or self.last[1] <= start[1]:
            return ""
        return f"{number((self.last[1] - start[1]) / (self.last[0] - start[0]))} {self.unit}/s"


class Bars:
    """Draws a bar a stage with its share, rate and time left."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.last_call = time.monotonic()
        self.tasks: dict[str, TaskID] = {}
        self.paces: dict[str, Pace] = {}

    def __call__(self, stage: str, share: float, values: dict[str, float], note: str = "") -> None:
        if stage not in self.tasks:
            self.close()
            self.tasks[stage] = self.progress.add_task(STAGE_NAMES.get(stage, stage), total=1.0, rate="", note="")
            self.paces[stage] = Pace(start=self.last_call)
        pace = self.paces[stage]
        pace.update(values)
        self.last_call = pace.clock()
        self.progress.update(self.tasks[stage], completed=share, rate=pace.rate(), note=note or remark(values))

    def close(self) -> None:
        """Fills the bars of finished stages; those that stopped early did not reach their end."""
        for stage, task in self.tasks.items():
            self.progress.update(task, completed=1.0, rate=self.paces[stage].mean_rate())


class Lines:
    """Writes a line when a stage begins, one every minute, and one when it is over, without control characters."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.stage: str | None = None
        self.start = self.printed = clock()
        self.pace = Pace(clock)
        self.first = (self.start, 0.0)
        self.validation = ""

    def __call__(self, stage: str, share: float, values: dict[str, float], note: str = "") -> None:
        if stage != self.stage:
            self.close()
            self.stage, self.pace = stage, Pace(self.clock, self.start)
            self.first, self.printed, self.validation = (self.clock(), share), self.clock(), ""
            self._say(f"{STAGE_NAMES.get(stage, stage)} ...")
        self.pace.update(values)
        if "validation" in values:
            self.validation = remark({"validation": values["validation"]})
        if self.clock() - self.printed >= LINE_EVERY:
            self.printed = self.clock()
            parts = (f"{share:.0%}", self.pace.done(), self.pace.rate(), self._left(share), self.validation, note)
            self._say(f"{STAGE_NAMES.get(stage, stage)}: {', '.join(part for part in parts if part)}")

    def _left(self, share: float) -> str:
        """The time left at the stage's pace so far; "" before there is one."""
        start, first = self.first
        if share <= first:
            return ""
        return f"{duration((self.printed - start) * (1 - share) / (share - first))} left"

    def close(self) -> None:
        """Prints the count, rate and time of the stage that has finished."""
        now = self.clock()
        if self.stage is not None:
            parts = (self.pace.done(), self.pace.mean_rate(), f"{now - self.start:.1f} s")
            self._say(f"{STAGE_NAMES.get(self.stage, self.stage)}: {', '.join(part for part in parts if part)}")
        self.start = now

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def observing(console: Console = err) -> Iterator[Reporter]:
    """An observer that draws bars on a terminal, and writes lines where the output is a file or a pipe."""
    if not is_live(console):
        lines = Lines(console)
        yield lines
        lines.close()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        bars = Bars(progress)
        yield bars
        bars.close()


@contextmanager
def noting(console: Console = err) -> Iterator[None]:
    """Collects the library's notes on the user's data, and prints each of them once at the end."""
    notes: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        usual = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, InputWarning):
                notes[str(message)] = None
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = keep
        try:
            yield
        finally:
            warnings.showwarning = usual
            for text in notes:
                console.print(f"Note: {text}", markup=False, highlight=False, soft_wrap=True)


def is_live(console: Console) -> bool:
    """Whether bars can be drawn: a true terminal, whatever FORCE_COLOR says, that moves its cursor."""
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


def remark(values: dict[str, float]) -> str:
    """The named values that are shown, such as "loss 0.69"."""
    return "  ".join(f"{name} {values[key]:.4g}" for key, name in SHOWN.items() if key in values)


def duration(seconds: float) -> str:
    """A time in its two largest units: 2 h 5 min, 3 min 20 s, 7 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class TwoLines:
    """A text of any length in two lines at most; where it is longer it ends in an ellipsis."""

    def __init__(self, text: str) -> None:
        self.text = Text(text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """The width of the whole text, which a table requests."""
        return Measurement.get(console, options, self.text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The first two lines."""
        first, *others = self.text.wrap(console, options.max_width)
        yield first
        if len(others) == 1:
            yield others[0]
        elif others:
            rest = Text(f"{others[0].plain.rstrip()}…")
            if rest.cell_len > options.max_width:
                rest = others[0]
                rest.truncate(options.max_width - 1)
                rest.append("…")
            yield rest


def number(value: float) -> str:
    """A count or a rate in few digits: 1,234, 35, 4.2."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def say(text: str) -> None:
    """Prints a line as it is: nothing in it is markup."""
    out.print(text, highlight=False, markup=False, soft_wrap=True)
