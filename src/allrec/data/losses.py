"""Rows that could not be read: how many, where the first one stands, and when there are too many to go on."""

from math import ceil
from pathlib import Path
from typing import NamedTuple

import polars as pl

from allrec.data.sources.files import ROW
from allrec.data.sources.places import place_of
from allrec.errors import InputError, notice

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


class Table(NamedTuple):
    """A table whose rows were read.

    Attributes:
        path: the file.
        has_header: whether its first line names the columns.
    """

    path: Path
    has_header: bool = True


def check_losses(parsed: pl.LazyFrame, table: Table, max_rejected: float) -> None:
    """Says, or refuses, that rows of the interactions could not be read.

    Args:
        parsed: source_row, user_id, item_id, reason, and ``raw_*`` of rejected rows.
        table: where they were read.
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
    listing = "; ".join(example(row, table) for row in reasons.iter_rows(named=True))
    tell(num_lost, num_rows, listing, table.path, max_rejected)


def check_lost_items(rejected: pl.DataFrame, num_rows: int, table: Table, max_rejected: float) -> None:
    """The same of items, whose rows are lost where they have no id.

    Raises:
        InputError: see ``check_losses``.
    """
    if len(rejected) > min(NOTED_SHARE, max_rejected) * num_rows:
        place = place_of(table.path, rejected[ROW][0], table.has_header)
        tell(len(rejected), num_rows, f"{len(rejected):,} item without id, first in {place}", table.path, max_rejected)


def tell(num_lost: int, num_rows: int, listing: str, path: Path, max_rejected: float) -> None:
    """Warns of lost rows, or refuses them.

    Raises:
        InputError: more are lost than may be.
    """
    share = num_lost / num_rows
    said = f"{path}: {num_lost:,} of {num_rows:,} rows ({share:.1%}) could not be read ({listing})"
    if share > max_rejected:
        allowed = ceil(share * 1_000) / 1_000
        raise InputError(
            f"{said}, more than the {max_rejected:.1%} that may be lost. Mend them, or accept the loss: "
            f"--max-rejected {allowed:g}."
        )
    notice(f"{said}. They are left out; rejected.jsonl holds them all.")


def example(row: dict[str, object], table: Table) -> str:
    """A reason with its number of rows, and a value with its line."""
    reason, number = str(row["reason"]), row["rows"]
    place = place_of(table.path, int(str(row[ROW])), table.has_header)
    column = VALUE_OF.get(reason)
    value = row.get(column) if column else None
    if column is None or value in (None, ""):
        return f"{number:,} {reason}, first in {place}"
    return f"{number:,} {reason}, such as {str(value)[:SHOWN_CHARS]!r} in {place}"
