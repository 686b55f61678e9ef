"""RecBole atomic files (recbole.io): ``NAME.inter`` and ``NAME.item``, tab-separated, headers ``name:type``."""

from pathlib import Path

import polars as pl

from allrec.data.sources.files import ROW, scan_delimited
from allrec.data.sources.source import Source, SourceOptions, as_items, existing, read_source
from allrec.data.sources.tables import guess_wording
from allrec.errors import InputError

FORMATS = ("recbole",)
TYPES = ("token", "token_seq", "float", "float_seq")
TEXT_PARTS = ("item_id", "title", "description")


def matches(path: Path) -> str | None:
    """The format's name where ``path`` is, or holds, one ``.inter`` file."""
    return "recbole" if find_interactions(path) else None


def find_interactions(path: Path) -> Path | None:
    """The ``.inter`` file: itself, or the only one in the folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.inter"))
    return files[0] if len(files) == 1 and files[0].suffix == ".inter" else None


def read(path: Path, options: SourceOptions, name: str = "recbole") -> Source:
    """Reads atomic files.

    Raises:
        InputError: not exactly one ``.inter``, or a header without types.
    """
    interactions_path = find_interactions(path)
    if interactions_path is None:
        raise InputError(f"{path} holds no single .inter file. Give the file itself.")
    paths = (interactions_path, options.items_path or existing(interactions_path.with_suffix(".item")))
    frame, wording = scan_atomic(interactions_path)[0], guess_wording(interactions_path)
    return read_source(name, frame, paths, options.columns, lambda items: read_items(items, options), wording)


def scan_atomic(path: Path) -> tuple[pl.LazyFrame, dict[str, str]]:
    """An atomic file under its plain names, and the type of every column.

    Raises:
        InputError: a header that is not ``name:type``.
    """
    frame = scan_delimited(path, "\t")
    types = {}
    for header in frame.collect_schema().names():
        if header == ROW:
            continue
        plain, _, kind = header.strip().rpartition(":")
        if not plain or kind not in TYPES:
            raise InputError(f"{path}, line 1: got {header!r}, expected name:type with a type of {', '.join(TYPES)}.")
        types[header] = (plain, kind)
    renamed = frame.rename({header: plain for header, (plain, _) in types.items()})
    return renamed, dict(types.values())


def read_items(path: Path, options: SourceOptions) -> pl.LazyFrame:
    """Reads ``.item``; sequences become lists and floats numbers in the columns that are no text."""
    frame, types = scan_atomic(path)
    items = as_items(frame, path, options.item_columns)
    further = [name for name in items.collect_schema().names() if name in types and name not in TEXT_PARTS]
    return items.with_columns(typed(name, types[name]) for name in further)


def typed(name: str, kind: str) -> pl.Expr:
    """A further column by its declared type; a number that cannot be read becomes missing."""
    column = pl.col(name)
    words = column.str.split(" ")
    return {
        "token": column,
        "token_seq": words,
        "float": column.cast(pl.Float64, strict=False),
        "float_seq": words.cast(pl.List(pl.Float64), strict=False),
    }[kind]
