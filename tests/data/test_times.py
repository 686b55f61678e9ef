"""A column of times is read in one form and one unit, chosen from all of it, to the last digit."""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allrec.data import PrepareConfig, prepare
from allrec.data.time_forms import FORMS, SECOND
from allrec.data.times import read_times
from allrec.errors import InputError


def read(values: Sequence[Any], time_format: str | None = None) -> list[int | None]:
    table = pl.LazyFrame({"timestamp": values})
    times = read_times(table, time_format, "log.csv")
    return table.select(times.nanoseconds.alias("time")).collect()["time"].to_list()


def utc(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * SECOND  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2020-01-01T10:00:00+02:00", "2020-01-01T10:00:00-0530"], [utc(2020, 1, 1, 8), utc(2020, 1, 1, 15, 30)]),
        (["2020-01-01 10:00:00 UTC", "2020-01-01 10:00:00+02"], [utc(2020, 1, 1, 10), utc(2020, 1, 1, 8)]),
        (["2020-1-2", "2020/01/03 04:05", "2020-01-03T04:05:06z"],
         [utc(2020, 1, 2), utc(2020, 1, 3, 4, 5), utc(2020, 1, 3, 4, 5, 6)]),
        (["2020-01-01T00:00:00.123456789Z", "2020-01-01T00:00:00,5"],
         [utc(2020, 1, 1) + 123_456_789, utc(2020, 1, 1) + SECOND // 2]),
        (["12/1/2010 8:26", "12/13/2010 12:00 AM"], [utc(2010, 12, 1, 8, 26), utc(2010, 12, 13)]),
        (["1/12/2010 8:26", "13/12/2010 8:26 pm"], [utc(2010, 12, 1, 8, 26), utc(2010, 12, 13, 20, 26)]),
        (["12/1/10 8:26", "12/13/99 8:26"], [utc(2010, 12, 1, 8, 26), utc(1999, 12, 13, 8, 26)]),
        (["31.12.2020 23:59", "1.2.2021"], [utc(2020, 12, 31, 23, 59), utc(2021, 2, 1)]),
        (["01-Jan-1995", "Jan 5, 2018 10:00 PM", "5th January 2018"],
         [utc(1995, 1, 1), utc(2018, 1, 5, 22), utc(2018, 1, 5)]),
        (["Wed Jan 01 00:00:00 +0100 2020", "Thu, 02 Jan 2020 03:04:05 GMT"],
         [utc(2019, 12, 31, 23), utc(2020, 1, 2, 3, 4, 5)]),
        (["09 13, 2009", "09 1, 2010"], [utc(2009, 9, 13), utc(2010, 9, 1)]),
        (["20200131", "20200201"], [utc(2020, 1, 31), utc(2020, 2, 1)]),
        ([20200131, 20200201], [utc(2020, 1, 31), utc(2020, 2, 1)]),
        (["20200131", "soon", "20200201"], [utc(2020, 1, 31), None, utc(2020, 2, 1)]),
        (["20200131235959", "20200201000000"], [utc(2020, 1, 31, 23, 59, 59), utc(2020, 2, 1)]),
        ([date(2020, 1, 1), date(9999, 1, 1)], [utc(2020, 1, 1), None]),
        ([datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))], [utc(2019, 12, 31, 22)]),
    ],
)  # fmt: skip
def test_dates(values: list[Any], expected: list[int | None]) -> None:
    assert read(values) == expected


T = 1_600_000_000


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([str(T), f"{T}.25"], [T * SECOND, T * SECOND + SECOND // 4]),
        ([f"{T}000300", f"{T}000100"], [T * SECOND + 300_000, T * SECOND + 100_000]),
        ([f"{T}000000007"], [T * SECOND + 7]),
        (["1.6e9", f"{T}.123456789"], [T * SECOND, T * SECOND + 123_456_789]),
        (["1,600,000,000", "1,600,000,001.5"], [T * SECOND, (T + 1) * SECOND + SECOND // 2]),
        ([f"{T},5", f"{T + 1},25"], [T * SECOND + SECOND // 2, (T + 1) * SECOND + SECOND // 4]),
        (["1.600.000.000", "1.600.000.001"], [T * SECOND, (T + 1) * SECOND]),
        (["1 600 000 000"], [T * SECOND]),
        (["-86401.5", "5"], [-86401 * SECOND - SECOND // 2, 5 * SECOND]),
        ([1.5, float("nan"), float("inf"), None], [SECOND + SECOND // 2, None, None, None]),
        ([-100_000, T], [-100_000 * SECOND, T * SECOND]),
    ],
)
def test_numbers(values: list[Any], expected: list[int | None]) -> None:
    assert read(values) == expected


def test_a_placeholder_below_zero_is_no_time_unless_the_unit_is_given() -> None:
    assert read([-1, T]) == [None, T * SECOND]
    assert read([-1, T], "seconds") == [-SECOND, T * SECOND]


def test_one_unit_is_chosen_and_a_number_in_another_is_not_read() -> None:
    milliseconds = [T * 1000, T * 1000 + 1, T]
    assert read(milliseconds) == [T * SECOND, T * SECOND + 1_000_000, None]
    assert read([T, T + 1, T * 1000]) == [T * SECOND, (T + 1) * SECOND, None]


def test_a_zero_in_a_column_of_milliseconds_is_1970() -> None:
    assert read([0, T * 1000, T * 1000]) == [0, T * SECOND, T * SECOND]


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        (["12/1/2010", "12/3/2010"], "month-first", "day-first"),
        (["12/1/10", "31/3/10"], "day-first", "year-first"),
        (["1,600", "1,700"], "thousands-comma", "decimal-comma"),
    ],
)
def test_two_ways_to_read_a_column_are_refused_and_each_can_be_named(
    values: list[str], first: str, second: str
) -> None:
    match = f"such as '{values[0]}' can be read in two ways .*--time-format {first} or --time-format {second}"
    with pytest.raises(InputError, match=match):
        read(values)
    readings = [read(values, name) for name in (first, second)]
    assert None not in readings[0] + readings[1]
    assert readings[0] != readings[1]


def test_equal_readings_are_no_tie() -> None:
    assert read(["1/1/2020", "2/2/2020"]) == [utc(2020, 1, 1), utc(2020, 2, 2)]


def test_no_form_names_a_value_the_forms_and_a_pattern_that_helps() -> None:
    with pytest.raises(InputError, match=r"log\.csv: times such as '31 x 20' are in no form") as caught:
        read(["31 x 20", "30 x 20"])
    assert all(form.example in str(caught.value) for form in FORMS)
    assert "--time-format '%d %b %y'" in str(caught.value)
    assert read(["31 Dec 20"], "%d %b %y") == [utc(2020, 12, 31)]


@pytest.mark.parametrize("values", [[True, False], [time(1, 0)], [timedelta(1)], [[1], [2]]])
def test_a_column_of_another_type_is_refused(values: list[Any]) -> None:
    with pytest.raises(InputError, match=r"the time column holds values of type .*--column timestamp=COLUMN"):
        read(values)


def test_unknown_form_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown time_format 'day-frist': did you mean 'day-first'"):
        read(["1/2/2020"], "day-frist")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_example_of_every_form_is_read_by_it(form: Any) -> None:
    for example in re.split(" or ", form.example):
        assert None not in read([example], form.name)


MOMENTS = st.integers(-5_000_000_000, 7_000_000_000)


@settings(deadline=None)
@given(st.lists(MOMENTS, min_size=1, max_size=20), st.integers(0, SECOND - 1))
def test_iso_and_seconds_are_read_to_the_nanosecond(moments: list[int], rest: int) -> None:
    start = datetime(1970, 1, 1)
    dates = [(start + timedelta(seconds=moment)).strftime("%Y-%m-%dT%H:%M:%S") for moment in moments]
    assert read([f"{day}.{rest:09d}Z" for day in dates]) == [moment * SECOND + rest for moment in moments]
    whole = [f"{moment}.{rest:09d}" for moment in moments if moment >= 0] or ["0"]
    exact = [moment * SECOND + rest for moment in moments if moment >= 0] or [0]
    assert read(whole, "seconds") == exact


@pytest.mark.parametrize("name", ["date_added", "t_dat", "InvoiceDate", "unix_timestamp", "review_date", "rated_at"])
def test_names_of_time_columns(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.csv").write_text(f"user_id,item_id,{name}\nu,new,2020-03-01\nu,mid,2020-02-01\nu,old,2020-01-01\n")
    dataset = prepare(tmp_path / "log.csv", tmp_path / "out")
    assert [dataset.item_ids[item] for item in dataset.history(0)] == ["old", "mid", "new"]


def test_a_time_column_that_is_not_recognised_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,moment,mood\nu,b,2,x\nu,a,1,y\n")
    with pytest.warns(UserWarning, match=r"no column of times .* among moment, mood.*--column timestamp=COLUMN"):
        dataset = prepare(tmp_path / "log.csv", tmp_path / "out")
    assert dataset.item_ids == ["b", "a"]
    config = PrepareConfig(columns={"timestamp": "moment"})
    dataset = prepare(tmp_path / "log.csv", tmp_path / "out", config=config)
    assert [dataset.item_ids[item] for item in dataset.history(0)] == ["a", "b"]
