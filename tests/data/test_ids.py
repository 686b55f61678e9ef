"""An id is one and the same text in every table and verb."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allrec.data.ids import as_text, id_of, ids_of, split_ids
from allrec.data.items import clean_new_items, read_new_items
from allrec.errors import InputError


@pytest.mark.parametrize(
    ("value", "text"),
    [(21, "21"), (21.0, "21"), ("21.0", "21"), (" a ", "a"), (np.int64(3), "3"), (np.float32(4), "4"), (6.5, "6.5"),
     ("007.0", "007.0"), ("1.0.0", "1.0.0"), ("-3.0", "-3"), (0, "0"), (2**70, str(2**70)), ("-", "-"), (".0", ".0")],
)  # fmt: skip
def test_id_of(value: object, text: str) -> None:
    assert id_of(value, "item") == text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, {"$oid": 1}, ["a"], b"a"])
def test_what_is_no_id(value: object) -> None:
    with pytest.raises(InputError, match="as the id of an item, expected a text or a whole number"):
        id_of(value, "item")


def test_a_bare_string_is_no_list_of_ids_and_the_list_that_is_named_is_one() -> None:
    with pytest.raises(InputError, match=r"got the history 'SKU1', expected a list of ids\. Write \['SKU1'\]\."):
        ids_of("SKU1", "item", "history")
    assert ids_of(["SKU1", 7, 8.0], "item", "history") == ["SKU1", "7", "8"]


@settings(deadline=None)
@given(st.one_of(st.integers(-(2**52), 2**52), st.floats(allow_nan=False, allow_infinity=False, width=64), st.text()))
def test_tables_and_callers_agree(value: Any) -> None:
    if isinstance(value, float) and (abs(value) > 2**53 or not value.is_integer()):
        return
    column = pl.Series("id", [value])
    in_table = column.to_frame().select(as_text(pl.col("id"), column.dtype)).item()
    if "\0" not in str(value):
        assert in_table == id_of(value, "item") or str(value) != str(value).strip()


@pytest.mark.parametrize(
    ("text", "ids"),
    [("a,b", ["a", "b"]), ('a,"b,c"', ["a", "b,c"]), (' a , "b" ', ["a", "b"]), ('"5"" disc",x', ['5" disc', "x"]),
     ("", []), (",,", [])],
)  # fmt: skip
def test_ids_on_the_command_line(text: str, ids: list[str]) -> None:
    assert split_ids(text) == ids


def test_a_quote_that_is_not_closed_on_the_command_line() -> None:
    with pytest.raises(InputError, match="cannot split the ids"):
        split_ids('a,"b')


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda text: text == text.strip() and text.isprintable()), min_size=1))
def test_any_ids_can_be_quoted(ids: list[str]) -> None:
    assert split_ids(",".join('"' + text.replace('"', '""') + '"' for text in ids)) == ids


def test_new_items_have_ids_as_tables_do(tmp_path: Path) -> None:
    rows = [{"item_id": 21.0, "title": "A"}, {"item_id": 0, "title": "B"}, {"item_id": "7.0", "title": "C"}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert clean_new_items(read_new_items(tmp_path / "new.jsonl"), {}).item_ids == ["21", "0", "7"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"item_id": NaN, "title": "A"}', "line 1 is no JSON: NaN is no JSON value; null is"),
        ('{"item_id": {"a": 1}, "title": "A"}', "as the id of an item, expected a text"),
        ('{"item_id": null, "title": "A"}', "item 1 has no item_id"),
    ],
)
def test_new_items_without_a_usable_id(tmp_path: Path, line: str, match: str) -> None:
    (tmp_path / "new.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=match):
        clean_new_items(read_new_items(tmp_path / "new.jsonl"), {})
