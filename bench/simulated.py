"""Interactions of any number in seconds: popularity by rank, times at random; no titles and no tastes."""

from pathlib import Path

import numpy as np
import polars as pl

CHUNK = 1 << 20


def write_interactions(path: Path, interactions: int, users: int, items: int, seed: int) -> None:
    """A Parquet file of user_id, item_id and timestamp, in an order that has nothing to do with users.

    An item's share falls with the square root of its rank, so that every item occurs and a few occur often.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, interactions, CHUNK):
        size = min(CHUNK, interactions - start)
        ranks = (rng.random(size) ** 2 * items).astype(np.int64)
        parts.append(
            pl.DataFrame(
                {
                    "user_id": rng.integers(users, size=size).astype(np.int32),
                    "item_id": ranks.astype(np.int32),
                    "timestamp": rng.integers(1_600_000_000, 1_700_000_000, size=size),
                }
            )
        )
    pl.concat(parts).select(pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id"),
                            "timestamp").write_parquet(path)  # fmt: skip
