"""What nobody can use is refused with one sentence: place, expectation, remedy; and nothing is written."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from allrec.data import PrepareConfig, load_dataset, prepare
from allrec.errors import InputError

GOOD = "user_id,item_id\na,x\na,y\na,z\n"


def refuse(tmp_path: Path, name: str, content: bytes, match: str, config: PrepareConfig | None = None) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        prepare(source, tmp_path / "out", config=config)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"interactions\.csv is empty, expected a table"),
        (b" \n\n", r"interactions\.csv is empty"),
        (b"user_id,item_id\n", r"no interaction is left \(it has no rows\)"),
        (GOOD.encode("utf-16"), r"holds NUL bytes, expected UTF-8 text\. Convert it"),
        (b"user_id,item_id\na,x\0\n", "holds NUL bytes"),
        (b"user_id,item_id\na,x\ncaf\xe9,y\n", r"interactions\.csv, line 3: not UTF-8"),
        (GOOD.encode() + b"a,v\n" * 30_000 + b"caf\xe9,y\n", r"line 30005: not UTF-8"),
        (b"user_id,item_id\na,x\na,y,7\n", r"line 3: 3 fields, expected 2 as in the first line\. Put quotes"),
        (
            b'user_id,item_id\na,x\n"a,y\nb,z\n',
            r"line 3: a quote is never closed, or lies within a field\. Put quotes around",
        ),
        (b"who,item_id\na,x\n", r"no column for user_id, only who, item_id\. Name it: --column user_id=COLUMN"),
        (b"user_id,what\na,x\n", r"no column for item_id"),
    ],
)
def test_csv(tmp_path: Path, content: bytes, match: str) -> None:
    refuse(tmp_path, "interactions.csv", content, match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"user_id": "a", "item_id": "x"}\n{"user_id": "a"\n', r"line 2: not JSON \(.*\), expected an object a line"),
        (b'{"user_id": "a", "item_id": "x"}\n[1, 2]\n', r"line 2: got JSON but no object"),
        (b'[{"user_id": "a", "item_id": "x"}]\n', r"is one JSON array, expected JSON lines"),
        (b'{"user_id": "a", "item_id": "x"}\n{"user_id": "\xe9", "item_id": "x"}\n', "line 2: not UTF-8"),
    ],
)
def test_json_lines(tmp_path: Path, content: bytes, match: str) -> None:
    refuse(tmp_path, "interactions.jsonl", content, match)


def test_gzip_that_is_none(tmp_path: Path) -> None:
    refuse(tmp_path, "interactions.csv.gz", GOOD.encode(), "is not a whole gzip file.*fetch it again")


def test_gzip_cut_off(tmp_path: Path) -> None:
    rows = "".join(f"user{number * 7919 % 100003},item{number * 104729 % 9973}\n" for number in range(50_000))
    content = gzip.compress(("user_id,item_id\n" + rows).encode())
    refuse(tmp_path, "interactions.csv.gz", content[: len(content) * 3 // 4], "damaged or cut off")


@pytest.mark.parametrize(("content", "match"), [(b"", "is empty"), (b"PAR1 no table", "cannot be read as a table")])
def test_parquet(tmp_path: Path, content: bytes, match: str) -> None:
    refuse(tmp_path, "interactions.parquet", content, match)


def test_unknown_suffix(tmp_path: Path) -> None:
    refuse(tmp_path, "interactions.xlsx", b"x", r"is in no format known here \(.*tables\)")


def test_two_tables_of_interactions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("interactions.csv", "interactions.tsv"):
        (source / name).write_text(GOOD)
    with pytest.raises(InputError, match=r"several tables of interactions: interactions\.csv, interactions\.tsv"):
        prepare(source, tmp_path / "out")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_items_not_there(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"no such file: .*things\.csv"):
        prepare(make_source(), tmp_path / "out", items=tmp_path / "things.csv")


def test_items_without_an_id_name_the_option_of_their_table(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    (tmp_path / "things.csv").write_text("what,title\nx,T\n")
    with pytest.raises(InputError, match=r"things\.csv has no column for item_id.* Name it: --item-column item_id="):
        prepare(make_source(), tmp_path / "out", items=tmp_path / "things.csv")


def test_damaged_items(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    source = make_source()
    (source / "items.jsonl").write_bytes(b'{"item_id": "x", "title": "T"}\n{"item_id": \n')
    with pytest.raises(InputError, match=r"items\.jsonl, line 2: not JSON"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"user": "user_id"}, r"cannot map 'user' to a column of .*: did you mean 'user_id'"),
        ({"user_id": "usr_id"}, r"has no column 'usr_id' for user_id: did you mean 'user_id'"),
    ],
)
def test_mapping_that_leads_nowhere(tmp_path: Path, columns: dict[str, str], match: str) -> None:
    refuse(tmp_path, "interactions.csv", GOOD.encode(), match, PrepareConfig(columns=columns))


def test_all_rows_filtered_away(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"no interaction is left \(8 below minimum rating\)\. Loosen the filters"):
        prepare(make_source(), tmp_path / "out", config=PrepareConfig(min_rating=6))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_item_with_two_texts(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    items = [{"item_id": "x", "title": "Kettle"}, {"item_id": "y", "title": "Pot"}, {"item_id": "x", "title": "Pan"}]
    source = make_source(items=items)
    with pytest.raises(InputError, match=r"item 'x' has different texts in rows 1 and 3.*duplicate_items=first"):
        prepare(source, tmp_path / "out")
    dataset = prepare(source, tmp_path / "out", config=PrepareConfig(duplicate_items="first"))
    assert dataset.titles[dataset.item_ids.index("x")] == "Kettle"
    assert dataset.counts["merged_items"] == 1


def test_minimum_without_filter(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="min_user_count is given, but count_filter is 'none'"):
        prepare(make_source(), tmp_path / "out", config=PrepareConfig(min_user_count=3))


def test_minimum_rating_without_ratings(tmp_path: Path) -> None:
    match = r"min_rating is 3, but there is no rating column\. Name it: --column rating=COLUMN"
    refuse(tmp_path, "interactions.csv", GOOD.encode(), match, PrepareConfig(min_rating=3))


def test_global_time_without_times(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    source = make_source(rows=["a,x", "a,y", "a,z"], header="user_id,item_id")
    config = PrepareConfig(split="global-time", valid_from=1, test_from=2)
    with pytest.raises(InputError, match="needs a timestamp column"):
        prepare(source, tmp_path / "out", config=config)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"split": "global-time"}, "needs valid_from and test_from"),
        ({"split": "global-time", "valid_from": 5, "test_from": 5}, "is not before test_from"),
        ({"valid_from": "2020-01-10"}, "are for split=global-time, and split is leave-last-out"),
        ({"min_ratting": 3}, "unknown key 'min_ratting' in PrepareConfig: did you mean 'min_rating'"),
    ],
)
def test_options_that_contradict(options: dict[str, object], match: str) -> None:
    with pytest.raises((ValidationError, InputError), match=match):
        PrepareConfig(**options)


def test_dates_become_utc_seconds() -> None:
    config = PrepareConfig(split="global-time", valid_from="1970-01-02", test_from="1970-01-02T01:00:00+00:00")
    assert (config.valid_from, config.test_from) == (24 * 3600, 25 * 3600)


def test_folder_of_something_else_is_left_alone(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    source = make_source()
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    with pytest.raises(InputError, match="is there already and is no data set; it is left as it is"):
        prepare(source, source)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_load_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is no data set folder: it holds no dataset\.json\. Make one: allrec prepare"
    ):
        load_dataset(tmp_path)


def test_load_another_version(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    prepare(make_source(), tmp_path / "out")
    path = tmp_path / "out" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(InputError, match=r"has format version 99, expected 1\. Prepare it again"):
        load_dataset(tmp_path / "out")


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "users.parquet", "splits.parquet"])
def test_load_damaged_file(tmp_path: Path, make_source: Callable[..., Path], name: str) -> None:
    prepare(make_source(), tmp_path / "out")
    path = tmp_path / "out" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=rf"{name} is damaged: its sha256 is"):
        load_dataset(tmp_path / "out")


def test_load_lost_file(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    prepare(make_source(), tmp_path / "out")
    (tmp_path / "out" / "items.parquet").unlink()
    with pytest.raises(InputError, match=r"no such file: .*items\.parquet"):
        load_dataset(tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_huge_field_is_served(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    title = "word " * 500_000
    source = make_source(items=[{"item_id": "x", "title": title}])
    dataset = prepare(source, tmp_path / "out", config=PrepareConfig(max_text_chars=99))
    assert dataset.titles[0] == ("word " * 20).strip()
    assert dataset.counts["cut_items"] == 1
