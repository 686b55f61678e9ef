"""Minimum counts: iterated k-core, or the one pass of the public A-LLMRec code."""

import numpy as np

from allrec.base import InputError
from allrec.data.config import PrepareConfig

REASONS = ("", "user below minimum count", "item below minimum count")
USER_BELOW, ITEM_BELOW = 1, 2


def count_filter(
    users: np.ndarray, items: np.ndarray, config: PrepareConfig, is_counted: np.ndarray | None = None
) -> np.ndarray:
    """Which interactions the count filter rejects.

    Args:
        users: int [interactions].
        items: int [interactions].
        config: ``count_filter`` and the two minimum counts.
        is_counted: bool [interactions], which ones count towards the minimums; all when not given.

    Returns:
        uint8 [interactions], an index into ``REASONS``; 0 is kept.

    Source:
        one-pass: the preprocessing of A-LLMRec's public code, which leaves low ratings out of the counts alone: its
        second walk keeps them wherever user and item have their minimum.
    """
    reasons = np.zeros(len(users), np.uint8)
    if config.count_filter == "none":
        return reasons
    while True:
        kept = np.flatnonzero(reasons == 0)
        weights = None if is_counted is None else is_counted[kept].astype(np.float64)
        user_counts, item_counts = np.bincount(users[kept], weights), np.bincount(items[kept], weights)
        is_item_below = item_counts[items[kept]] < config.min_item_count
        is_user_below = user_counts[users[kept]] < config.min_user_count
        reasons[kept[is_item_below]] = ITEM_BELOW
        reasons[kept[is_user_below]] = USER_BELOW
        if config.count_filter == "one-pass" or not (is_item_below | is_user_below).any():
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
