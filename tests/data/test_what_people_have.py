"""Small inputs of the kinds that people have: each is read right, or refused with place, expectation and remedy."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from allrec.data import Dataset, PrepareConfig, prepare
from allrec.data.items import read_new_items
from allrec.errors import InputError, InputWarning

ROWS = ["u,a,1", "u,b,2", "u,c,3"]


def csv(folder: Path, rows: Sequence[str] = ROWS, header: str | None = "user_id,item_id,timestamp") -> Path:
    path = folder / "log.csv"
    path.write_text("".join(f"{row}\n" for row in [*([header] if header else []), *rows]))
    return path


def prepared(source: Path, things: Path | None = None, /, **options: Any) -> Dataset:
    return prepare(source, source.parent / "out", items=things, config=PrepareConfig(**options))


def history(dataset: Dataset, user: int = 0) -> list[str]:
    return [dataset.item_ids[item] for item in dataset.history(user)]


# Times


def test_an_offset_is_part_of_a_time(tmp_path: Path) -> None:
    rows = ["u,a,2020-01-01T00:00:00Z", "u,b,2020-01-01T10:00:00+02:00", "u,c,2020-01-01T09:00:00Z"]
    assert history(prepared(csv(tmp_path, rows))) == ["a", "b", "c"]


def test_sorting_uses_the_whole_value(tmp_path: Path) -> None:
    rows = ["u,third,1600000000000300", "u,first,1600000000000100", "u,second,1600000000000200"]
    assert history(prepared(csv(tmp_path, rows))) == ["first", "second", "third"]


def test_how_times_were_read_is_kept(tmp_path: Path) -> None:
    prepared(csv(tmp_path, ["u,a,1600000000000", "u,b,1600000001000"], "user_id,item_id,rated_at"))
    times = json.loads((tmp_path / "out" / "dataset.json").read_text())["times"]
    assert times == {
        "column": "rated_at",
        "form": "numbers in milliseconds since 1970",
        "first": "2020-09-13T12:26:40Z",
        "last": "2020-09-13T12:26:41Z",
    }


# Losses


def lossy(folder: Path, num_bad: int) -> Path:
    return csv(folder, [f"u,i{n},{'soon' if n < num_bad else n}" for n in range(200)])


def test_few_lost_rows_are_kept_in_the_file_of_rejected_rows_alone(tmp_path: Path) -> None:
    assert prepared(lossy(tmp_path, 2)).counts["rejected_rows"] == 2


def test_more_than_a_hundredth_is_said_with_a_value_and_its_line(tmp_path: Path) -> None:
    match = r"log\.csv: 3 of 200 rows \(1\.5%\) could not be read \(3 bad timestamp, such as 'soon' in line 2\)"
    with pytest.warns(InputWarning, match=match):
        prepared(lossy(tmp_path, 3))


def test_too_many_are_refused_and_the_share_that_is_named_lets_them_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"11 of 200 rows \(5\.5%\).*more than the 5\.0%.*--max-rejected 0\.055\."):
        prepared(lossy(tmp_path, 11))
    assert not (tmp_path / "out").exists()
    with pytest.warns(InputWarning, match="11 of 200"):
        assert prepared(lossy(tmp_path, 11), max_rejected=0.055).counts["interactions"] == 189


def test_filters_are_no_losses(tmp_path: Path) -> None:
    rows = [f"u{n % 2},i{n % 3},{n},{n % 5}" for n in range(60)] + ["v,i0,1,5"]
    source = csv(tmp_path, rows, "user_id,item_id,timestamp,rating")
    dataset = prepared(source, min_rating=3, count_filter="k-core", min_user_count=2, max_rejected=0)
    assert dataset.counts["rejected_rows"] == 37


def test_the_line_counts_line_ends_within_quotes(tmp_path: Path) -> None:
    rows = ['u,"a\nb",1', *(f"u,i{n},{n}" for n in range(50)), "u,x,soon"]
    with pytest.warns(InputWarning, match="such as 'soon' in line 54"):
        prepared(csv(tmp_path, rows), max_rejected=1)


@pytest.mark.parametrize("blank", [[""], [",,"], ["", ",,"]])
def test_blank_lines_are_no_rows(tmp_path: Path, blank: list[str]) -> None:
    source = csv(tmp_path, ["u,a,1", *blank, "u,b,2", *blank])
    assert prepared(source, max_rejected=0).counts["rejected_rows"] == 0


def items_of(folder: Path, *item_ids: str) -> Path:
    path = folder / "things.csv"
    path.write_text("item_id,title,sku_code\n" + "".join(f"{item_id},T{item_id},0{item_id}\n" for item_id in item_ids))
    return path


def test_items_that_are_not_in_the_catalogue_are_said(tmp_path: Path) -> None:
    match = r"things\.csv: 1 of 3 interacted items are not in it \(such as 'c'; an id there is 'd'\): 33\.3%"
    with pytest.warns(InputWarning, match=match):
        prepared(csv(tmp_path), items_of(tmp_path, "a", "b", "d"))


@pytest.mark.parametrize("choice", ["all", "interacted"])
def test_none_in_the_catalogue_is_refused_and_another_column_helps(tmp_path: Path, choice: str) -> None:
    source = csv(tmp_path, ["u,05,1", "u,06,2"])
    match = r"2 of 2 interacted items are not in it \(such as '05'; an id there is '5'\).*--item-column item_id=COLUMN"
    with pytest.raises(InputError, match=match):
        prepared(source, items_of(tmp_path, "5", "6"), items=choice)
    dataset = prepared(source, items_of(tmp_path, "5", "6"), items=choice, item_columns={"item_id": "sku_code"})
    assert dataset.titles == ["T5", "T6"]


# Ids


def test_whole_floats_are_their_digits_in_every_format(tmp_path: Path) -> None:
    values = {"user_id": [21.0, 21.0, None, float("nan")], "item_id": [5.0, 6.5, 1.0, 2.0], "timestamp": [1, 2, 3, 4]}
    pl.DataFrame(values).write_parquet(tmp_path / "log.parquet")
    with pytest.warns(InputWarning, match="2 missing user id, first in row 3"):
        typed = prepared(tmp_path / "log.parquet", max_rejected=0.5)
    (tmp_path / "log.jsonl").write_text('{"user_id": 21.0, "item_id": 5.0}\n{"user_id": 21, "item_id": 6.5}\n')
    text = prepared(csv(tmp_path, ["21.0,5.0,1", "21,6.5,2"]))
    lines = prepared(tmp_path / "log.jsonl")
    for dataset in (typed, text, lines):
        assert (dataset.user_ids, dataset.item_ids) == (["21"], ["5", "6.5"])


def test_other_texts_with_a_point_are_kept_to_the_letter(tmp_path: Path) -> None:
    dataset = prepared(csv(tmp_path, ["u,007.0,1", "u,1.10,2", "u,v1.0,3", "u,1.0.0,4"]))
    assert dataset.item_ids == ["007.0", "1.10", "v1.0", "1.0.0"]


def test_floats_that_lost_digits_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [2.0**53 + 2], "item_id": ["a"]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"user_id 9007199254740994 is a float beyond 9007199254740992, where ids"):
        prepared(tmp_path / "log.parquet")


@pytest.mark.parametrize("word", ["nan", "NULL", "None"])
def test_words_for_nothing_get_a_notice_whose_remedy_works(tmp_path: Path, word: str) -> None:
    source = csv(tmp_path, [f"{word},a,1", "u,a,1"])
    with pytest.warns(InputWarning, match=rf"1 row has the user_id '{word}'.*--set 'missing_ids=\[\"{word}\"\]'"):
        assert prepared(source).user_ids == [word, "u"]
    with pytest.warns(InputWarning, match="1 missing user id, such as|1 missing user id, first in line 2"):
        assert prepared(source, missing_ids=(word,), max_rejected=0.5).user_ids == ["u"]


@pytest.mark.parametrize("value", ['{"$oid": "5f"}', "[1, 2]"])
def test_objects_are_no_ids(tmp_path: Path, value: str) -> None:
    good = '{"user_id": "u", "item_id": "a"}\n'
    (tmp_path / "log.jsonl").write_text(f'{good}\n{{"user_id": {value}, "item_id": "a"}}\n')
    with pytest.raises(InputError, match=r"log\.jsonl, line 3: user_id is .*, expected a text or a whole number"):
        prepared(tmp_path / "log.jsonl")


def test_nested_columns_are_no_ids(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [{"a": 1}], "item_id": ["a"], "time": [1], "who": ["u"]}).write_parquet(
        tmp_path / "log.parquet"
    )
    with pytest.raises(InputError, match=r"column of user_id holds values of type Struct.*--column user_id=COLUMN"):
        prepared(tmp_path / "log.parquet")
    assert prepared(tmp_path / "log.parquet", columns={"user_id": "who"}).user_ids == ["u"]


# Files


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_recognised_and_said(tmp_path: Path, separator: str) -> None:
    source = csv(tmp_path, [row.replace(",", separator) for row in ROWS], f"user_id{separator}item_id{separator}time")
    with pytest.warns(InputWarning, match=r"its fields are separated by .*--separator"):
        assert history(prepared(source)) == ["a", "b", "c"]


def test_a_separator_can_be_given(tmp_path: Path) -> None:
    source = csv(tmp_path, [row.replace(",", "^") for row in ROWS], "user_id^item_id^timestamp")
    assert history(prepared(source, separator="^")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "rows", [["21,26,1600841599", "53,15,1600086502"], ["7,7,1", "7,8,2"], ["u7,a,5,1", "u7,b,5,2"]]
)
def test_a_file_without_a_header_is_recognised_and_its_columns_can_be_named(tmp_path: Path, rows: list[str]) -> None:
    match = r"log\.csv.*(looks like data|that line is data).*--names user_id,item_id,timestamp"
    with pytest.raises(InputError, match=match) as caught:
        prepared(csv(tmp_path, rows, None))
    names = str(caught.value).rpartition("--names ")[2].rstrip(".").split(",")
    dataset = prepared(csv(tmp_path, rows, None), names=names)
    assert dataset.num_interactions == 2


def test_names_for_another_number_of_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 3 columns in its first line, and 2 were named \(user_id, item_id\)"):
        prepared(csv(tmp_path, header=None), names=("user_id", "item_id"))


def test_items_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "things.csv").write_text("a,Kettle\nb,Pot\nc,Pan\n")
    with pytest.raises(InputError, match=r"Where that line is data and no header, name the columns: --item-names"):
        prepared(csv(tmp_path), tmp_path / "things.csv")
    dataset = prepared(csv(tmp_path), tmp_path / "things.csv", item_names=("item_id", "title"))
    assert dataset.titles == ["Kettle", "Pot", "Pan"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_gzip_under_another_name_is_read(tmp_path: Path, suffix: str) -> None:
    content = "user_id,item_id\nu,a\n" if suffix == ".csv" else '{"user_id": "u", "item_id": "a"}\n'
    (tmp_path / f"log{suffix}").write_bytes(gzip.compress(content.encode()))
    assert prepared(tmp_path / f"log{suffix}").item_ids == ["a"]


@pytest.mark.parametrize(
    ("content", "match"), [(b"PK\x03\x04abc", "is a zip archive.*Unpack it"), (b"PAR1abc", "is Parquet under another")]
)
def test_other_kinds_under_the_name_of_a_table(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(InputError, match=match):
        prepared(tmp_path / "log.csv")


def test_nan_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "things.jsonl").write_text('{"item_id":"a","price":1.0}\n{"item_id":"b","price":NaN}\n')
    with pytest.raises(InputError, match=r"things\.jsonl, line 2: not JSON \(NaN is no JSON value; null is\)"):
        prepared(csv(tmp_path), tmp_path / "things.jsonl")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log\.csv, line 1: the column 'item_id' is there twice, as field 2 and as"):
        prepared(csv(tmp_path, ["u,a,1,b"], "user_id,item_id,timestamp,item_id"))


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_quote_that_opens_a_field_and_is_not_closed_is_refused_with_its_line(tmp_path: Path, ending: str) -> None:
    mark = "," if ending == "csv" else "\t"
    rows = [["item_id", "title"], ["a", "plain"], ["b", '"Best'], ["c", 'x"']]
    (tmp_path / f"things.{ending}").write_text("".join(mark.join(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"things\.{ending}, line 3: a quote is never closed, or lies within"):
        prepared(csv(tmp_path), tmp_path / f"things.{ending}")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_field_that_goes_on_behind_its_quotes_is_refused_with_its_line(tmp_path: Path, ending: str) -> None:
    mark = "," if ending == "csv" else "\t"
    rows = [["item_id", "title"], ["a", "plain"], ["b", '"Best" kettle']]
    (tmp_path / f"things.{ending}").write_text("".join(mark.join(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"things\.{ending}, line 3: "):
        prepared(csv(tmp_path), tmp_path / f"things.{ending}")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_quotes_that_open_no_field_are_characters(tmp_path: Path, ending: str) -> None:
    mark = "," if ending == "csv" else "\t"
    (tmp_path / f"things.{ending}").write_text(f'item_id{mark}title\na{mark}5" disc\nb{mark}7" disc\n')
    dataset = prepared(csv(tmp_path), tmp_path / f"things.{ending}")
    assert dataset.titles[:2] == ['5" disc', '7" disc']


def test_a_key_that_only_late_rows_have_is_read(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "item_id": f"i{n}"} | ({"rating": 4} if n > 12_000 else {}) for n in range(12_010)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared(tmp_path / "log.jsonl")
    ratings = pl.read_parquet(tmp_path / "out" / "interactions.parquet")["rating"]
    assert len(ratings) - ratings.null_count() == 9


def test_lines_that_end_in_a_carriage_return_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"user_id,item_id\ru,a\ru,b\r")
    with pytest.raises(InputError, match=r"log\.csv, line 1: it contains a carriage return.*tr '\\r' '\\n'"):
        prepared(tmp_path / "log.csv")


def test_a_line_separator_of_unicode_ends_no_line(tmp_path: Path) -> None:
    title = "a\u2028b\x85c"
    (tmp_path / "new.jsonl").write_text(json.dumps({"item_id": "a", "title": title}, ensure_ascii=False) + "\n")
    assert read_new_items(tmp_path / "new.jsonl") == [{"item_id": "a", "title": title}]
    (tmp_path / "things.csv").write_text(f"item_id,title\na,{title}\nb,B\nc,C\n")
    assert prepared(csv(tmp_path), tmp_path / "things.csv").titles == ["a b c", "B", "C"]


@pytest.mark.filterwarnings("ignore:.*no column of times was recognised")
@pytest.mark.parametrize("row", ["u,well, really,c,3", "u,fine,c,3,", 'u,"a, b",c,3,x'])
def test_a_row_with_too_many_fields_is_refused_though_the_last_column_is_not_read(tmp_path: Path, row: str) -> None:
    rows = ["u,good,a,1", "u,bad,b,2", row]
    with pytest.raises(InputError, match=r"log\.csv, line 4: 5 fields, expected 4 as in the first line"):
        prepared(csv(tmp_path, rows, "user_id,comment,item_id,mood"))


def test_a_key_may_hold_a_text_in_one_row_and_an_object_in_another(tmp_path: Path) -> None:
    details = ["plain", {"colour": "red"}, ["x"], None, 5]
    rows = [
        {"item_id": item, "title": item.upper(), "details": one} for item, one in zip("abcde", details, strict=True)
    ]
    (tmp_path / "things.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepared(csv(tmp_path), tmp_path / "things.jsonl").titles == ["A", "B", "C", "D", "E"]
    with (tmp_path / "things.jsonl").open("a") as file:
        file.write("true\n")
    with pytest.raises(InputError, match=r"things\.jsonl, line 6: got JSON but no object"):
        prepared(csv(tmp_path), tmp_path / "things.jsonl")


def test_of_two_parquet_tables_the_damaged_one_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(tmp_path / "log.parquet")
    (tmp_path / "things.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:-7])
    with pytest.raises(InputError, match=r"^\S*things\.parquet cannot be read as a table"):
        prepared(tmp_path / "log.parquet", tmp_path / "things.parquet")


def test_gzip_that_is_damaged_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    packed = gzip.compress(b"user_id,item_id\n" + b"".join(b"u%d,i%d\n" % (n % 7, n) for n in range(400)))
    for place in range(60, len(packed), 40):
        spoiled = bytearray(packed)
        spoiled[place] ^= 0x40
        (tmp_path / "log.csv").write_bytes(spoiled)
        with pytest.raises(InputError, match=r"log\.csv is (not a whole gzip file|damaged or cut off)"):
            prepared(tmp_path / "log.csv")


def test_a_line_end_within_a_name_does_not_break_the_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the first line looks like data \(u, a b, 7\)") as caught:
        prepared(csv(tmp_path, ["u,c,8"], 'u,"a\nb",7'))
    assert "\n" not in str(caught.value)
