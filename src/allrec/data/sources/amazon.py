"""Amazon reviews of 2018 (jmcauley.ucsd.edu/data/amazon_v2) and 2023 (amazon-reviews-2023.github.io) with metadata."""

import json
from pathlib import Path

import polars as pl

from allrec.data.sources.files import (
    JSON_SUFFIXES,
    ROW,
    TABLE_SUFFIXES,
    read_sample,
    scan_json_lines,
    scan_table,
    table_suffix,
)
from allrec.data.sources.source import Source, SourceOptions, as_items, read_source
from allrec.errors import InputError

FORMATS = ("amazon-2018", "amazon-2023")
REVIEW_KEYS = {
    "amazon-2018": {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime", "rating": "overall"},
    "amazon-2023": {"user_id": "user_id", "item_id": "parent_asin", "timestamp": "timestamp", "rating": "rating"},
}
ITEM_KEYS = {
    "amazon-2018": {"item_id": "asin", "brand": "brand", "categories": "category", "price": "price"},
    "amazon-2023": {"item_id": "parent_asin", "brand": "store", "categories": "categories", "price": "price"},
}
# Some titles of 2018 are the page's JavaScript; the data set's own notebook drops them by this word.
SCRIPT_WORD = "getTime"


def matches(path: Path) -> str | None:
    """The format's name where the first review has the keys of one of the two releases."""
    reviews = find_reviews(path)
    if reviews is None:
        return None
    first_line = read_sample(reviews).split(b"\n", 1)[0].decode("utf-8", errors="replace")
    names = parse_names(first_line)
    for name, keys in REVIEW_KEYS.items():
        if {keys["user_id"], keys["item_id"]} <= names:
            return name
    return None


def parse_names(first_line: str) -> set[str]:
    """The keys of a JSON object, or the names of a CSV header."""
    try:
        value = json.loads(first_line)
    except ValueError:
        return set(first_line.strip().split(","))
    return set(value) if isinstance(value, dict) else set()


def find_reviews(path: Path) -> Path | None:
    """The reviews: the file itself, or the one table of a folder whose name does not begin with ``meta_``."""
    if path.is_file():
        return path if table_suffix(path) in (*JSON_SUFFIXES, ".csv") else None
    tables = sorted(file for file in path.iterdir() if table_suffix(file) in TABLE_SUFFIXES) if path.is_dir() else []
    reviews = [file for file in tables if not file.name.startswith("meta_")]
    return reviews[0] if len(reviews) == 1 else None


def find_metadata(reviews: Path) -> Path | None:
    """``meta_NAME.*`` for ``NAME.*``, ``NAME_5.*`` (the 5-core of 2018) or the one ``meta_*`` there."""
    stem = reviews.name.split(".")[0]
    present = sorted(file for file in reviews.parent.glob("meta_*") if table_suffix(file) in JSON_SUFFIXES)
    named = [file for file in present if file.name.split(".")[0] in (f"meta_{stem}", f"meta_{stem.removesuffix('_5')}")]
    chosen = named or present
    return chosen[0] if len(chosen) == 1 else None


def read(path: Path, options: SourceOptions, name: str) -> Source:
    """Reads one category's reviews with its metadata, where that is in the same folder.

    Raises:
        InputError: the folder does not hold exactly one file of reviews.
    """
    reviews = find_reviews(path)
    if reviews is None:
        raise InputError(
            f"{path} holds no single file of reviews (NAME.json.gz or NAME.jsonl.gz). Give the file itself."
        )
    keys = REVIEW_KEYS[name]
    frame = scan_table(reviews) if table_suffix(reviews) == ".csv" else scan_json_lines(reviews, list(keys.values()))
    metadata = options.items_path or find_metadata(reviews)
    columns = {**keys, **(options.columns or {})}
    return read_source(name, frame, (reviews, metadata), columns, lambda path: read_metadata(path, name))


def read_metadata(path: Path, name: str) -> pl.LazyFrame:
    """Reads metadata: title, description, brand, categories, price; titles that are page scripts become None."""
    keys = ITEM_KEYS[name]
    frame = scan_json_lines(path, [*keys.values(), "title", "description"])
    is_script = pl.col("title").str.contains(SCRIPT_WORD, literal=True)
    further = [pl.col(column).alias(part) for part, column in keys.items()]
    title = pl.when(~is_script).then(pl.col("title")).alias("title")
    return as_items(frame.select(pl.col(ROW), *further, title, pl.col("description")), path)
