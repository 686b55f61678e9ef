"""In which line of a file a row stands."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from allrec.data.sources.files import JSON_SUFFIXES, SEPARATORS, find_quoting, find_separator, open_binary, table_suffix

HEADED_SUFFIXES = (*SEPARATORS, ".inter", ".item")


def place_of(path: Path, row: int, has_header: bool = True) -> str:
    """Where a row (from 1) stands: "line 7" of a text file, "row 6" of another.

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
            is_quoted = find_quoting(path, find_separator(path, SEPARATORS[suffix]))[0] is not None
            return f"line {first_line(lines, row + has_header, is_quoted)}"
    return f"line {row + (has_header and suffix in HEADED_SUFFIXES)}"


def first_line(lines: Iterable[str], record: int, is_quoted: bool) -> int:
    """The line (from 1) in which a record (from 1) of a delimited text begins; blank lines before the first are none.

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
