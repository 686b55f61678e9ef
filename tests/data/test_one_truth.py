"""Tables in every format, written from one truth, become the same data set; broken ones are refused or counted."""

import csv
import gzip
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allrec.data import prepare
from allrec.errors import InputError, InputWarning
from allrec.files import sha256_file

NUM_EXAMPLES = int(os.environ.get("ALLREC_GENERATED_FILES", "40"))
TABLES = ("interactions.parquet", "items.parquet", "users.parquet", "splits.parquet")
ENDINGS = ("csv", "tsv", "csv.gz", "tsv.gz", "jsonl", "jsonl.gz", "parquet")
TIMES: dict[str, Callable[[int], str]] = {
    "seconds": str,
    "milliseconds": lambda time: f"{time}000",
    "microseconds": lambda time: f"{time}000000",
    "nanoseconds": lambda time: f"{time}000000000",
    "decimals": lambda time: f"{time}.0",
    "iso": lambda time: datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "offset": lambda time: datetime.fromtimestamp(time, timezone(timedelta(hours=2))).isoformat(),
    "naive": lambda time: datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
    "words": lambda time: datetime.fromtimestamp(time, UTC).strftime("%d %b %Y %H:%M:%S"),
}


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


def content(rows: list[dict[str, str]], ending: str) -> bytes:
    """A table of texts in one format."""
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


def write(folder: Path, truth: Truth, ending: str, times: str) -> Path:
    """The truth as a folder of two tables."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = [{"user_id": user, "item_id": item, "timestamp": TIMES[times](at)} for user, item, at in truth.events]
    items = [{"item_id": item, "title": title} for item, title in truth.titles.items()]
    (folder / f"interactions.{ending}").write_bytes(content(rows, ending))
    (folder / f"items.{ending}").write_bytes(content(items, ending))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in TABLES}


@pytest.mark.filterwarnings("ignore::allrec.errors.InputWarning")
@settings(max_examples=max(5, NUM_EXAMPLES // 8), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(truths())
def test_every_format_gives_the_same_data_set(tmp_path_factory: pytest.TempPathFactory, truth: Truth) -> None:
    folder = tmp_path_factory.mktemp("truth")
    expected = None
    for number, ending in enumerate(ENDINGS):
        for times in (list(TIMES)[number % len(TIMES)], list(TIMES)[(number + 4) % len(TIMES)]):
            dataset = prepare(write(folder / "source", truth, ending, times), folder / "out")
            got = hashes(folder / "out")
            expected = expected or got
            assert got == expected, (ending, times)
    assert dataset.num_interactions == len(truth.events)
    assert set(dataset.user_ids) == {user for user, _, _ in truth.events}
    for user, user_id in enumerate(dataset.user_ids):
        own = sorted((at, place, item) for place, (who, item, at) in enumerate(truth.events) if who == user_id)
        assert [dataset.item_ids[item] for item in dataset.history(user)] == [item for _, _, item in own]
    shutil.rmtree(folder)


def num_records(text: str, separator: str | None) -> int:
    """Rows of a delimited text with a header, or of JSON lines (no separator), counted apart from the package."""
    lines = [line for line in text.split("\n") if line.strip("\r")]
    if separator is None:
        return len([line for line in lines if line.strip()])
    if not any(field.startswith('"') for line in lines for field in line.split(separator)):
        return len(lines) - 1
    # Python's reader ends a row at a carriage return alone, which is a character here.
    plain = io.StringIO(re.sub("\r(?!\n)", "?", text), newline="")
    return sum(bool(row) for row in csv.reader(plain, delimiter=separator)) - 1


def insert(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place:]


PIECES = (b'"', b",", b"\t", b";", b"\n", b"\r\n", b"\n\n", b"\0", b"\xff", b"{", b"}", b"NaN", b"nan", b"\\", b"-1",
          b" ", b"soon", b"1,600", b"null", b"\xef\xbb\xbf", b"[1]", b"9" * 30)  # fmt: skip


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, bytes]:
    """The ending and the bytes of a table of interactions with a few faults."""
    ending, times = draw(st.sampled_from(["csv", "tsv", "jsonl"])), draw(st.sampled_from(list(TIMES)))
    truth = draw(truths())
    rows = [{"user_id": user, "item_id": item, "timestamp": TIMES[times](at)} for user, item, at in truth.events]
    data = content(rows, ending)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "delete", "cut", "repeat"])):
            case "insert":
                data = insert(data, place, draw(st.sampled_from(PIECES)))
            case "delete":
                data = data[:place] + data[place + draw(st.integers(1, 12)) :]
            case "cut":
                data = data[: max(place, len(data) // 2)]
            case "repeat":
                data = insert(data, place, data[place : place + draw(st.integers(1, 40))])
    return ending, data


@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(broken())
def test_a_broken_table_is_refused_with_its_place_or_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, table: tuple[str, bytes]
) -> None:
    ending, data = table
    folder = tmp_path_factory.mktemp("broken")
    source = folder / f"log.{ending}"
    source.write_bytes(data)
    dataset, refusal = None, ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            dataset = prepare(source, folder / "out")
        except InputError as error:
            refusal = str(error)
    if dataset is None:
        assert str(source) in refusal
        assert "\n" not in refusal
        assert [path.name for path in folder.iterdir()] == [source.name]
        shutil.rmtree(folder)
        return
    assert all(issubclass(one.category, InputWarning) for one in said)
    separator = {"csv": ",", "tsv": "\t"}.get(ending)
    if not any("separated by" in str(one.message) for one in said):
        expected = num_records(data.decode().removeprefix("\ufeff"), separator)
        assert dataset.num_interactions + dataset.counts["rejected_rows"] == expected
    lost = dataset.counts["rejected_rows"]
    if lost > 0.01 * (dataset.num_interactions + lost):
        assert any("could not be read" in str(one.message) for one in said)
    shutil.rmtree(folder)
