"""Tables of recommendations for every user: histories that go in, a part at a time, and best items that come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from numpy import ndarray

from allrec.data.catalogue import Catalogue
from allrec.errors import InputError


class UserHistories(NamedTuple):
    """Some users and their histories.

    Attributes:
        user_ids: the data set's own.
        offsets: where each user's history begins and ends among the items.
        items: positions in the catalogue, oldest first within a user.
    """

    user_ids: list[str]
    offsets: Int[ndarray, "users+1"]
    items: Int[ndarray, "interactions"]


def parts_of_users(catalogue: Catalogue, size: int) -> Iterator[UserHistories]:
    """All users of a catalogue in its order, ``size`` at a time."""
    for start in range(0, len(catalogue.user_ids), size):
        end = min(start + size, len(catalogue.user_ids))
        offsets = catalogue.offsets[start : end + 1]
        yield UserHistories(
            catalogue.user_ids[start:end], offsets - offsets[0], catalogue.items[offsets[0] : offsets[-1]]
        )


def write_histories(path: Path, histories: UserHistories) -> None:
    """Writes users as Parquet: ``user_id``, and ``history`` as a list; the same users give the same bytes."""
    lengths = np.diff(histories.offsets)
    users = pl.DataFrame({"user_id": pl.Series(histories.user_ids, dtype=pl.String)}).with_row_index("user")
    rows = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    interactions = pl.DataFrame({"user": rows, "history": histories.items})
    grouped = interactions.group_by("user", maintain_order=True).agg("history")
    joined = users.join(grouped, on="user", how="left", maintain_order="left")
    joined.select("user_id", pl.col("history").fill_null([])).write_parquet(path)


def read_histories(path: Path) -> UserHistories:
    """Reads what ``write_histories`` wrote.

    Raises:
        InputError: the file is damaged.
    """
    try:
        table = pl.read_parquet(path, glob=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged: {reason}. Delete it, and run the command again.") from None
    # polars counts in uint32, whose sums beside an int64 would become floats.
    lengths = table["history"].list.len().to_numpy().astype(np.int64)
    items = table["history"].explode(empty_as_null=False).to_numpy().astype(np.int64)
    return UserHistories(table["user_id"].to_list(), np.concatenate([[0], np.cumsum(lengths)]), items)


def write_recommendations(
    path: Path,
    users: Sequence[str],
    items: Sequence[str],
    ranks: Int[ndarray, "rows"],
    scores: Float[ndarray, "rows"],
    contributions: Mapping[str, Float[ndarray, "rows"]],
) -> None:
    """Writes recommendations as Parquet, a row each; the same rows give the same bytes.

    Args:
        path: the file.
        users: ids of the users, a row each, those of a user together and best first.
        items: ids of the items.
        ranks: from 0.
        scores: see ``Recommendation.score``.
        contributions: what each evidence adds to the score, nan where it adds none: null in the file, as is the whole
            struct of an item that was not fused. Without any the file has no such column.
    """
    columns = {
        "user_id": pl.Series(users, dtype=pl.String),
        "rank": pl.Series(ranks, dtype=pl.Int32),
        "item_id": pl.Series(items, dtype=pl.String),
        "score": pl.Series(scores, dtype=pl.Float64),
    }
    table = pl.DataFrame(columns)
    if contributions:
        values = pl.DataFrame({name: pl.Series(one, dtype=pl.Float32) for name, one in contributions.items()})
        values = values.fill_nan(None)
        is_fused = values.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
        struct = pl.DataFrame({"struct": values.to_struct(), "is_fused": is_fused})
        table = table.with_columns(struct.select(pl.when("is_fused").then("struct").alias("contributions")).to_series())
    table.write_parquet(path)
