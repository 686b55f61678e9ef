"""Batches: sequences of similar length within a token budget, and padded histories."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Batch = TypeVar("Batch")

# Sequences sorted by length at a time: many batches, so that a batch still mixes users from everywhere.
SORTED_TOGETHER = 1 << 15


def length_batches(
    lengths: Int[np.ndarray, "rows"], max_tokens: int, rng: np.random.Generator
) -> list[Int[np.ndarray, "batch"]]:
    """Cuts rows into batches whose padded size, rows times longest, stays within ``max_tokens``.

    Rows are shuffled, sorted by length within large chunks and cut; the order of the batches is shuffled too. A row
    longer than the budget gets a batch of its own.

    Args:
        lengths: tokens of each row; rows of length 0 are left out.
        max_tokens: the budget of a batch, padding included.
        rng: shuffles.
    """
    order = rng.permutation(np.flatnonzero(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), SORTED_TOGETHER):
        chunk = order[start : start + SORTED_TOGETHER]
        chunk = chunk[np.argsort(-lengths[chunk], kind="stable")]
        batches.extend(budgeted(chunk, lengths, max_tokens))
    return [batches[index] for index in rng.permutation(len(batches))]


def budgeted(
    order: Int[np.ndarray, "part"], lengths: Int[np.ndarray, "rows"], max_tokens: int
) -> Iterator[Int[np.ndarray, "batch"]]:
    """Cuts rows, longest first, into batches whose padded size stays within a budget, of one row at least.

    Args:
        order: rows, those of the longest first.
        lengths: of each row, at least 1.
        max_tokens: the budget.
    """
    place = 0
    while place < len(order):
        size = max(1, max_tokens // int(lengths[order[place]]))
        yield order[place : place + size]
        place += size


@dataclass(frozen=True)
class LazyBatches(Generic[Batch]):
    """The batches of an epoch, each built at its first access: ``build(index, rows)``."""

    rows: list[np.ndarray]
    build: Callable[[int, np.ndarray], Batch]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Batch:
        return self.build(index, self.rows[index])


def pad_histories(
    items: Int[np.ndarray, "interactions"],
    starts: Int[np.ndarray, "rows"],
    ends: Int[np.ndarray, "rows"],
    max_length: int,
) -> Int[Tensor, "rows length"]:
    """The latest ``max_length`` of ``items[starts[row]:ends[row]]``, oldest first, padded with -1 on the right.

    Args:
        items: item ids of all users concatenated, oldest first within a user.
        starts: where each row's history begins.
        ends: where it ends; before the target, for one.
        max_length: the maximal number of items kept.

    Returns:
        int64, as wide as the longest row after the cut.
    """
    starts = np.maximum(starts, ends - max_length)
    lengths = ends - starts
    columns = np.arange(lengths.max(initial=0))
    is_item = columns < lengths[:, None]
    padded = np.full(is_item.shape, -1, dtype=np.int64)
    padded[is_item] = items[(starts[:, None] + columns)[is_item]]
    return torch.from_numpy(padded)


def windows(
    starts: Int[np.ndarray, "rows"], ends: Int[np.ndarray, "rows"], max_length: int
) -> tuple[Int[np.ndarray, "windows"], Int[np.ndarray, "windows"], Int[np.ndarray, "windows"]]:
    """Cuts ``[start, end)`` into windows of at most ``max_length``, from the end: only the oldest may be shorter.

    Returns:
        Row, start and end of each window; an empty row has none.
    """
    counts = -(-(ends - starts) // max_length)
    rows = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    window_ends = ends[rows] - nth * max_length
    return rows, np.maximum(starts[rows], window_ends - max_length), window_ends


def latest_first(histories: Int[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Histories reversed: the latest item first, padding still on the right."""
    places = (histories >= 0).sum(dim=1, keepdim=True) - 1 - torch.arange(histories.shape[1])
    return histories.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1)
