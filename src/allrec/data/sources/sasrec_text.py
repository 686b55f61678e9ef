"""The text files of the public SASRec code: a line an interaction, ``user item``, oldest first."""

import re
from pathlib import Path

import polars as pl

from allrec.data.sources.files import ROW, read_sample, scan_lines
from allrec.data.sources.source import Source, SourceOptions
from allrec.data.sources.tables import open_items

FORMATS = ("sasrec-text",)
PAIR = r"^\s*(\S+)[ \t]+(\S+)\s*$"


def matches(path: Path) -> str | None:
    """The format's name where a ``.txt`` file begins with a line of two numbers."""
    if not path.is_file() or path.suffix != ".txt":
        return None
    first_line = read_sample(path).split(b"\n", 1)[0]
    return "sasrec-text" if re.fullmatch(rb"\s*\d+[ \t]+\d+\s*", first_line) else None


def read(path: Path, options: SourceOptions, name: str = "sasrec-text") -> Source:
    """Reads pairs; the format has no times and no items, so titles come from ``options.items_path`` alone."""
    line = pl.col("line")
    pairs = scan_lines(path).select(
        pl.col(ROW), line.str.extract(PAIR, 1).alias("user_id"), line.str.extract(PAIR, 2).alias("item_id")
    )
    items = options.items_path
    return Source(
        format=name,
        interactions=pairs,
        items=open_items(items, options) if items else None,
        files=(path, items) if items else (path,),
    )
