"""Names the file and the line of a row, and of the defect that made a reader fail."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import polars as pl

from allrec.data.sources.files import (
    JSON_SUFFIXES,
    SEPARATORS,
    check_whole,
    find_quoting,
    find_separator,
    not_utf8,
    open_binary,
    table_suffix,
)
from allrec.errors import InputError
from allrec.files import lack_of_space

HEADED_SUFFIXES = (*SEPARATORS, ".inter", ".item")
TEXT_SUFFIXES = (*SEPARATORS, *JSON_SUFFIXES, ".inter", ".item", ".data")


@contextmanager
def diagnosing(files: Sequence[Path]) -> Iterator[None]:
    """Runs a block that reads ``files``; where reading fails, looks for the line at fault.

    Raises:
        InputError: the file, the line, what was expected there, what to do.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if lack_of_space(error):
            raise
        for path in files:
            find_defect(path)
        if isinstance(error, pl.exceptions.PolarsError):
            raise unreadable(", ".join(str(path) for path in files), error) from error
        raise


def unreadable(names: str, error: Exception) -> InputError:
    """The error for files in which no line is known to be at fault."""
    return InputError(f"{names} cannot be read as a table: {str(error).splitlines()[0]}. Mend or convert the file.")


def check_parquet(path: Path) -> None:
    """Refuses a Parquet file that cannot be read.

    Raises:
        InputError: why not.
    """
    try:
        pl.scan_parquet(path, glob=False).select(pl.all().count()).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise unreadable(str(path), error) from error


def find_defect(path: Path) -> None:
    """Reads a text file line by line and refuses the first line that is wrong; silent when none is.

    Raises:
        InputError: bytes that are not UTF-8, a line that is no JSON object, a row with too many fields, cut-off gzip,
            a Parquet file that cannot be read.
    """
    suffix = table_suffix(path)
    if suffix == ".parquet" and path.is_file():
        check_parquet(path)
    if suffix not in TEXT_SUFFIXES or not path.is_file():
        return
    check_whole(path)
    with open_binary(path) as file:
        lines = decode_lines(path, file)
        if suffix in JSON_SUFFIXES:
            check_json(path, lines)
        else:
            separator = find_separator(path, SEPARATORS[suffix]) if suffix in SEPARATORS else "\t"
            check_fields(path, lines, separator, suffix in SEPARATORS)


def decode_lines(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    """Decodes line after line.

    Raises:
        InputError: a line is not UTF-8.
    """
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            raise not_utf8(path, number) from None


def check_json(path: Path, lines: Iterable[str]) -> None:
    """Refuses the first line that is no JSON object.

    Raises:
        InputError: the line and what is wrong with it.
    """
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line, parse_constant=refuse_constant) if line.strip() else {}
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: not JSON ({error}), expected an object a line. Mend it."
            ) from None
        if not isinstance(value, dict):
            raise InputError(f"{path}, line {number}: got JSON but no object, expected an object a line. Mend it.")


def refuse_constant(name: str) -> None:
    """Refuses NaN and Infinity, which Python's reader takes and JSON does not know.

    Raises:
        ValueError: the word.
    """
    raise ValueError(f"{name} is no JSON value; null is")


def check_fields(path: Path, lines: Iterable[str], separator: str, is_quoted: bool) -> None:
    """Refuses the first row with more fields than the header, or a quote that is never closed.

    Raises:
        InputError: the line and the number of fields.
    """
    reader = csv.reader(lines, delimiter=separator, quotechar='"' if is_quoted else None, strict=True)
    num_expected, line = 0, 1
    try:
        for row in reader:
            num_expected = num_expected or len(row)
            if len(row) > num_expected:
                raise InputError(
                    f"{path}, line {line}: {len(row)} fields, expected {num_expected} as in the first line. "
                    f"Put quotes around fields that hold the separator."
                )
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}, expected every opened quote to be closed. Mend it.") from None


def place_of(path: Path, row: int, has_header: bool = True) -> str:
    """The position of a row (from 1) for messages: "line 7" of a text file, "row 6" of another.

    Args:
        path: the table.
        row: its number, as the readers count.
        has_header: whether the first line of a delimited file names its columns.
    """
    suffix = table_suffix(path)
    if suffix == ".parquet":
        return f"row {row}"
    with open_binary(path) as file:
        lines = (line.decode("utf-8", errors="replace") for line in file)
        if suffix in JSON_SUFFIXES:
            written = (number for number, line in enumerate(lines, start=1) if line.strip())
            return f"line {next(islice(written, row - 1, None), row)}"
        if suffix in SEPARATORS:
            is_quoted = find_quoting(path, find_separator(path, SEPARATORS[suffix])) is not None
            return f"line {first_line(lines, row + has_header, is_quoted)}"
    return f"line {row + (has_header and suffix in HEADED_SUFFIXES)}"


def first_line(lines: Iterable[str], record: int, is_quoted: bool) -> int:
    """The line (from 1) in which a record (from 1) of a delimited text begins; leading blank lines do not count.

    Args:
        lines: the text.
        record: its number.
        is_quoted: whether fields may be quoted, and so hold line ends.
    """
    num_begun, num_quotes = 0, 0
    for number, line in enumerate(lines, start=1):
        if num_quotes % 2 == 0 and (num_begun or line.strip()):
            num_begun += 1
            if num_begun == record:
                return number
        num_quotes += line.count('"') if is_quoted else 0
    return record
