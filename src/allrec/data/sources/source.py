"""The common form of every format, and how columns are recognised by name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from allrec.data.ids import as_text, refuse_no_ids
from allrec.data.sources.files import ROW, SEPARATORS, names_example, table_suffix
from allrec.errors import InputError, Wording, nearest, notice

NUMBER = r"[+-]?\d+([.,]\d+)*"

INTERACTION_COLUMNS = {
    "user_id": ("user_id", "user", "uid", "reviewer_id", "customer_id", "customer", "visitor_id", "member_id",
                "account_id", "client_id", "profile_id", "household_id", "buyer_id", "person_id", "customer_unique_id",
                "session_id"),
    "item_id": ("item_id", "item", "iid", "parent_asin", "asin", "product_id", "product", "movie_id", "article_id",
                "book_id", "track_id", "song_id", "business_id", "sku", "isbn", "stock_code", "anime_id", "game_id",
                "recipe_id", "listing_id", "video_id", "artist_id", "news_id"),
    "timestamp": ("timestamp", "unix_review_time", "time", "unix_time", "datetime", "event_time", "created_at", "date",
                  "ts", "unix_timestamp", "epoch", "time_stamp", "date_time", "event_timestamp", "event_datetime",
                  "interaction_time", "interaction_timestamp", "interaction_date", "rated_at", "rating_timestamp",
                  "rating_time", "rating_date", "reviewed_at", "review_timestamp", "review_time", "review_date",
                  "reviews_date", "t_dat", "invoice_date", "order_purchase_timestamp", "order_timestamp", "order_time",
                  "order_datetime", "order_date", "ordered_at", "purchase_timestamp", "purchase_time", "purchase_date",
                  "purchased_at", "bought_at", "transaction_timestamp", "transaction_time", "transaction_date",
                  "tran_date", "sold_at", "sale_date", "date_added", "added_at", "added", "created", "created_on",
                  "creation_time", "creation_date", "date_created", "create_time", "submitted_at", "submitted",
                  "submit_date", "occurred_at", "happened_at", "clicked_at", "click_time", "viewed_at", "view_time",
                  "watched_at", "watch_date", "watch_time", "listened_at", "played_at", "last_played", "read_at",
                  "date_read", "visited_at", "visit_time", "visit_date", "checkin_time", "check_in_time", "utc_time",
                  "utc_timestamp", "local_time", "event_date", "log_time", "request_time", "action_time",
                  "session_start", "posted_at", "published_at", "updated_at", "last_updated", "dt", "when"),
    "rating": ("rating", "overall", "score", "stars"),
    "position": ("position", "sequence_number"),
}  # fmt: skip
ITEM_COLUMNS = {
    "item_id": INTERACTION_COLUMNS["item_id"] + ("id",),
    "title": ("title", "name", "item_name", "item_title", "product_name", "product_title", "movie_title", "book_title",
              "prod_name", "original_title"),
    "description": ("description", "desc", "overview", "summary", "plot", "details_text", "detail_desc",
                    "item_description", "product_description"),
}  # fmt: skip
BOUGHT = Wording()
MOVIE = Wording(noun="movie", verb="watch", past="watched")


@dataclass(frozen=True)
class Source:
    """A published or own data set, read lazily.

    Attributes:
        format: the format's name, as the option gives it.
        interactions: source_row (from 1), user_id, item_id, and where known timestamp, rating, position; as read.
        items: source_row, item_id, title, description, further columns; None where the source has no items.
        files: what was read, for checksums and for error messages; the interactions first, the items last.
        wording: how a prompt speaks of such items.
        columns: part -> column of the interactions, where they have names.
    """

    format: str
    interactions: pl.LazyFrame
    items: pl.LazyFrame | None
    files: tuple[Path, ...]
    wording: Wording = BOUGHT
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceOptions:
    """Where the items are, and which column is which where their names are not recognised.

    Attributes:
        items_path: the table of items; None where it is in the folder of the interactions, or there is none.
        columns: part -> column of the interactions.
        item_columns: part -> column of the items.
        names: the columns of interactions without a header, from left to right.
        item_names: the same of items.
        separator: of the fields of delimited tables; detected where None.
    """

    items_path: Path | None = None
    columns: Mapping[str, str] | None = None
    item_columns: Mapping[str, str] | None = None
    names: Sequence[str] | None = None
    item_names: Sequence[str] | None = None
    separator: str | None = None


def read_source(
    name: str,
    frame: pl.LazyFrame,
    paths: tuple[Path, Path | None],
    columns: Mapping[str, str] | None,
    read_items: Callable[[Path], pl.LazyFrame],
    wording: Wording = BOUGHT,
) -> Source:
    """A source from its table of interactions and its file of items.

    Args:
        name: the format's name.
        frame: the interactions under their own column names.
        paths: the file of the interactions and that of the items, None without any.
        columns: part -> column of the interactions.
        read_items: reads the items under the names of their parts.
        wording: how a prompt speaks of the items.
    """
    interactions, parts = as_interactions(frame, paths[0], columns)
    items = None if paths[1] is None else read_items(paths[1])
    return Source(name, interactions, items, tuple(path for path in paths if path is not None), wording, parts)


def existing(path: Path) -> Path | None:
    """The path itself; None where there is no such file."""
    return path if path.is_file() else None


def plain_name(name: str) -> str:
    """A column's name in small letters and digits alone: ``userid`` of ``User-ID``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_columns(
    names: Sequence[str], known: Mapping[str, tuple[str, ...]], given: Mapping[str, str] | None, path: Path
) -> dict[str, str]:
    """Part -> column: the mapping given by the user first, then the commonest synonym present.

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


def require(part: str, found: Mapping[str, str], names: Sequence[str], path: Path, is_items: bool = False) -> None:
    """Refuses a table without a column for ``part``.

    Raises:
        InputError: the columns there are, and how to map one.
    """
    if part in found:
        return
    option = "--item-column" if is_items else "--column"
    listing = ", ".join(" ".join(name.split()) for name in names if name != ROW)
    own_names = names_example("--item-names" if is_items else "--names", len(names))
    if table_suffix(path) not in SEPARATORS:
        raise InputError(f"{path} has no column for {part}, only {listing}. Name it: {option} {part}=COLUMN.")
    if any(re.fullmatch(NUMBER, name.strip()) for name in names):
        raise InputError(
            f"{path}, line 1: the first line looks like data ({listing}), expected the names of the columns. "
            f"Name them, from left to right, such as {own_names}."
        )
    if len(names) == 1:
        raise InputError(
            f"{path} has no column for {part}: its first line is one field, {listing!r}. "
            f"Name the character between the fields, such as --separator '^', or the column: {option} {part}=COLUMN."
        )
    raise InputError(
        f"{path} has no column for {part}, only {listing}. Name it: {option} {part}=COLUMN. "
        f"Where that line is data and no header, name the columns: {own_names}."
    )


def as_interactions(
    frame: pl.LazyFrame, path: Path, given: Mapping[str, str] | None = None
) -> tuple[pl.LazyFrame, dict[str, str]]:
    """Names the columns of an interactions table by their parts, drops the others, and returns the columns by part."""
    names = [name for name in frame.collect_schema().names() if name != ROW]
    found = find_columns(names, INTERACTION_COLUMNS, given, path)
    require("user_id", found, names, path)
    require("item_id", found, names, path)
    left = [name for name in names if name not in found.values()]
    if left and not {"timestamp", "position"} & set(found):
        notice(
            f"{path}: no column of times was recognised among {', '.join(left)}, so that the order of the rows is "
            f"taken for that in which things happened. Name one: --column timestamp=COLUMN."
        )
    return frame.select(pl.col(ROW), *(pl.col(column).alias(part) for part, column in found.items())), found


def as_items(frame: pl.LazyFrame, path: Path, given: Mapping[str, str] | None = None) -> pl.LazyFrame:
    """Names the columns of an items table by their parts, and keeps the others under their own names."""
    names = [name for name in frame.collect_schema().names() if name != ROW]
    found = find_columns(names, ITEM_COLUMNS, given, path)
    require("item_id", found, names, path, is_items=True)
    refuse_no_ids(frame.select(pl.col(found["item_id"]).alias("item_id")), ["item_id"], path)
    item_id = pl.col(found["item_id"])
    parts = [pl.col(column).alias(part) for part, column in found.items() if part != "item_id"]
    further = [
        pl.col(name).alias(f"source_{name}" if name in (*ITEM_COLUMNS, "text") else name)
        for name in names
        if name not in found.values()
    ]
    kind = frame.collect_schema()[found["item_id"]]
    return frame.select(pl.col(ROW), as_text(item_id, kind).alias("item_id"), *parts, *further)
