"""In which line of a file a row stands."""

import csv
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from allrec.data.sources.files import JSON_SUFFIXES, SEPARATORS, open_binary, table_suffix

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
            return f"line {first_line(lines, row + has_header, SEPARATORS[suffix])}"
    return f"line {row + (has_header and suffix in HEADED_SUFFIXES)}"


def first_line(lines: Iterable[str], record: int, separator: str) -> int:
    """The line (from 1) in which a record (from 1) of a delimited text begins; a quoted field may hold line ends."""
    reader = csv.reader(lines, delimiter=separator)
    line = 1
    for number, _ in enumerate(reader, start=1):
        if number == record:
            break
        line = reader.line_num + 1
    return line
