"""Opens tables of the common file formats as lazy frames with row numbers, and refuses files that are not text."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

from allrec.errors import InputError, notice

ROW = "source_row"
SAMPLE_BYTES = 1 << 16
NUM_SAMPLE_ROWS = 10_000
SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHER_SEPARATORS = (",", ";", "\t", "|")
COMMON_NAMES = {"--names": ("user_id", "item_id", "timestamp"), "--item-names": ("item_id", "title")}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*SEPARATORS, ".parquet", *JSON_SUFFIXES)
GZIP, ZIP, PARQUET = b"\x1f\x8b", b"PK\x03\x04", b"PAR1"
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


def table_suffix(path: Path) -> str:
    """The suffix that names the format, ``.gz`` aside: ``.csv`` of ``a.csv.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file for reading bytes, unpacked where it is gzip or is called so by its name."""
    with open(path, "rb") as file:
        is_gzip = file.read(len(GZIP)) == GZIP or path.suffix == ".gz"
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip else open(path, "rb")


def read_sample(path: Path) -> bytes:
    """The first 64 KiB of a file, unpacked.

    Raises:
        InputError: no such file, or a ``.gz`` that is not gzip.
    """
    try:
        with open_binary(path) as file:
            return file.read(SAMPLE_BYTES)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"no such file: {path}. Give the path of a table, or of a folder that holds one.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}. Unpack it, or fetch it again.") from None


def check_text(path: Path) -> str:
    """Refuses a file that is empty, binary or not UTF-8, judged by its first 64 KiB, and returns those.

    Raises:
        InputError: one sentence with the path and the remedy.
    """
    sample = read_sample(path)
    if not sample.strip():
        raise InputError(f"{path} is empty, expected a table with at least one row. Give the right file.")
    if sample.startswith((ZIP, PARQUET)):
        kind, remedy = ("a zip archive", "Unpack it") if sample.startswith(ZIP) else ("Parquet", "Name it .parquet")
        raise InputError(f"{path} is {kind} under another name, expected text. {remedy}, and prepare again.")
    if sample.startswith(BYTE_ORDER_MARKS) or b"\0" in sample:
        encoding = wide_encoding(sample)
        remedy = f"Convert it (iconv -f {encoding} -t UTF-8)" if encoding else "Remove them (tr -d '\\0')"
        raise InputError(f"{path} holds NUL bytes, expected UTF-8 text. {remedy} and prepare again.")
    try:
        return sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(sample) == SAMPLE_BYTES and error.start > len(sample) - 4:
            return sample[: error.start].decode("utf-8")
        check_whole(path)
        raise not_utf8(path, sample.count(b"\n", 0, error.start) + 1) from None


def wide_encoding(sample: bytes) -> str | None:
    """The encoding of text in units of two or four bytes, as iconv names it, by its mark or its first letter."""
    starts = {
        b"\xff\xfe\0\0": "UTF-32",
        b"\0\0\xfe\xff": "UTF-32",
        b"\xff\xfe": "UTF-16",
        b"\xfe\xff": "UTF-16",
        sample[:1] + b"\0": "UTF-16LE",
        b"\0" + sample[1:2]: "UTF-16BE",
    }
    return next((encoding for start, encoding in starts.items() if sample.startswith(start)), None)


def not_utf8(path: Path, line: int) -> InputError:
    """The error for a file whose line ``line`` (from 1) is not UTF-8."""
    return InputError(
        f"{path}, line {line}: not UTF-8, the one encoding expected here. "
        f"Convert it (iconv -f LATIN1 -t UTF-8, or whichever it is) and prepare again."
    )


def check_whole(path: Path) -> None:
    """Refuses a file that cannot be read to its end, such as damaged gzip, whose text is then wrong anywhere.

    Raises:
        InputError: what is wrong with it.
    """
    try:
        with open_binary(path) as file:
            while file.read(SAMPLE_BYTES):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut off: {error}. Fetch it again.") from None


def scan_delimited(
    path: Path, separator: str, quote: str | None = None, names: Sequence[str] | None = None
) -> pl.LazyFrame:
    """A delimited text file as strings, with the row's number from 1; ``names`` where it has no header.

    Raises:
        InputError: no text, a header that names two columns alike, or other names than columns.
    """
    header = read_header(path, separator, quote)
    if names is None:
        refuse_duplicates(header, path)
    elif len(names) != len(header):
        raise InputError(
            f"{path} has {len(header)} columns in its first line, and {len(names)} were named ({', '.join(names)}). "
            f"Name every column, from left to right."
        )
    table = pl.scan_csv(
        path,
        separator=separator,
        quote_char=quote,
        has_header=names is None,
        new_columns=None if names is None else list(names),
        infer_schema=False,
        row_index_name=ROW,
        row_index_offset=1,
        glob=False,
    )
    # Where the last columns are not read, a row with too many fields would pass, its fields under other columns.
    return table.map_batches(lambda frame: frame, projection_pushdown=False, streamable=True)


def read_header(path: Path, separator: str, quote: str | None = None) -> list[str]:
    """The fields of the first line that is not blank."""
    lines = check_text(path).removeprefix("\ufeff").split("\n")
    first = next(line for line in lines if line.strip()).removesuffix("\r")
    if "\r" in first:
        raise InputError(
            f"{path}, line 1: it contains a carriage return, expected lines that end in a line feed. "
            f"Convert it (tr '\\r' '\\n') and prepare again."
        )
    if quote is None:
        return first.split(separator)
    return next(csv.reader([first], delimiter=separator, quotechar=quote))


def names_example(option: str, num_columns: int) -> str:
    """An example of the option that names ``num_columns`` columns."""
    names = COMMON_NAMES[option][:num_columns]
    return f"{option} {','.join([*names, *(f'column_{place + 1}' for place in range(len(names), num_columns))])}"


def refuse_duplicates(header: Sequence[str], path: Path) -> None:
    """Refuses a header in which two columns have one name; unnamed columns are ignored.

    Raises:
        InputError: the name and the places.
    """
    names = [name.strip() for name in header]
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise InputError(
                f"{path}, line 1: the column {name!r} is there twice, as field {names.index(name) + 1} and as field "
                f"{place + 1}. Rename one; or where that line is data and no header, name the columns: "
                f"{names_example('--names', len(header))}."
            )


def scan_lines(path: Path) -> pl.LazyFrame:
    """A text file as one string column ``line``, with the row's number from 1."""
    check_text(path)
    return pl.scan_lines(path, row_index_name=ROW, row_index_offset=1, glob=False)


def scan_json_lines(path: Path, names: list[str] | None = None, num_sample_rows: int | None = None) -> pl.LazyFrame:
    """A JSON-lines file as strings (lists and objects as JSON), with the row's number from 1.

    Args:
        path: the file, gzip or not.
        names: the keys wanted; all that occur in the first ``num_sample_rows`` rows when not given.
        num_sample_rows: how many rows to look at for keys; all of them when not given.
    """
    if check_text(path).lstrip().startswith("["):
        raise InputError(
            f"{path}, line 1: is one JSON array, expected JSON lines, an object a line (jq -c '.[]' converts it)."
        )
    if names is None:
        names = find_keys(path, num_sample_rows)
    schema: dict[str, Any] = dict.fromkeys(names, pl.String)
    return pl.scan_ndjson(path, schema=schema, row_index_name=ROW, row_index_offset=1)


def find_keys(path: Path, num_rows: int | None) -> list[str]:
    """The keys of the first rows of a JSON-lines file, or of all."""
    try:
        return pl.scan_ndjson(path, infer_schema_length=num_rows).collect_schema().names()
    except pl.exceptions.SchemaError:
        # One key may hold a text in one row and an object in another.
        with open_binary(path) as file:
            rows = [json.loads(line) for line in islice(file, num_rows) if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise
        return list(dict.fromkeys(key for row in rows for key in row))


def scan_table(
    path: Path, num_sample_rows: int | None = None, names: Sequence[str] | None = None, separator: str | None = None
) -> pl.LazyFrame:
    """A table in any format that its suffix names: CSV, TSV, JSON lines (gzip or not), Parquet.

    Args:
        path: the file.
        num_sample_rows: see ``scan_json_lines``.
        names: the columns of a delimited file without a header.
        separator: of a delimited file; by its suffix and its first line where None.
    """
    suffix = table_suffix(path)
    if suffix in SEPARATORS:
        usual = SEPARATORS[suffix]
        found = separator or find_separator(path, usual)
        if found not in (separator, usual):
            notice(f"{path}: its fields are separated by {found!r}, and are read so. Another one: --separator.")
        separator = found
        table = scan_delimited(path, separator, find_quoting(path, separator), names)
        # Blank lines, and rows of separators alone as spreadsheets write them.
        return table.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))
    if names is not None:
        raise InputError(f"{path} names its own columns, and a header was given ({', '.join(names)}). Leave it out.")
    if suffix in JSON_SUFFIXES:
        return scan_json_lines(path, num_sample_rows=num_sample_rows)
    if suffix == ".parquet":
        if not read_sample(path):
            raise InputError(f"{path} is empty, expected a Parquet table. Give the right file.")
        return pl.scan_parquet(path, row_index_name=ROW, row_index_offset=1, glob=False)
    raise InputError(f"{path}: unknown kind of table, expected one of {', '.join(TABLE_SUFFIXES)}, or one with .gz.")


def find_separator(path: Path, usual: str) -> str:
    """What separates the fields: the usual of the file's suffix, unless the first line has another one alone."""
    widths = {separator: len(read_header(path, separator, '"')) for separator in (usual, *OTHER_SEPARATORS)}
    widest = max(widths, key=lambda separator: widths[separator])
    if widths[usual] > 1 or widths[widest] == 1:
        return usual
    return widest


def find_quoting(path: Path, separator: str) -> str | None:
    """The quote around fields; None where they are not quoted.

    Where no field begins with a quote, quotes are characters like others. Where a record spans lines, or seems to, the
    whole file is read strictly, so that no stray quote makes two rows one.

    Raises:
        InputError: the line of a quote that is never closed, or that lies within a field.
    """
    line = pl.col("line")
    is_opened = line.str.contains(f'(^\ufeff?|{re.escape(separator)})"')
    is_odd = line.str.count_matches('"', literal=True) % 2 == 1
    seen = scan_lines(path).select(is_opened.any(), is_odd=is_odd.any())
    has_quotes, has_odd = seen.collect(engine="streaming").row(0)
    if has_quotes and has_odd:
        with open_binary(path) as file:
            check_quotes(path, (text.decode("utf-8", errors="replace") for text in file), separator)
    return '"' if has_quotes else None


def check_quotes(path: Path, lines: Iterable[str], separator: str) -> None:
    """Refuses the first record with a quote that is never closed or lies within a field.

    Raises:
        InputError: the line and how to quote.
    """
    mark = re.escape(separator)
    field = f'(?:"(?:[^"]|"")*"|[^"{mark}\r\n][^"{mark}\r\n]*|)'
    whole = re.compile(f"\ufeff?{field}(?:{mark}{field})*\r?\n?")
    record, start, widths = "", 1, set[int]()
    width = None
    for number, line in enumerate(lines, start=1):
        record += line
        widths.add(line.count(separator))
        if record.count('"') % 2 == 0:
            # Lines that each have all fields are rows, which a quote at the start of one field made one.
            is_swallowed = number > start and bool(width) and widths == {width}
            if is_swallowed or ('"' in record and not whole.fullmatch(record)):
                raise stray_quote(path, start)
            width = max(widths) if width is None else width
            record, start, widths = "", number + 1, set()
    if record:
        raise stray_quote(path, start)


def stray_quote(path: Path, line: int) -> InputError:
    """The error for a record from whose line on the quotes do not pair."""
    return InputError(
        f"{path}, line {line}: a quote is never closed, or lies within a field. Put quotes around the whole field "
        f"and double those within it, or remove them."
    )


def find_table(folder: Path, stem: str) -> Path | None:
    """The table ``stem.*`` of a folder; None when there is none.

    Raises:
        InputError: there are several.
    """
    suffixes = [suffix + ending for suffix in TABLE_SUFFIXES for ending in ("", ".gz")]
    found = [path for path in (folder / (stem + suffix) for suffix in suffixes) if path.is_file()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{folder} holds several tables of {stem}: {names}; expected one. Remove or rename the others."
        )
    return found[0] if found else None
