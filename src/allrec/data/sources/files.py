"""Opens the tables that people have, as lazy frames with the row's number, and refuses what is no text."""

import gzip
import zlib
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

from allrec.errors import InputError

ROW = "source_row"
SAMPLE_BYTES = 1 << 16
NUM_SAMPLE_ROWS = 10_000
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (*SEPARATORS, ".parquet", *JSON_SUFFIXES)
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")


def table_suffix(path: Path) -> str:
    """The suffix that tells the format, ``.gz`` aside: ``.csv`` of ``a.csv.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file for reading bytes, unpacked where its name ends in ``.gz``."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


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
    """Refuses a file that is empty, binary or not UTF-8, as far as its first 64 KiB tell, and returns those.

    Raises:
        InputError: one sentence with the path and the remedy.
    """
    sample = read_sample(path)
    if not sample.strip():
        raise InputError(f"{path} is empty, expected a table with at least one row. Give the right file.")
    if sample.startswith(BYTE_ORDER_MARKS) or b"\0" in sample:
        raise InputError(f"{path} holds NUL bytes, expected UTF-8 text. Convert it (iconv -t UTF-8) and prepare again.")
    try:
        return sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(sample) == SAMPLE_BYTES and error.start > len(sample) - 4:
            return sample[: error.start].decode("utf-8")
        raise not_utf8(path, sample.count(b"\n", 0, error.start) + 1) from None


def not_utf8(path: Path, line: int) -> InputError:
    """The error for a file whose line ``line`` (from 1) is not UTF-8."""
    return InputError(
        f"{path}, line {line}: not UTF-8, the one encoding expected here. "
        f"Convert it (iconv -f LATIN1 -t UTF-8, or whichever it is) and prepare again."
    )


def scan_delimited(
    path: Path, separator: str, quote: str | None = None, names: list[str] | None = None
) -> pl.LazyFrame:
    """A delimited text file as strings, with the row's number from 1; ``names`` where it has no header."""
    check_text(path)
    return pl.scan_csv(
        path,
        separator=separator,
        quote_char=quote,
        has_header=names is None,
        new_columns=names,
        infer_schema=False,
        row_index_name=ROW,
        row_index_offset=1,
        glob=False,
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
        raise InputError(f"{path} is one JSON array, expected JSON lines, an object a line (jq -c '.[]' converts it).")
    if names is None:
        names = pl.scan_ndjson(path, infer_schema_length=num_sample_rows).collect_schema().names()
    schema: dict[str, Any] = dict.fromkeys(names, pl.String)
    return pl.scan_ndjson(path, schema=schema, row_index_name=ROW, row_index_offset=1)


def scan_table(path: Path, num_sample_rows: int | None = None) -> pl.LazyFrame:
    """A table in any format that its suffix names: CSV, TSV, JSON lines (gzip or not), Parquet."""
    suffix = table_suffix(path)
    if suffix in SEPARATORS:
        return scan_delimited(path, SEPARATORS[suffix], quote='"')
    if suffix in JSON_SUFFIXES:
        return scan_json_lines(path, num_sample_rows=num_sample_rows)
    if suffix == ".parquet":
        if not read_sample(path):
            raise InputError(f"{path} is empty, expected a Parquet table. Give the right file.")
        return pl.scan_parquet(path, row_index_name=ROW, row_index_offset=1, glob=False)
    raise InputError(f"{path}: unknown kind of table, expected one of {', '.join(TABLE_SUFFIXES)}, or one with .gz.")


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
