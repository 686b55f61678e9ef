"""Tables in every format and every form of times, written from one truth, are the same data set to the byte."""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.any_file import TIMES

from allrec.data import prepare
from allrec.data.dataset import FILES, MANIFEST
from allrec.files import read_json

ENDINGS = ("csv", "tsv", "csv.gz", "tsv.gz", "jsonl", "jsonl.gz", "parquet")
FIRST = ("csv", "iso")
TYPED: dict[str, Callable[[int], Any]] = {
    "whole numbers": int,
    "floats": float,
    "dates and times": lambda time: datetime.fromtimestamp(time, UTC).replace(tzinfo=None),
    "dates and times with an offset": lambda time: datetime.fromtimestamp(time, timezone(timedelta(hours=-3))),
}
"""Forms of times that a table with types has besides texts."""
UNITS = ("ms", "us", "ns")


class Truth(NamedTuple):
    """What happened, and the title of every item."""

    events: list[tuple[str, str, int]]
    titles: dict[str, str]


TEXT = st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from([" ", ",", '"', ";", "|"]), max_size=8)
IDS = TEXT.map(str.strip).filter(lambda text: text and not text.startswith(("[", "{")) and ".0" not in text)


@st.composite
def truths(draw: st.DrawFn) -> Truth:
    """Some users and items with ids of any letters, and times of 1990 to 2100."""
    users, items = (draw(st.lists(IDS, min_size=1, max_size=6, unique=True)) for _ in range(2))
    times = st.integers(631_152_000, 4_000_000_000)
    event = st.tuples(st.sampled_from(users), st.sampled_from(items), times)
    return Truth(draw(st.lists(event, min_size=1, max_size=25)), {item: draw(TEXT) for item in items})


def market() -> Truth:
    """Users with enough items for every split and list of candidates; two of them have missing ids and are rejected."""
    rng = np.random.default_rng(18)
    users = [f"u{n}" for n in range(40)] + ["007", "Zoë, 2nd", 'the "one"', "日本"]
    items = [f"i{n}" for n in range(150)] + ["0042", "a;b|c", "1.10", "\\N"]
    times = np.sort(rng.integers(1_262_304_000, 1_900_000_000, 700))
    events = [(users[rng.integers(len(users))], items[int(rng.zipf(1.4)) % len(items)], int(time)) for time in times]
    rng.shuffle(events)
    events = [(str(user), str(item), int(time)) for user, item, time in events]
    events[5], events[600] = ("", "i1", events[5][2]), ("u1", "", events[600][2])
    return Truth(events, {item: f"Thing {number}, {item}" for number, item in enumerate(items)})


def content(rows: list[dict[str, Any]], ending: str) -> bytes:
    """A table in one format."""
    kind = ending.removesuffix(".gz")
    if kind == "parquet":
        buffer = io.BytesIO()
        pl.DataFrame(rows).write_parquet(buffer)
        return buffer.getvalue()
    if kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows)
    else:
        target = io.StringIO()
        writer = csv.DictWriter(target, list(rows[0]), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        text = target.getvalue()
    return gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode()


def write(folder: Path, truth: Truth, ending: str, form: Callable[[int], Any]) -> Path:
    """The truth as a folder of two tables."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = [{"user_id": user, "item_id": item, "timestamp": form(at)} for user, item, at in truth.events]
    items = [{"item_id": item, "title": title} for item, title in truth.titles.items()]
    (folder / f"interactions.{ending}").write_bytes(content(rows, ending))
    (folder / f"items.{ending}").write_bytes(content(items, ending))
    return folder


def made(source: Path, out: Path) -> dict[str, Any]:
    """Every byte of the data set, and what its manifest says but for the names and hashes of the sources.

    How times and rejected values were written is left out too, as is how long it took.
    """
    prepare(source, out)
    manifest = read_json(out / MANIFEST)
    for name in ("seconds", "source"):
        del manifest[name]
    del manifest["times"]["form"], manifest["files"]["rejected.jsonl"]
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key != "raw_timestamp"} for row in rejected]
    return {name: (out / name).read_bytes() for name in FILES if name != "rejected.jsonl"} | {
        "manifest": manifest, "rejected": [{key: value or "" for key, value in row.items()} for row in kept],
    }  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("first")
    return made(write(folder / "source", market(), FIRST[0], TIMES[FIRST[1]]), folder / "out")


def test_the_market_has_all_that_a_data_set_has(first: dict[str, Any]) -> None:
    counts = first["manifest"]["counts"]
    assert counts["rejected_rows"] == 2
    assert counts["interactions"] == 698
    assert min(counts["evaluated_valid"], counts["evaluated_test"]) > 35
    assert first["manifest"]["rejected"] == {"missing item id": 1, "missing user id": 1}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("times", sorted(TIMES))
def test_every_format_with_every_form_of_times_gives_the_same_bytes(
    tmp_path: Path, first: dict[str, Any], ending: str, times: str
) -> None:
    assert made(write(tmp_path / "source", market(), ending, TIMES[times]), tmp_path / "out") == first


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("times", sorted(TYPED))
def test_typed_times_give_the_same_bytes(tmp_path: Path, first: dict[str, Any], times: str, unit: str) -> None:
    source = write(tmp_path / "source", market(), "parquet", TYPED[times])
    path = source / "interactions.parquet"
    table = pl.read_parquet(path)
    if table["timestamp"].dtype == pl.Datetime:
        table.with_columns(pl.col("timestamp").dt.cast_time_unit(unit)).write_parquet(path)  # type: ignore[arg-type]
    assert made(source, tmp_path / "out") == first


@pytest.mark.filterwarnings("ignore::allrec.errors.InputWarning")
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(truths())
def test_any_ids_and_titles_are_the_same_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, truth: Truth
) -> None:
    folder = tmp_path_factory.mktemp("truth")
    expected = None
    for ending, times in zip(ENDINGS, TIMES, strict=False):
        got = made(write(folder / "source", truth, ending, TIMES[times]), folder / "out")
        expected = expected or got
        assert got == expected, (ending, times)
    shutil.rmtree(folder)
