"""Reads interactions: types them, rejects rows by reason and reports those, codes ids, and sorts by user and time."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import polars as pl

from allrec.data.ids import MAX_ID_CHARS, as_text
from allrec.data.sources.diagnosis import place_of
from allrec.data.sources.files import ROW
from allrec.data.times import Times, read_times
from allrec.errors import InputError, notice

VALUE_TYPES = {"rating": pl.Float32, "position": pl.Int64}
ID_PARTS = ("user_id", "item_id")
RAW_PARTS = ("timestamp", "rating", "position")
UNREAD = (
    "missing user id", "missing item id", "bad user id", "bad item id", "bad timestamp", "bad position", "bad rating",
)  # fmt: skip
"""Reasons for which a row could not be read; the others are choices: filters and minimum counts."""
VALUE_OF = {
    "bad user id": "user_id", "bad item id": "item_id", "bad timestamp": "raw_timestamp",
    "bad position": "raw_position", "bad rating": "raw_rating",
}  # fmt: skip
NOTED_SHARE = 0.01
SHOWN_CHARS = 60


class Coded(NamedTuple):
    """Accepted interactions as numbers.

    Attributes:
        frame: source_row, user, item (first seen first), and time (ns), position, rating where the source has them.
        user_ids: the string id of every user number.
        item_ids: the string id of every item number.
    """

    frame: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series


def parse(
    raw: pl.LazyFrame, min_rating: float | None = None, times: Times | None = None, missing_ids: Sequence[str] = ()
) -> pl.LazyFrame:
    """Types a source's interactions and gives every row that cannot be used a reason.

    Args:
        raw: source_row, user_id, item_id, and where known timestamp, rating, position, of any type.
        min_rating: rows rated lower are rejected.
        times: how the timestamp is read; chosen from its values where None.
        missing_ids: texts that mean a missing id.

    Returns:
        source_row, user_id, item_id, reason (None: accepted), time (ns), rating, position, and the raw values of the
        rejected rows as ``raw_*``.
    """
    schema = raw.collect_schema()
    present = [part for part in RAW_PARTS if part in schema]
    ids = [as_text(pl.col(name), schema[name]).alias(name) for name in ID_PARTS]
    typed = []
    if "timestamp" in schema:
        typed.append((times or read_times(raw, None, "the table")).nanoseconds.alias("time"))
    if "rating" in schema:
        typed.append(number("rating", schema["rating"]).alias("rating_value"))
    if "position" in schema:
        typed.append(number("position", schema["position"]).alias("position_value"))
    kept = [
        pl.when(pl.col("reason").is_not_null()).then(pl.col(part)).cast(pl.String).alias(f"raw_{part}")
        for part in present
    ]
    values = [pl.col(f"{part}_value").cast(kind).alias(part) for part, kind in VALUE_TYPES.items() if part in schema]
    return (
        raw.with_columns(*ids, *typed)
        .with_columns(reason_for(present, min_rating, missing_ids).alias("reason"))
        .select(ROW, *ID_PARTS, "reason", *(["time"] if "timestamp" in schema else []), *values, *kept)
    )


def number(part: str, kind: pl.DataType) -> pl.Expr:
    """A column of type ``kind`` as finite numbers; None where it holds none."""
    value = pl.col(part)
    # A short float means what is written for it: .1 and not .10000000149.
    if not (kind.is_integer() or kind == pl.Float64):
        value = value.cast(pl.String).str.strip_chars()
    value = value.cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value)


def reason_for(present: list[str], min_rating: float | None, missing_ids: Sequence[str] = ()) -> pl.Expr:
    """Why a row is rejected, the first reason that holds; None where it is accepted."""
    names = ("user id", "item id")
    reasons = [(is_missing(name, missing_ids), f"missing {name}") for name in names]
    reasons += [(is_bad_id(name), f"bad {name}") for name in names]
    if "timestamp" in present:
        reasons.append((pl.col("time").is_null(), "bad timestamp"))
    if "position" in present:
        value = pl.col("position_value")
        reasons.append((value.is_null() | (value != value.round()), "bad position"))
    if "rating" in present:
        unread = pl.col("rating_value").is_null()
        is_given = pl.col("rating").cast(pl.String).str.strip_chars().str.len_chars() > 0
        reasons.append((unread & is_given, "bad rating"))
        if min_rating is not None:
            reasons += [(unread, "missing rating"), (pl.col("rating_value") < min_rating, "below minimum rating")]
    return pl.coalesce(pl.when(condition).then(pl.lit(reason)) for condition, reason in reasons)


def is_missing(name: str, missing_ids: Sequence[str] = ()) -> pl.Expr:
    """Whether an id is absent, blank or one of the texts that mean a missing one."""
    column = pl.col(name.replace(" ", "_"))
    return column.is_null() | (column.str.len_chars() == 0) | column.is_in(list(missing_ids))


def is_bad_id(name: str) -> pl.Expr:
    """Whether an id holds control characters or is too long."""
    column = pl.col(name.replace(" ", "_"))
    return column.str.contains(r"[\x00-\x1f\x7f]") | (column.str.len_chars() > MAX_ID_CHARS)


def number_ids(parsed: pl.LazyFrame, name: str) -> pl.DataFrame:
    """Ids of the accepted rows in order of first appearance, with their numbers."""
    first = parsed.group_by(name).agg(pl.col(ROW).min()).sort(ROW).collect(engine="streaming")
    number_name = name.removesuffix("_id")
    return first.select(pl.int_range(pl.len(), dtype=pl.Int32).alias(number_name), name)


def code(parsed_path: Path) -> Coded:
    """Replaces the ids of accepted interactions by integer codes, in the source's order."""
    accepted = pl.scan_parquet(parsed_path, glob=False).filter(pl.col("reason").is_null())
    users, items = number_ids(accepted, "user_id"), number_ids(accepted, "item_id")
    known = [name for name in ("time", "position", "rating") if name in accepted.collect_schema()]
    frame = (
        accepted.join(users.lazy(), on="user_id")
        .join(items.lazy(), on="item_id")
        .select(ROW, "user", "item", *known)
        .sort(ROW)
        .collect(engine="streaming")
    )
    return Coded(frame, users["user_id"], items["item_id"])


def put_in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Sorts by user, then time, position, and the source's own order among ties; adds ``order`` within the user."""
    keys = [name for name in ("time", "position") if name in frame.columns]
    ordered = frame.sort("user", *keys, ROW)
    return ordered.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("user").alias("order"))


def count_reasons(rejected: pl.LazyFrame) -> dict[str, int]:
    """Number of rejected rows by reason, sorted by reason."""
    counted = rejected.group_by("reason").agg(pl.len().alias("rows")).sort("reason").collect(engine="streaming")
    return {reason: int(rows) for reason, rows in counted.iter_rows()}


def refuse_missing_rating(raw: pl.LazyFrame, min_rating: float | None, path: Path) -> None:
    """Refuses a minimum rating of a source without ratings.

    Raises:
        InputError: how to name the column.
    """
    if min_rating is not None and "rating" not in raw.collect_schema():
        raise InputError(
            f"{path}: min_rating is {min_rating:g}, but there is no rating column. Name it: --column rating=COLUMN."
        )


def refuse_nothing_left(num_kept: int, reasons: dict[str, int], path: Path) -> None:
    """Refuses a source of which no interaction is left.

    Raises:
        InputError: how many rows were rejected for what.
    """
    if num_kept == 0:
        listing = ", ".join(f"{rows} {reason}" for reason, rows in reasons.items()) or "it has no rows"
        raise InputError(f"{path}: no interaction is left ({listing}). Loosen the filters, or name the right columns.")


class Table(NamedTuple):
    """A table whose rows were read.

    Attributes:
        path: the file.
        has_header: whether its first line names the columns.
    """

    path: Path
    has_header: bool = True


def check_unreadable(parsed: pl.LazyFrame, table: Table, max_rejected: float) -> None:
    """Warns that rows of the interactions could not be read, or refuses the source.

    Args:
        parsed: source_row, user_id, item_id, reason, and ``raw_*`` of rejected rows.
        table: where they were read from.
        max_rejected: the share of the rows that may be lost.

    Raises:
        InputError: more than that share; the reasons, a value and its line of each, and what to do.
    """
    num_rows = parsed.select(pl.len()).collect(engine="streaming").item()
    unread = parsed.filter(pl.col("reason").is_in(UNREAD))
    first = unread.sort(ROW).group_by("reason", maintain_order=True).agg(pl.len().alias("rows"), pl.all().first())
    reasons = first.collect()
    num_lost = int(reasons["rows"].sum())
    if not num_rows or num_lost <= min(NOTED_SHARE, max_rejected) * num_rows:
        return
    listing = "; ".join(describe(row, table) for row in reasons.iter_rows(named=True))
    warn_or_refuse(num_lost, num_rows, listing, table.path, max_rejected)


def check_without_id(rejected: pl.DataFrame, num_rows: int, table: Table, max_rejected: float) -> None:
    """The same for items, whose rows are lost where they have no id.

    Raises:
        InputError: see ``check_unreadable``.
    """
    if len(rejected) > min(NOTED_SHARE, max_rejected) * num_rows:
        place = place_of(table.path, rejected[ROW][0], table.has_header)
        warn_or_refuse(
            len(rejected), num_rows, f"{len(rejected):,} item without id, first in {place}", table.path, max_rejected
        )


def warn_or_refuse(num_lost: int, num_rows: int, listing: str, path: Path, max_rejected: float) -> None:
    """Warns of lost rows, or refuses them.

    Raises:
        InputError: more are lost than may be.
    """
    share = num_lost / num_rows
    message = f"{path}: {num_lost:,} of {num_rows:,} rows ({share:.1%}) could not be read ({listing})"
    if share > max_rejected:
        allowed = ceil(share * 1_000) / 1_000
        raise InputError(
            f"{message}, more than the {max_rejected:.1%} that may be lost. Mend them, or accept the loss: "
            f"--max-rejected {allowed:g}."
        )
    notice(f"{message}. They are left out; rejected.jsonl holds them all.")


def describe(row: dict[str, object], table: Table) -> str:
    """A reason with its number of rows, and a value with its line."""
    reason, number = str(row["reason"]), row["rows"]
    place = place_of(table.path, int(str(row[ROW])), table.has_header)
    column = VALUE_OF.get(reason)
    value = row.get(column) if column else None
    if column is None or value in (None, ""):
        return f"{number:,} {reason}, first in {place}"
    return f"{number:,} {reason}, such as {str(value)[:SHOWN_CHARS]!r} in {place}"
