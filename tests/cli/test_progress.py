"""Progress: bars with share, rate and time left on a terminal, plain lines elsewhere."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from allrec.cli.progress import WINDOW, Lines, Pace, TwoLines, duration, number, observing, remark


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_the_rate_counts_from_where_a_stage_was_resumed() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.update({"step": 5000.0})
    assert pace.rate() == ""
    clock.seconds += 4
    pace.update({"step": 5000.0 + 4 * 35})
    assert pace.rate() == pace.mean_rate() == "35 steps/s"
    assert pace.done() == "5,140 steps"


def test_the_rate_looks_back_a_few_seconds_and_the_mean_rate_to_the_start() -> None:
    clock = Clock()
    pace = Pace(clock)
    count = 0.0
    for rate in (10, 1000):
        for _ in range(2 * int(WINDOW)):
            pace.update({"users": count})
            clock.seconds += 1
            count += rate
    pace.update({"users": count})
    assert pace.rate() == "1,000 users/s"
    assert pace.mean_rate() == f"{(10 + 1000) / 2:.0f} users/s"


@pytest.mark.parametrize(
    ("key", "count", "told"),
    [
        ("step", 20, "10 steps/s"),
        ("texts", 512, "256 texts/s"),
        ("users", 1, "0.5 users/s"),
        ("bytes", 3e6, "1.5 MB/s"),
    ],
)
def test_every_stage_has_its_own_unit(key: str, count: float, told: str) -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.update({key: 0.0})
    clock.seconds += 2
    pace.update({key: float(count), "total": 0.5})
    assert pace.rate() == told


def test_before_anything_is_done_there_is_no_rate() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(3):
        pace.update({"rows": 0.0})
        clock.seconds += 1
    assert pace.rate() == ""


def test_a_stage_that_tells_one_count_alone_has_a_rate_from_its_beginning() -> None:
    clock = Clock()
    pace = Pace(clock, start=clock() - 2)
    pace.update({"texts": 300.0})
    assert pace.rate() == pace.mean_rate() == "150 texts/s"


def test_values_without_a_count_have_no_rate() -> None:
    pace = Pace(Clock())
    pace.update({"total": 0.5})
    assert (pace.rate(), pace.mean_rate(), pace.done()) == ("", "", "")


def test_numbers_and_remarks_are_short() -> None:
    assert [number(value) for value in (1234.5, 35.0, 4.2345)] == ["1,234", "35", "4.23"]
    assert remark({"total": 0.12345, "validation": 0.5, "step": 3.0}) == "loss 0.1235  valid NDCG@10 0.5"


def test_a_log_has_a_line_at_the_beginning_and_one_at_the_end_of_a_stage() -> None:
    clock, file = Clock(), io.StringIO()
    lines = Lines(Console(file=file), clock)
    for step in (1, 2, 3):
        lines("backbone", step / 9, {"step": float(step)}, "[a remark]")
        clock.seconds += 0.5
    lines("unknown", 1.0, {})
    clock.seconds += 2
    lines.close()
    assert file.getvalue().splitlines() == [
        "backbone (SASRec) ...",
        "backbone (SASRec): 3 steps, 2 steps/s, 1.5 s",
        "unknown ...",
        "unknown: 2.0 s",
    ]


def test_a_stage_that_fails_is_not_told_as_over() -> None:
    def failing(console: Console) -> None:
        with observing(console) as observer:
            observer("backbone", 0.1, {"step": 1.0})
            raise ValueError("stop")

    file = io.StringIO()
    with pytest.raises(ValueError, match="stop"):
        failing(Console(file=file))
    assert file.getvalue() == "backbone (SASRec) ...\n"


DRIVER = """
import time
from allrec.cli.progress import observing

with observing() as observer:
    observer("prepare", 0.25, {"rows": 0.0}, "reading [red]interactions")
    observer("backbone", 0.0, {"step": 1.0, "total": 0.7})
    time.sleep(0.3)
    observer("backbone", 0.5, {"step": 61.0, "total": 0.6})
    time.sleep(0.2)
"""


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_pipe_gets_no_control_characters(forced: dict[str, str]) -> None:
    told = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, env=os.environ | forced, check=True)
    assert told.stdout == b""
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", told.stderr)
    lines = told.stderr.decode().splitlines()
    assert lines[:3] == ["preparation ...", "preparation: 0 rows, 0.0 s", "backbone (SASRec) ..."]
    assert re.fullmatch(r"backbone \(SASRec\): 61 steps, \d+ steps/s, 0\.\d s", lines[3])


def drawn(**environment: str) -> str:
    """What the driver draws on a terminal of its own."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        running = subprocess.Popen([sys.executable, "-c", DRIVER], stderr=theirs, env=os.environ | environment)
        os.close(theirs)
        shown = b""
        try:
            while chunk := screen.read(4096):
                shown += chunk
        except OSError:  # Linux ends a terminal that nobody writes to with an error.
            pass
        assert running.wait() == 0
    return shown.decode()


def test_a_terminal_gets_bars_with_share_rate_and_time_left() -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn(TERM="xterm", COLUMNS="120"))
    assert re.search(r"backbone \(SASRec\) .* 50% \d+ steps/s 0:00:00 -?[0-9:-]+ loss 0\.6", shown)
    assert "reading [red]interactions" in shown
    last = shown.rstrip().splitlines()[-2:]
    assert all("100%" in line for line in last), "a stage that is over has a full bar"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    shown = drawn(TERM="dumb")
    assert "\x1b" not in shown
    assert "backbone (SASRec) ..." in shown


def test_a_long_stage_says_every_minute_how_far_it_is() -> None:
    told, now = io.StringIO(), [0.0]
    lines = Lines(Console(file=told, width=20), lambda: now[0])
    for step in range(0, 1_001, 10):
        now[0] = 2.0 * step / 10
        values = {"step": float(step)} | ({"validation": 0.25 + step / 10_000} if step % 250 == 0 else {})
        lines("backbone", step / 1_000, values)
    lines.close()
    assert told.getvalue().splitlines() == [
        "backbone (SASRec) ...",
        "backbone (SASRec): 30%, 300 steps, 5 steps/s, 2 min 20 s left, valid NDCG@10 0.275",
        "backbone (SASRec): 60%, 600 steps, 5 steps/s, 1 min 20 s left, valid NDCG@10 0.3",
        "backbone (SASRec): 90%, 900 steps, 5 steps/s, 20 s left, valid NDCG@10 0.325",
        "backbone (SASRec): 1,000 steps, 5 steps/s, 200.0 s",
    ]


def test_a_stage_that_goes_on_counts_its_own_time_alone() -> None:
    told, now = io.StringIO(), [0.0]
    lines = Lines(Console(file=told, width=20), lambda: now[0])
    lines("text", 0.5, {})
    now[0] = 60.0
    lines("text", 0.6, {})
    assert told.getvalue().splitlines()[-1] == "text embeddings: 60%, 4 min 0 s left"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (200, "3 min 20 s"), (7_500, "2 h 5 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@settings(deadline=None)
@given(st.text(alphabet="ab \u65e5\U0001f3a7[]", max_size=300), st.integers(6, 60))
def test_a_text_takes_two_lines_at_most(text: str, width: int) -> None:
    shown = io.StringIO()
    table = Table("title")
    table.add_row(TwoLines(text))
    Console(file=shown, width=width).print(table)
    rows = shown.getvalue().splitlines()[3:-1]
    assert len(rows) <= 2
    assert all(cell_len(row) <= width for row in rows)
    letters = "".join(row.strip("\u2502| ") for row in rows).replace(" ", "")
    whole = text.replace(" ", "")
    assert letters == whole or (letters.endswith("\u2026") and whole.startswith(letters[:-1]))
