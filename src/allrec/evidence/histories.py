"""Histories before a target, as slices of one array."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from allrec.data.dataset import Dataset, Targets
from allrec.training.batching import pad_histories
from allrec.training.content import latest_first

Rows = slice | Int[ndarray, "part"]


class Histories(NamedTuple):
    """One history a row: ``items[start:end]``, oldest first, of any length."""

    items: Int[ndarray, "interactions"]
    starts: Int[ndarray, "rows"]
    ends: Int[ndarray, "rows"]

    @property
    def num_rows(self) -> int:
        """How many histories there are."""
        return len(self.starts)

    def part(self, rows: Rows) -> "Histories":
        """Some of the rows."""
        return Histories(self.items, self.starts[rows], self.ends[rows])

    def latest_first(self, length: int) -> Int[Tensor, "rows length"]:
        """The latest ``length`` items, the very latest first, padded with -1; one column at least."""
        padded = latest_first(pad_histories(self.items, self.starts, self.ends, length))
        return padded if padded.shape[1] else padded.new_full((len(padded), 1), -1)


def histories_of(sequences: Sequence[Int[ndarray, "length"]]) -> Histories:
    """From one array a user, oldest first."""
    ends = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
    items = np.concatenate([np.zeros(0, np.int64), *sequences]).astype(np.int64)
    return Histories(items, np.concatenate([[0], ends[:-1]]).astype(np.int64), ends)


def histories_before(dataset: Dataset, targets: Targets, rows: Rows = slice(None)) -> Histories:
    """What stands before each target in its user's sequence."""
    starts = dataset.offsets[targets.users[rows]]
    return Histories(dataset.items, starts, starts + targets.positions[rows])
