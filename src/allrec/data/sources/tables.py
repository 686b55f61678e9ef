"""Own tables: a file, or a folder with ``interactions.*`` and ``items.*``."""

from pathlib import Path

import polars as pl

from allrec.data.sources.files import NUM_SAMPLE_ROWS, TABLE_SUFFIXES, find_table, scan_table, table_suffix
from allrec.data.sources.source import BOUGHT, MOVIE, Source, SourceOptions, as_items, read_source
from allrec.errors import InputError, Wording

FORMATS = ("tables",)
SMALL_BYTES = 1 << 26


def matches(path: Path) -> str | None:
    """The format's name where ``path`` is a table or a folder of tables."""
    if path.is_dir():
        return "tables" if find_table(path, "interactions") else None
    return "tables" if table_suffix(path) in TABLE_SUFFIXES else None


def read(path: Path, options: SourceOptions, name: str = "tables") -> Source:
    """Reads own tables; items from ``options.items_path``, else from ``items.*`` in the same folder.

    Raises:
        InputError: the folder has no ``interactions.*``, or a column is missing.
    """
    interactions_path = find_table(path, "interactions") if path.is_dir() else path
    if interactions_path is None:
        raise InputError(f"{path} holds no interactions.* (csv, tsv, jsonl or parquet). Give the file, or rename it.")
    items_path = options.items_path or (find_table(path, "items") if path.is_dir() else None)
    # A key that no early row has is found too, where looking at all rows is quick.
    num_sample_rows = NUM_SAMPLE_ROWS if interactions_path.stat().st_size > SMALL_BYTES else None
    table = scan_table(interactions_path, num_sample_rows, options.names, options.separator)
    paths, wording = (interactions_path, items_path), guess_wording(path)
    return read_source(name, table, paths, options.columns, lambda items: open_items(items, options), wording)


def open_items(path: Path, options: SourceOptions) -> pl.LazyFrame:
    """A table of items under the names of its parts."""
    table = scan_table(path, names=options.item_names, separator=options.separator)
    return as_items(table, path, options.item_columns)


def guess_wording(path: Path) -> Wording:
    """Films are watched; everything else is bought until the user says otherwise."""
    return MOVIE if path.name.lower().startswith(("movielens", "ml-")) else BOUGHT
