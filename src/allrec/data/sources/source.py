"""What every published format is turned into, and how columns are found by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from allrec.data.sources.files import ROW
from allrec.errors import InputError, Wording, nearest

INTERACTION_COLUMNS = {
    "user_id": ("user_id", "user", "uid", "reviewer_id", "customer_id", "customer", "visitor_id", "member_id",
                "account_id", "client_id"),
    "item_id": ("item_id", "item", "iid", "parent_asin", "asin", "product_id", "product", "movie_id", "article_id",
                "book_id", "track_id", "song_id", "business_id", "sku", "isbn"),
    "timestamp": ("timestamp", "unix_review_time", "time", "unix_time", "datetime", "event_time", "created_at", "date",
                  "ts"),
    "rating": ("rating", "overall", "score", "stars"),
    "position": ("position", "sequence_number"),
}  # fmt: skip
ITEM_COLUMNS = {
    "item_id": INTERACTION_COLUMNS["item_id"] + ("id",),
    "title": ("title", "name", "item_name", "item_title", "product_name", "product_title", "movie_title", "book_title"),
    "description": ("description", "desc", "overview", "summary", "plot", "details_text"),
}
BOUGHT = Wording()
MOVIE = Wording(noun="movie", verb="watch", past="watched")


@dataclass(frozen=True)
class Source:
    """A published or own data set, read lazily.

    Attributes:
        format: the format's name, as the option gives it.
        interactions: source_row (from 1), user_id, item_id, and where known timestamp, rating, position; as read.
        items: source_row, item_id, title, description, further columns; None where the source has no items.
        files: what was read, for checksums and for error messages.
        wording: how a prompt speaks of such items.
    """

    format: str
    interactions: pl.LazyFrame
    items: pl.LazyFrame | None
    files: tuple[Path, ...]
    wording: Wording = BOUGHT


@dataclass(frozen=True)
class SourceOptions:
    """Where the items are, and which column is which where the names do not tell."""

    items_path: Path | None = None
    columns: Mapping[str, str] | None = None
    item_columns: Mapping[str, str] | None = None


def plain_name(name: str) -> str:
    """A column's name in small letters and digits alone: ``userid`` of ``User-ID``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_columns(
    names: Sequence[str], known: Mapping[str, tuple[str, ...]], given: Mapping[str, str] | None, path: Path
) -> dict[str, str]:
    """Which column plays which part: the mapping given by the user first, then the commonest synonym present.

    Args:
        names: the table's columns.
        known: synonyms of every part, the commonest first.
        given: part -> column, by the user.
        path: the table, for messages.

    Raises:
        InputError: the user's mapping names an unknown part or a column that is not there.
    """
    by_plain_name = {plain_name(name): name for name in reversed(names)}
    found = {}
    for part, synonyms in known.items():
        present = [by_plain_name[plain_name(word)] for word in synonyms if plain_name(word) in by_plain_name]
        if present:
            found[part] = present[0]
    for part, column in (given or {}).items():
        if part not in known:
            raise InputError(f"cannot map {part!r} to a column of {path}: {nearest(part, list(known))}.")
        if column not in names:
            raise InputError(f"{path} has no column {column!r} for {part}: {nearest(column, list(names))}.")
        found[part] = column
    return found


def require(part: str, found: Mapping[str, str], names: Sequence[str], path: Path, option: str = "--column") -> None:
    """Refuses a table in which nobody plays ``part``.

    Raises:
        InputError: the columns there are, and how to map one.
    """
    if part not in found:
        listing = ", ".join(name for name in names if name != ROW)
        raise InputError(f"{path} has no column for {part}, only {listing}. Name it: {option} {part}=COLUMN.")


def as_interactions(frame: pl.LazyFrame, path: Path, given: Mapping[str, str] | None = None) -> pl.LazyFrame:
    """Names the columns of an interactions table by their parts, and drops the others."""
    names = [name for name in frame.collect_schema().names() if name != ROW]
    found = find_columns(names, INTERACTION_COLUMNS, given, path)
    require("user_id", found, names, path)
    require("item_id", found, names, path)
    return frame.select(pl.col(ROW), *(pl.col(column).alias(part) for part, column in found.items()))


def as_items(frame: pl.LazyFrame, path: Path, given: Mapping[str, str] | None = None) -> pl.LazyFrame:
    """Names the columns of an items table by their parts, and keeps the others under their own names."""
    names = [name for name in frame.collect_schema().names() if name != ROW]
    found = find_columns(names, ITEM_COLUMNS, given, path)
    require("item_id", found, names, path, "--item-column")
    parts = [pl.col(column).alias(part) for part, column in found.items()]
    further = [
        pl.col(name).alias(f"source_{name}" if name in (*ITEM_COLUMNS, "text") else name)
        for name in names
        if name not in found.values()
    ]
    return frame.select(pl.col(ROW), *parts, *further)
