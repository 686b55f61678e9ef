"""The count filter: which interactions go because their user or item has too few."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from allrec.data.config import PrepareConfig
from allrec.data.sources.files import ROW
from allrec.errors import InputError

REASONS = ("", "user below minimum count", "item below minimum count")
USER_BELOW, ITEM_BELOW = 1, 2


class Pairs(NamedTuple):
    """Who touched what, in a part of the interactions.

    Attributes:
        users: int [interactions], numbers over all parts.
        items: int [interactions], the same.
        is_counted: bool [interactions], which ones count towards minimum counts; None is all.
    """

    users: np.ndarray
    items: np.ndarray
    is_counted: np.ndarray | None = None


def count_filter(
    users: np.ndarray, items: np.ndarray, config: PrepareConfig, is_counted: np.ndarray | None = None
) -> np.ndarray:
    """``count_filter_parts`` of interactions that are all in memory: uint8 [interactions]."""
    whole = Pairs(users, items, is_counted)
    num_users, num_items = (int(numbers.max(initial=-1)) + 1 for numbers in (users, items))
    return count_filter_parts(lambda: iter([whole]), [len(users)], num_users, num_items, config)[0]


def count_filter_parts(
    parts: Callable[[], Iterator[Pairs]],
    lengths: Sequence[int],
    num_users: int,
    num_items: int,
    config: PrepareConfig,
) -> list[np.ndarray]:
    """Which interactions the count filter rejects.

    Args:
        parts: reads the interactions, part by part.
        lengths: interactions of each part.
        num_users: users of all parts.
        num_items: items of all parts.
        config: ``count_filter`` and the two minimum counts.

    Returns:
        For each part uint8 [interactions], an index into ``REASONS``; 0 is kept.

    Source:
        one-pass: the preprocessing of A-LLMRec's public code, which leaves low ratings out of the counts alone: its
        second walk keeps them wherever user and item have their minimum.
    """
    reasons = [np.zeros(length, np.uint8) for length in lengths]
    while config.count_filter != "none":
        user_counts, item_counts = np.zeros(num_users), np.zeros(num_items)
        for part, why in zip(parts(), reasons, strict=True):
            kept = np.flatnonzero(why == 0)
            weights = None if part.is_counted is None else part.is_counted[kept].astype(np.float64)
            user_counts += np.bincount(part.users[kept], weights, num_users)
            item_counts += np.bincount(part.items[kept], weights, num_items)
        is_any_below = False
        for part, why in zip(parts(), reasons, strict=True):
            kept = np.flatnonzero(why == 0)
            is_item_below = item_counts[part.items[kept]] < config.min_item_count
            is_user_below = user_counts[part.users[kept]] < config.min_user_count
            why[kept[is_item_below]] = ITEM_BELOW
            why[kept[is_user_below]] = USER_BELOW
            is_any_below |= bool((is_item_below | is_user_below).any())
        if config.count_filter == "one-pass" or not is_any_below:
            break
    return reasons


def refuse_unused_minimum(config: PrepareConfig) -> None:
    """Refuses minimum counts without a filter that would use them.

    Raises:
        InputError: how to set one.
    """
    given = config.model_fields_set & {"min_user_count", "min_item_count"}
    if config.count_filter == "none" and given:
        raise InputError(
            f"{', '.join(sorted(given))} is given, but count_filter is 'none'. Set it to k-core or one-pass."
        )


def pairs_of(frame: pl.DataFrame, config: PrepareConfig) -> Pairs:
    """What the count filter reads of coded interactions."""
    minimum = config.min_rating
    is_counted = None if minimum is None else (frame["rating"] >= minimum).fill_null(False).to_numpy()
    return Pairs(frame["user"].to_numpy(), frame["item"].to_numpy(), is_counted)


def name_reasons(frame: pl.DataFrame, reasons: np.ndarray) -> pl.DataFrame:
    """source_row and reason of what the count filter rejects."""
    filtered = frame.select(ROW).with_columns(pl.Series("reason", reasons)).filter(pl.col("reason") > 0)
    return filtered.with_columns(pl.col("reason").replace_strict(dict(enumerate(REASONS)), return_dtype=pl.String))
