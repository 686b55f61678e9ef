"""Which interactions are training data, and which are the targets of validation and test."""

from typing import NamedTuple

import numpy as np
import polars as pl

from allrec.data.time_forms import SECOND
from allrec.errors import InputError

MIN_EVALUATED = 3


class Split(NamedTuple):
    """One way to cut every user's sequence.

    Attributes:
        train_lengths: int64 [users], how many first interactions are training data.
        targets: split -> (users int32 [rows], positions int64 [rows]) of the targets, users ascending.
    """

    train_lengths: np.ndarray
    targets: dict[str, tuple[np.ndarray, np.ndarray]]


def leave_last_out(lengths: np.ndarray) -> Split:
    """Last interaction = test, the one before = valid, for users with at least three; the rest is training data.

    Args:
        lengths: int64 [users], interactions of every user.
    """
    users = np.flatnonzero(lengths >= MIN_EVALUATED).astype(np.int32)
    train_lengths = lengths.astype(np.int64)
    train_lengths[users] -= 2
    valid = train_lengths[users]
    return Split(train_lengths, {"valid": (users, valid), "test": (users.copy(), valid + 1)})


def split_at_times(users: np.ndarray, times: np.ndarray, num_users: int, valid_from: float, test_from: float) -> Split:
    """Training ends for everybody at ``valid_from``; targets are each user's first interactions from the two times on.

    A user without any interaction before a target has no history and is not evaluated on it.

    Args:
        users: int [interactions], sorted by user, then time.
        times: int64 [interactions], nanoseconds.
        num_users: how many users there are.
        valid_from: UTC seconds; the valid target is the first interaction in [valid_from, test_from).
        test_from: UTC seconds; the test target is the first interaction from here on.
    """
    lengths = np.bincount(users, minlength=num_users)
    before_valid = np.bincount(users[times < valid_from * SECOND], minlength=num_users)
    before_test = np.bincount(users[times < test_from * SECOND], minlength=num_users)
    return split_at_counts(lengths, before_valid, before_test)


def split_at_counts(lengths: np.ndarray, before_valid: np.ndarray, before_test: np.ndarray) -> Split:
    """``split_at_times`` of what it counts: interactions of every user, in all and before each of the two times."""
    valid = np.flatnonzero((before_test > before_valid) & (before_valid > 0))
    test = np.flatnonzero((lengths > before_test) & (before_test > 0))
    targets = {
        "valid": (valid.astype(np.int32), before_valid[valid]),
        "test": (test.astype(np.int32), before_test[test]),
    }
    return Split(before_valid.astype(np.int64), targets)


def refuse_no_times(frame: pl.DataFrame) -> None:
    """Refuses a split at global times of a source without times.

    Raises:
        InputError: what to do.
    """
    if "time" not in frame.columns:
        raise InputError("split global-time needs a timestamp column, and the source has none. Use leave-last-out.")
