"""What the messages of ``prepare`` name as a remedy works as it is written on the command line."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.data import load_dataset
from allrec.errors import InputError

HEADER = "user_id,item_id,timestamp"


def prepare(folder: Path, text: str, *options: str, items: str | None = None) -> str:
    """Prepares a table and returns what was printed: standard output, then standard error."""
    (folder / "log.csv").write_text(text)
    if items is not None:
        (folder / "things.csv").write_text(items)
        options = ("--items", str(folder / "things.csv"), *options)
    result = CliRunner().invoke(app, ["prepare", str(folder / "log.csv"), "--out", str(folder / "out"), *options])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout + result.stderr


def remedy(text: str, option: str) -> list[str]:
    """The first use of an option in a message, as a shell parts it."""
    words = shlex.split(text[text.index(option) :].replace(".\n", "\n").rstrip("."), posix=True)
    return [words[0], words[1].rstrip(".")]


def many(bad: str, num_bad: int) -> str:
    return "\n".join([HEADER, *(f"u,i{n},{bad if n < num_bad else n}" for n in range(100))])


@pytest.mark.parametrize(
    ("text", "option", "items"),
    [
        (many("soon", 9), "--max-rejected", None),
        ("7,21,1600841599\n7,26,1600086502\n", "--names", None),
        (f"{HEADER}\nu,a,1/2/2020\nu,b,2/3/2020\n", "--time-format", None),
        (f"{HEADER}\nu,a,1\n", "--item-names", "a,Kettle\nb,Pot\n"),
    ],
)
def test_a_remedy_mends_what_was_refused(tmp_path: Path, text: str, option: str, items: str | None) -> None:
    with pytest.raises(InputError, match=option) as caught:
        prepare(tmp_path, text, items=items)
    prepare(tmp_path, text, *remedy(str(caught.value), option), items=items)
    assert load_dataset(tmp_path / "out").num_interactions > 0


def test_a_word_for_nothing_is_said_at_the_end_and_its_remedy_rejects_it(tmp_path: Path) -> None:
    text = "\n".join([many("soon", 0), "nan,a,1"])
    shown = prepare(tmp_path, text)
    assert shown.splitlines()[-1].startswith("Note: ")
    prepare(tmp_path, text, *remedy(shown, "--set"))
    assert load_dataset(tmp_path / "out").user_ids == ["u"]


def test_a_loss_is_said_at_the_end_with_a_value_and_its_line(tmp_path: Path) -> None:
    last = prepare(tmp_path, many("soon", 2)).splitlines()[-1]
    assert "2 of 100 rows (2.0%) could not be read (2 bad timestamp, such as 'soon' in line 2)" in last


def test_how_times_were_read_is_said(tmp_path: Path) -> None:
    shown = prepare(tmp_path, f"{HEADER}\nu,a,1600000000000\nu,b,1600000001000\n")
    assert "Times: column timestamp, numbers in milliseconds since 1970; from 2020-09-13T12:26:40Z to" in shown
    assert "Times: none; interactions are in the order of the rows." in prepare(tmp_path, "user_id,item_id\nu,a\n")


def test_a_separator_of_ones_own(tmp_path: Path) -> None:
    prepare(tmp_path, "user_id^item_id\nu^a\n", "--separator", "^")
    assert load_dataset(tmp_path / "out").item_ids == ["a"]


def test_parts_and_an_engine_are_options(tmp_path: Path) -> None:
    text = "user_id,item_id\n" + "".join(f"u{n % 5},i{n}\n" for n in range(40))
    prepare(tmp_path, text, "--partitions", "3", "--engine", "processes", "--workers", "2")
    parted = load_dataset(tmp_path / "out")
    prepare(tmp_path, text)
    assert load_dataset(tmp_path / "out").sha256 == parted.sha256
    with pytest.raises(InputError, match="the engine processes works on parts, and there is one"):
        prepare(tmp_path, text, "--engine", "processes")
    with pytest.raises(InputError, match=r"unknown engine 'procesess': did you mean 'processes'\?"):
        prepare(tmp_path, text, "--partitions", "3", "--engine", "procesess")
    with pytest.raises(InputError, match="got 2 workers for the engine here"):
        prepare(tmp_path, text, "--partitions", "3", "--workers", "2")
