"""What messages about the tables of ``prepare`` advise, done as it is written."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
from datetime import time
from pathlib import Path

import polars as pl
import pytest
from tests.remedies import advises, program, refused

from allrec.data import load_dataset
from allrec.data.sources.diagnosis import find_defect

ROWS = "u,a,1\nu,b,2\nu,c,3\n"
HEADED = "user_id,item_id,timestamp\n" + ROWS
LINES = "".join(json.dumps({"user_id": "u", "item_id": item}) + "\n" for item in "abc")


class Shop:
    """A folder in which ``prepare`` is tried: ``write`` a source, then ``prepare`` it; ``said`` is what it printed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.said = folder, folder / "shop", ""
        self.source.mkdir()

    def write(self, content: str | bytes, name: str = "interactions.csv") -> Path:
        path = self.source / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def prepare(self, *options: object, source: Path | None = None) -> list[str]:
        """Prepares, and returns the catalogue."""
        self.said = program("prepare", source or self.source, "--out", self.folder / "out", *options)
        return load_dataset(self.folder / "out").item_ids


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def convert(path: Path, message: str) -> None:
    """Runs a file through the command that a message names in brackets."""
    command = re.findall(r"\((iconv [^,)]*|tr [^)]*|jq [^)]*?)(?:, or| converts|\))", message)[-1]
    if shutil.which(command.partition(" ")[0]) is None:
        pytest.skip(f"{command} is not installed here")
    done = subprocess.run(shlex.split(command), input=path.read_bytes(), capture_output=True, check=True)
    path.write_bytes(done.stdout)


def option(message: str, name: str) -> list[str]:
    """The last use of an option in a message, as a shell parts it."""
    words = shlex.split(message[message.rindex(name) :].replace("),", " ").replace("'),", "' "))
    return [words[0], words[1].rstrip(".)")]


def history(shop: Shop) -> list[str]:
    """What the one user had, oldest first."""
    dataset = load_dataset(shop.folder / "out")
    return [dataset.item_ids[item] for item in dataset.history(0)]


# What is not there


def test_a_table_that_is_there_is_given(shop: Shop) -> None:
    with refused("Give a table, or a folder with interactions.* and items.*."):
        shop.prepare(source=shop.folder / "nowhere")
    table = shop.write(HEADED)
    assert shop.prepare(source=table) == shop.prepare() == ["a", "b", "c"]


def test_a_table_in_a_known_format_is_given(shop: Shop) -> None:
    shop.write("x", "interactions.xlsx")
    with refused("Give a table, or a folder with interactions.* (csv, tsv, jsonl, parquet) and items.*."):
        shop.prepare()
    for name, text in (("csv", HEADED), ("tsv", HEADED.replace(",", "\t")), ("jsonl", LINES)):
        (path := shop.write(text, f"interactions.{name}"))
        assert shop.prepare() == shop.prepare(source=path) == ["a", "b", "c"]
        path.unlink()
    pl.DataFrame({"user_id": list("uuu"), "item_id": list("abc")}).write_parquet(shop.source / "interactions.parquet")
    assert shop.prepare() == ["a", "b", "c"]


def test_a_table_under_another_name_is_given_or_renamed(shop: Shop) -> None:
    log = shop.write(HEADED, "log.csv")
    with refused("Give the file, or rename it."):
        shop.prepare("--format", "tables")
    assert shop.prepare("--format", "tables", source=log) == ["a", "b", "c"]
    log.rename(log.with_name("interactions.csv"))
    assert shop.prepare("--format", "tables") == ["a", "b", "c"]


def test_a_table_of_items_that_is_there_is_given(shop: Shop) -> None:
    shop.write(HEADED)
    with refused("Give the path of a table, or of a folder that holds one."):
        shop.prepare("--items", shop.source / "things.csv")
    things = shop.write("item_id,title\na,A\nb,B\nc,C\n", "things.csv")
    assert shop.prepare("--items", things) == ["a", "b", "c"]


def test_all_but_one_of_several_tables_are_removed(shop: Shop) -> None:
    shop.write(HEADED)
    other = shop.write(HEADED.replace(",", "\t"), "interactions.tsv")
    with refused("Remove or rename the others."):
        shop.prepare()
    other.rename(other.with_name("older.tsv"))
    assert shop.prepare() == ["a", "b", "c"]


@pytest.mark.parametrize("num", [0, 2])
def test_the_file_itself_is_given(shop: Shop, num: int) -> None:
    atomic = "user_id:token\titem_id:token\nu\ta\nu\tb\n"
    review = '{"user_id": "u", "parent_asin": "a", "timestamp": 1, "rating": 5.0}\n'
    for place in range(num):
        shop.write(atomic, f"{place}.inter")
        shop.write(review, f"{place}.jsonl")
    with refused("{} holds no single .inter file. Give the file itself."):
        shop.prepare("--format", "recbole")
    assert shop.prepare(source=shop.write(atomic, "0.inter")) == ["a", "b"]
    with refused("{} holds no single file of reviews (NAME.json.gz or NAME.jsonl.gz). Give the file itself."):
        shop.prepare("--format", "amazon-2023")
    assert shop.prepare("--format", "amazon-2023", source=shop.write(review, "0.jsonl")) == ["a"]


def test_the_folder_of_movielens_is_given(shop: Shop) -> None:
    (inner := shop.source / "ml-1m").mkdir()
    (inner / "ratings.dat").write_text("1::10::5::1\n1::11::4::2\n")
    (inner / "movies.dat").write_text("10::Film (1999)::Drama\n11::Other (1999)\n")
    with refused("Give the folder that the archive unpacks to."):
        shop.prepare("--format", "movielens")
    with refused("expected id, title and genres. Is it a table of MovieLens movies?"):
        shop.prepare("--format", "movielens", source=inner)
    (inner / "movies.dat").write_text("10::Film (1999)::Drama\n11::Other (1999)::Drama\n")
    assert shop.prepare("--format", "movielens", source=inner) == ["10", "11"]


# What is no table


def test_an_empty_file_is_replaced(shop: Shop) -> None:
    shop.write("")
    with refused("expected a table with at least one row. Give the right file."):
        shop.prepare()
    shop.write(HEADED)
    assert shop.prepare() == ["a", "b", "c"]


def test_an_empty_parquet_file_is_replaced(shop: Shop) -> None:
    path = shop.write(b"", "interactions.parquet")
    with refused("expected a Parquet table. Give the right file."):
        shop.prepare()
    shop.write("no table", path.name)
    with refused("cannot be read as a table: {}. Mend or convert the file."):
        shop.prepare()
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(path)
    assert shop.prepare() == ["a"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_converted(shop: Shop, encoding: str) -> None:
    path = shop.write(HEADED.encode(encoding))
    with refused("holds NUL bytes, expected UTF-8 text. {} and prepare again.") as caught:
        shop.prepare()
    advises(str(caught.value), "Convert it (iconv -f {} -t UTF-8)")
    convert(path, str(caught.value))
    assert shop.prepare() == ["a", "b", "c"]


def test_nul_bytes_are_removed(shop: Shop) -> None:
    path = shop.write(HEADED.replace("u,b", "u,b\0"))
    with refused("holds NUL bytes, expected UTF-8 text. {} and prepare again.") as caught:
        shop.prepare()
    advises(str(caught.value), "Remove them (tr -d '\\0')")
    convert(path, str(caught.value))
    assert shop.prepare() == ["a", "b", "c"]


def test_latin_text_is_converted(shop: Shop) -> None:
    path = shop.write(HEADED.replace("u,b", "u,bé").encode("latin-1"))
    with refused("Convert it (iconv -f LATIN1 -t UTF-8, or whichever it is) and prepare again.") as caught:
        shop.prepare()
    convert(path, str(caught.value))
    assert shop.prepare() == ["a", "bé", "c"]


def test_a_packed_file_is_unpacked_or_fetched_again(shop: Shop) -> None:
    packed = shop.write(HEADED, "interactions.csv.gz")
    with refused("is not a whole gzip file: {}. Unpack it, or fetch it again."):
        shop.prepare()
    packed.write_bytes(gzip.compress(HEADED.encode()))
    assert shop.prepare() == ["a", "b", "c"]
    packed.unlink()
    shop.write(HEADED)
    assert shop.prepare() == ["a", "b", "c"]


def test_a_file_that_was_cut_off_is_fetched_again(shop: Shop) -> None:
    rows = "".join(f"user{number * 7919 % 100003},item{number * 104729 % 9973}\n" for number in range(50_000))
    whole = gzip.compress(("user_id,item_id\n" + rows).encode())
    path = shop.write(whole[: len(whole) * 3 // 4], "interactions.csv.gz")
    with refused("is damaged or cut off: {}. Fetch it again."):
        shop.prepare()
    path.write_bytes(whole)
    assert len(shop.prepare()) == 9973


@pytest.mark.parametrize(
    ("content", "kind", "name"),
    [(b"PK\x03\x04", "zip", "interactions.csv"), (b"PAR1", "Parquet", "interactions.parquet")],
)
def test_another_kind_of_file_is_unpacked_or_renamed(shop: Shop, content: bytes, kind: str, name: str) -> None:
    shop.write(content)
    with refused("under another name, expected text. {}, and prepare again."):
        shop.prepare()
    (shop.source / "interactions.csv").unlink()
    if kind == "Parquet":
        pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(shop.source / name)
    else:
        shop.write("user_id,item_id\nu,a\n", name)
    assert shop.prepare() == ["a"]


# Lines


def test_json_lines_are_mended(shop: Shop) -> None:
    shop.write(LINES + '{"user_id": "u"\n', "interactions.jsonl")
    with refused("not JSON ({}), expected an object a line. Mend it."):
        shop.prepare()
    shop.write(LINES + "[1, 2]\n", "interactions.jsonl")
    with refused("got JSON but no object, expected an object a line. Mend it."):
        shop.prepare()
    shop.write(LINES, "interactions.jsonl")
    assert shop.prepare() == ["a", "b", "c"]


def test_fields_and_quotes_are_mended(shop: Shop) -> None:
    shop.write("user_id,item_id\nu,a\nu,b,7\n")
    with refused("expected {} as in the first line. Put quotes around fields that hold the separator."):
        shop.prepare()
    shop.write('user_id,item_id\nu,a\nu,"b,7"\n')
    assert shop.prepare() == ["a", "b,7"]
    shop.write('user_id,item_id\nu,a\nu,"b\nu,c\n')
    with refused("Put quotes around the whole field and double those within it, or remove them."):
        shop.prepare()
    shop.write('user_id,item_id\nu,a\nu,"""b"\nu,c\n')
    assert shop.prepare() == ["a", '"b', "c"]
    shop.write("user_id,item_id\nu,a\nu,b\nu,c\n")
    assert shop.prepare() == ["a", "b", "c"]


def test_a_quote_that_is_never_closed_is_closed(shop: Shop) -> None:
    path = shop.write('user_id,item_id\nu,"a\n')
    with refused("expected every opened quote to be closed. Mend it."):
        find_defect(path)
    shop.write('user_id,item_id\nu,"a"\n')
    find_defect(path)
    assert shop.prepare() == ["a"]


def test_carriage_returns_are_converted(shop: Shop) -> None:
    path = shop.write(HEADED.replace("\n", "\r"))
    with refused("Convert it (tr '\\r' '\\n') and prepare again.") as caught:
        shop.prepare()
    convert(path, str(caught.value))
    assert shop.prepare() == ["a", "b", "c"]


def test_a_json_array_is_converted(shop: Shop) -> None:
    path = shop.write(json.dumps([json.loads(line) for line in LINES.splitlines()]), "interactions.json")
    with refused("expected JSON lines, an object a line (jq -c '.[]' converts it).") as caught:
        shop.prepare()
    convert(path, str(caught.value))
    assert shop.prepare() == ["a", "b", "c"]


# Columns


def test_every_column_is_named(shop: Shop) -> None:
    shop.write(ROWS)
    with refused("Name every column, from left to right."):
        shop.prepare("--names", "user_id,item_id")
    assert shop.prepare("--names", "user_id,item_id,timestamp") == ["a", "b", "c"]


def test_columns_of_one_name_are_renamed(shop: Shop) -> None:
    shop.write("user_id,item_id,item_id\nu,a,b\n")
    with refused("Rename one; or where that line is data and no header, name the columns: {}."):
        shop.prepare()
    shop.write("user_id,item_id,other_id\nu,a,b\n")
    assert shop.prepare() == ["a"]


def test_columns_of_one_name_that_are_data_are_named(shop: Shop) -> None:
    shop.write("7,21,21\n7,22,23\n")
    with refused("Rename one; or where that line is data and no header, name the columns: {}.") as caught:
        shop.prepare()
    assert shop.prepare(*option(str(caught.value), "--names")) == ["21", "22"]


def test_the_columns_of_parquet_are_not_named_again(shop: Shop) -> None:
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(shop.source / "interactions.parquet")
    with refused("names its own columns, and a header was given ({}). Leave it out."):
        shop.prepare("--names", "user_id,item_id")
    assert shop.prepare() == ["a"]


@pytest.mark.filterwarnings("ignore:.*no column of times was recognised")
def test_a_column_is_named(shop: Shop) -> None:
    shop.write("who,item_id\nu,a\n")
    with refused("only {}. Name it: {} {}=COLUMN. Where that line is data and no header, name the columns: {}."):
        shop.prepare()
    assert shop.prepare("--column", "user_id=who") == ["a"]
    assert shop.prepare("--names", "user_id,item_id") == ["item_id", "a"]
    (shop.source / "interactions.csv").unlink()
    shop.write('{"who": "u", "item_id": "a"}\n', "interactions.jsonl")
    with refused("{} has no column for {}, only {}. Name it: {} {}=COLUMN."):
        shop.prepare()
    assert shop.prepare("--column", "user_id=who") == ["a"]


def test_a_first_line_of_data_is_named(shop: Shop) -> None:
    shop.write("7,21,1600841599\n7,26,1600086502\n")
    with refused("Name them, from left to right, such as {}.") as caught:
        shop.prepare()
    assert sorted(shop.prepare(*option(str(caught.value), "--names"))) == ["21", "26"]


def test_a_column_of_times_is_named(shop: Shop) -> None:
    shop.write("user_id,item_id,moment\nu,a,2\nu,b,1\n")
    shop.prepare()
    advises(shop.said, "Name one: --column timestamp=COLUMN.")
    shop.prepare("--column", "timestamp=moment")
    assert history(shop) == ["b", "a"]


def test_another_separator_is_given(shop: Shop) -> None:
    shop.write("user_id;item_id\nu;a\n")
    shop.prepare()
    advises(shop.said, "and are read so. Another one: --separator.")
    assert shop.prepare("--separator", ";") == ["a"]


@pytest.mark.parametrize("separator", ["^", ":"])
def test_an_odd_separator_is_named(shop: Shop, separator: str) -> None:
    # Two characters in a row are one, and a column without a name between them.
    shop.write(HEADED.replace(",", separator * (2 if separator == ":" else 1)))
    with refused("Name the character between the fields, such as --separator '^', or the column: {} {}=COLUMN."):
        shop.prepare()
    assert shop.prepare("--separator", separator) == ["a", "b", "c"]
    shop.write("user_id,item_id,timestamp\nu,7,1\n")
    shop.write("code\n7\n", "items.csv")
    with refused("Name the character between the fields, such as --separator '^', or the column: {} {}=COLUMN."):
        shop.prepare()
    assert shop.prepare("--item-column", "item_id=code") == ["7"]


# Times


def test_how_times_are_written_is_named(shop: Shop) -> None:
    shop.write("user_id,item_id,timestamp\nu,a,1/3/2020\nu,b,2/2/2020\n")
    with refused("Name the form: --time-format {} or --time-format {}."):
        shop.prepare()
    shop.prepare("--time-format", "day-first")
    assert history(shop) == ["b", "a"]
    shop.prepare("--time-format", "month-first")
    assert history(shop) == ["a", "b"]
    shop.write("user_id,item_id,timestamp,moment\nu,a,02 Feb 20,2\nu,b,01 Feb 20,3\n")
    with refused("(--time-format '%d %b %y'), or the right column: --column timestamp=COLUMN.") as caught:
        shop.prepare()
    shop.prepare(*option(str(caught.value), "--time-format"))
    assert history(shop) == ["b", "a"]
    shop.prepare("--column", "timestamp=moment")
    assert history(shop) == ["a", "b"]


def test_the_right_column_of_times_is_named(shop: Shop) -> None:
    def write(times: list[object]) -> None:
        table = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": times, "moment": [1]})
        table.write_parquet(shop.source / "interactions.parquet")

    write([[1]])
    with refused("expected times. {}") as caught:
        shop.prepare()
    advises(str(caught.value), "Name the right column: --column timestamp=COLUMN.")
    assert shop.prepare("--column", "timestamp=moment") == ["a"]
    write([time(1, 0)])
    with refused("expected points in time. {}"):
        shop.prepare()
    assert shop.prepare("--column", "timestamp=moment") == ["a"]


# Ids


def test_another_column_of_ids_is_named(shop: Shop) -> None:
    table = pl.DataFrame({"user_id": [{"id": 1}], "item_id": ["a"], "who": ["u"]})
    table.write_parquet(shop.source / "interactions.parquet")
    with refused("Name another: --column {}=COLUMN."):
        shop.prepare()
    assert shop.prepare("--column", "user_id=who") == ["a"]


def test_ids_are_written_as_whole_numbers_or_texts(shop: Shop) -> None:
    def write(kind: pl.DataType) -> None:
        items = pl.Series([2**53 + 2]).cast(kind)
        pl.DataFrame({"user_id": ["u"], "item_id": items}).write_parquet(shop.source / "interactions.parquet")

    write(pl.Float64())
    with refused("Write the ids as texts or whole numbers."):
        shop.prepare()
    for kind in (pl.Int64(), pl.String()):
        write(kind)
        assert shop.prepare() == [str(2**53 + 2)]


def test_the_id_itself_is_written(shop: Shop) -> None:
    shop.write('{"user_id": "u", "item_id": {"$oid": "a"}}\n', "interactions.jsonl")
    with refused("expected a text or a whole number. Write the id itself."):
        shop.prepare()
    shop.write('{"user_id": "u", "item_id": "a"}\n', "interactions.jsonl")
    assert shop.prepare() == ["a"]


def test_a_word_for_a_missing_id_is_said(shop: Shop) -> None:
    shop.write("user_id,item_id\nu,a\nnan,b\n" + "u,a\n" * 30)
    shop.prepare()
    advises(shop.said, "Where it means a missing one, say so: --set 'missing_ids=[")
    shop.prepare(*option(shop.said, "--set"))
    assert load_dataset(shop.folder / "out").user_ids == ["u"]


# Rows


def test_lost_rows_are_mended_or_accepted(shop: Shop) -> None:
    def rows(word: str) -> str:
        return "user_id,item_id,timestamp\n" + "".join(f"u,i{n},{word if n < 9 else n}\n" for n in range(100))

    shop.write(rows("soon"))
    with refused("Mend them, or accept the loss: --max-rejected {}.") as caught:
        shop.prepare()
    shop.prepare(*option(str(caught.value), "--max-rejected"))
    advises(shop.said, "They are left out; rejected.jsonl holds them all.")
    lost = (shop.folder / "out" / "rejected.jsonl").read_text().splitlines()
    assert len(lost) == 9
    shop.write(rows("0"))
    assert len(shop.prepare()) == 100


def test_ratings_are_named(shop: Shop) -> None:
    shop.write("user_id,item_id,timestamp,liking\nu,a,1,5\nu,b,2,1\n")
    with refused("but there is no rating column. Name it: --column rating=COLUMN."):
        shop.prepare("--set", "min_rating=3")
    assert shop.prepare("--set", "min_rating=3", "--set", "items=interacted", "--column", "rating=liking") == ["a"]


def test_filters_are_loosened_or_other_columns_named(shop: Shop) -> None:
    shop.write("user_id,item_id,timestamp,rating,stars\nu,a,1,1,5\nu,b,2,1,5\n")
    with refused("Loosen the filters, or name the right columns."):
        shop.prepare("--set", "min_rating=3")
    assert shop.prepare("--set", "min_rating=1") == ["a", "b"]
    assert shop.prepare("--set", "min_rating=3", "--column", "rating=stars") == ["a", "b"]


def test_a_minimum_gets_its_filter(shop: Shop) -> None:
    shop.write(HEADED)
    with refused("Set it to k-core or one-pass."):
        shop.prepare("--set", "min_user_count=2")
    for count_filter in ("k-core", "one-pass"):
        options = ("--set", "min_user_count=2", "--set", "min_item_count=1", "--set", f"count_filter={count_filter}")
        assert shop.prepare(*options) == ["a", "b", "c"]


# The split


def test_times_of_a_split_get_their_split(shop: Shop) -> None:
    shop.write(HEADED)
    times = ("--set", "valid_from=2", "--set", "test_from=3")
    with refused("are for split=global-time, and split is leave-last-out. Set it."):
        shop.prepare(*times)
    assert shop.prepare(*times, "--set", "split=global-time") == ["a", "b", "c"]


def test_a_source_without_times_is_split_by_order(shop: Shop) -> None:
    shop.write("user_id,item_id\nu,a\nu,b\nu,c\n")
    with refused("needs a timestamp column, and the source has none. Use leave-last-out."):
        shop.prepare("--set", "split=global-time", "--set", "valid_from=2", "--set", "test_from=3")
    assert shop.prepare("--set", "split=leave-last-out") == ["a", "b", "c"]


# Items


def test_an_item_with_two_texts_is_decided(shop: Shop) -> None:
    shop.write(HEADED)
    shop.write("item_id,title\na,A\na,Other\nb,B\nc,C\n", "items.csv")
    with refused("Remove one, or take the first of each with duplicate_items=first."):
        shop.prepare()
    shop.prepare("--set", "duplicate_items=first")
    assert load_dataset(shop.folder / "out").titles == ["A", "B", "C"]
    shop.write("item_id,title\na,A\nb,B\nc,C\n", "items.csv")
    assert shop.prepare() == ["a", "b", "c"]


def test_ids_of_two_tables_are_made_to_agree(shop: Shop) -> None:
    shop.write("user_id,item_id,code,timestamp\nu,1,001,1\nu,2,002,2\n")
    shop.write("item_id,number,title\n001,1,A\n002,2,B\n", "items.csv")
    with refused("id? Name it: --item-column item_id=COLUMN, --column item_id=COLUMN."):
        shop.prepare()
    assert shop.prepare("--item-column", "item_id=number") == ["1", "2"]
    assert shop.prepare("--column", "item_id=code") == ["001", "002"]


def test_items_that_are_not_listed_stay(shop: Shop) -> None:
    shop.write(HEADED)
    shop.write("item_id,title\na,A\nb,B\n", "items.csv")
    shop.prepare()
    advises(shop.said, "They stay, without a title or a text.")
    dataset = load_dataset(shop.folder / "out")
    assert (dataset.item_ids, dataset.titles) == (["a", "b", "c"], ["A", "B", None])
