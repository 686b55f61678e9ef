"""From scores to ranks. Ranks are 0-based and ties count against the target."""

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from allrec.data.dataset import Dataset, Targets, flat
from allrec.data.protocols import EvaluationProtocol
from allrec.parallel import ordered_map

# Scores held at one time when ranking over the whole catalogue: 16 MiB of float32.
MAX_SCORES = 1 << 22
# Rows at least: a large catalogue is read from memory once for all of them.
ROWS = 16

ScoreRows = Callable[[slice], Tensor]


class Ranked(NamedTuple):
    """The ranks of some targets.

    Attributes:
        ranks: 0-based, ties against the target.
        is_retrieved: whether the target is among the retrieved candidates; None where every candidate was scored.
    """

    ranks: Int[ndarray, "rows"]
    is_retrieved: Bool[ndarray, "rows"] | None = None


class Excluded(NamedTuple):
    """Items excluded from a row's candidates: ``items[starts[row]:ends[row]]``, the target itself excepted.

    For protocol ``full`` these are the slices of the users' histories before their targets.
    """

    starts: Int[np.ndarray, "rows"]
    ends: Int[np.ndarray, "rows"]
    items: Int[np.ndarray, "interactions"]

    def others(self, rows: slice, targets: Int[np.ndarray, "part"]) -> Int64[np.ndarray, "2 others"]:
        """The excluded (row, item) pairs of some rows, rows counted from the first of these."""
        row_ids, places = flat(self.starts[rows], self.ends[rows])
        others = np.stack([row_ids, self.items[places]])
        return others[:, others[1] != targets[row_ids]]


def candidate_ranks(
    scores: Float[np.ndarray, "rows candidates"],
    candidates: Int[np.ndarray, "rows candidates"],
    targets: Int[np.ndarray, "rows"],
) -> Int[np.ndarray, "rows"]:
    """Rank of each row's target among its candidates: the number of others that score at least as much.

    Args:
        scores: larger is better, in any unit; infinities are legal. The scores of padding are ignored.
        candidates: item ids, -1 pads.
        targets: the one candidate of each row that counts.

    Raises:
        ValueError: a score is not a number, or a row does not hold its target once.
    """
    is_target = (candidates == targets[:, None]) & (candidates >= 0)
    counts = is_target.sum(axis=1)
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise ValueError(f"row {row} holds its target {targets[row]} {counts[row]} times, expected once")
    is_other = (candidates >= 0) & ~is_target
    if (nans := np.isnan(scores) & (candidates >= 0)).any():
        row, column = np.argwhere(nans)[0]
        raise ValueError(f"row {row} scores item {candidates[row, column]} with nan, expected a number")
    target_scores = scores[is_target][:, None]
    return np.asarray(np.count_nonzero((scores >= target_scores) & is_other, axis=1))


def catalogue_ranks(
    score_rows: ScoreRows, targets: Int[np.ndarray, "rows"], num_items: int, excluded: Excluded | None = None
) -> Int[np.ndarray, "rows"]:
    """Rank of each row's target among the whole catalogue, in chunks of rows, so that memory stays bounded.

    Args:
        score_rows: scores [chunk, items] of a slice of the rows, larger is better.
        targets: the item of each row that counts.
        num_items: size of the catalogue.
        excluded: items taken out of a row's candidates (protocol ``full``); None takes out none (``full-repeat``).

    Raises:
        ValueError: a score is not a number.
    """
    ranks = np.empty(len(targets), dtype=np.int64)
    chunk = max(ROWS, MAX_SCORES // num_items)
    for start in range(0, len(targets), chunk):
        rows = slice(start, min(start + chunk, len(targets)))
        scores = score_rows(rows)
        refuse_nan(scores, start)
        target_ids = torch.as_tensor(targets[rows], dtype=torch.int64, device=scores.device)
        target_scores = scores.gather(1, target_ids[:, None])
        # The target itself is counted by >=, hence - 1.
        ranks[rows] = ((scores >= target_scores).sum(dim=1) - 1).cpu().numpy()
        if excluded is not None:
            ranks[rows] -= _num_excluded(scores, targets[rows], target_scores[:, 0], excluded, rows)
    return ranks


def _num_excluded(
    scores: Float[Tensor, "chunk items"],
    targets: Int[np.ndarray, "chunk"],
    target_scores: Float[Tensor, "chunk"],
    excluded: Excluded,
    rows: slice,
) -> Int[np.ndarray, "chunk"]:
    """How many excluded items, each counted once, score at least as much as the target."""
    row_ids, item_ids = excluded.others(rows, targets)
    pairs = np.unique(row_ids * scores.shape[1] + item_ids)
    row, item = (torch.from_numpy(part).to(scores.device) for part in np.divmod(pairs, scores.shape[1]))
    is_before = scores[row, item] >= target_scores[row]
    return np.bincount(row[is_before].cpu().numpy(), minlength=len(targets))


def refuse_nan(scores: Float[Tensor, "chunk items"], first_row: int, first_item: int = 0) -> None:
    """Refuses scores that are not numbers.

    Args:
        scores: some of all rows and items.
        first_row: where they begin.
        first_item: the same.

    Raises:
        ValueError: one is not a number.
    """
    if scores.isnan().any():
        row, item = scores.isnan().nonzero()[0].tolist()
        raise ValueError(f"row {first_row + row} scores item {first_item + item} with nan, expected a number")


SCORED_TOGETHER = 1024
"""Rows whose candidates are scored at one time."""
USERS_TOGETHER = 256
"""Rows whose catalogue is scored at one time, by one thread: items are read from memory once for all of them."""
ITEMS = 2048
"""Items of a block, so few that its scores stay in a core's cache."""
ITEMS_ON_DEVICE = 1 << 18
"""The same on an accelerator, where few large steps are best."""
FEW = 16
"""Rows of a product at least: with fewer, equal columns were seen to give sums that differ in their last bit."""


def dot_product_ranks(
    users: Float[Tensor, "rows dim"],
    items: Float[Tensor, "items dim"],
    dataset: Dataset,
    targets: Targets,
    protocol: str,
) -> Int[ndarray, "rows"]:
    """0-based ranks of the targets, ties against them.

    Args:
        users: a vector a target.
        items: a vector an item.
        dataset: whose histories protocol ``full`` excludes.
        targets: whose items are ranked.
        protocol: ``full``, ``full-repeat``, or one whose candidates are stored.
    """
    if EvaluationProtocol(protocol).is_catalogue:
        return ranks_among_all(users, items, targets.items, excluded_of(dataset, targets, protocol))
    scores = np.empty(targets.candidates[protocol].shape, dtype=np.float32)
    for start in range(0, len(scores), SCORED_TOGETHER):
        rows = slice(start, start + SCORED_TOGETHER)
        candidates = torch.from_numpy(targets.candidates[protocol][rows].clip(min=0)).to(items.device)
        scores[rows] = torch.einsum("rd,rcd->rc", users[rows], items[candidates]).cpu().numpy()
    return candidate_ranks(scores, targets.candidates[protocol], targets.items)


@torch.no_grad()
def ranks_among_all(
    users: Float[Tensor, "rows dim"],
    items: Float[Tensor, "items dim"],
    targets: Int[ndarray, "rows"],
    excluded: Excluded | None = None,
) -> Int[ndarray, "rows"]:
    """0-based ranks of the targets among the whole catalogue, ties against them.

    ``catalogue_ranks`` counts the same. Here no row of scores is ever held: a block of items is scored for many rows
    and counted before the next one, while its scores are in a core's cache.

    Args:
        users: a vector a row.
        items: a vector an item.
        targets: the item of each row that counts.
        excluded: items taken out of a row's candidates (protocol ``full``); None takes out none (``full-repeat``).

    Raises:
        ValueError: a score is not a number.
    """
    if len(users) == 0:
        return np.zeros(0, np.int64)
    is_cpu = users.device.type == "cpu"
    # Of even sizes, as products with a few rows or columns round otherwise than larger ones: see ``FEW``.
    num_blocks = max(1, -(-len(items) // (ITEMS if is_cpu else ITEMS_ON_DEVICE)))
    bounds = np.arange(num_blocks + 1) * len(items) // num_blocks
    # Finite numbers whose products cannot overflow have no NaN among their sums, which then need no check.
    largest = [float(torch.stack(one.aminmax()).abs().amax()) for one in (users, items)]
    is_bounded = prod(largest) * items.shape[1] < torch.finfo(items.dtype).max

    def ranks(start: int) -> Int[ndarray, "part"]:
        rows = slice(start, min(start + USERS_TOGETHER, len(users)))
        own = targets[rows].astype(np.int64)
        left_out = np.zeros((2, 0), np.int64) if excluded is None else excluded.others(rows, own)
        wanted = _Cells.of(np.stack([np.arange(len(own)), own]), bounds, items.device)
        unwanted = _Cells.of(left_out, bounds, items.device)
        part = functional.pad(users[rows], (0, 0, 0, max(0, FEW - len(own))))
        least = torch.zeros(len(part), dtype=users.dtype, device=users.device)
        scores = part[: len(own)] @ items[torch.from_numpy(own).to(items.device)].T
        least[: len(own)] = scores.diagonal()
        first_row = None if is_bounded else start
        counts, seen = _count(part, items, bounds, least, wanted, unwanted, first_row)
        # The target's own score is its block's. Where a product of another shape rounds otherwise, count again.
        if not torch.equal(seen, least):
            counts, _ = _count(part, items, bounds, seen, wanted, unwanted, first_row)
        return (counts[: len(own)] - 1).cpu().numpy()

    parts = ordered_map(ranks, range(0, len(users), USERS_TOGETHER), None if is_cpu else 1)
    return np.concatenate(list(parts))


class _Cells(NamedTuple):
    """Cells of a score matrix grouped by block of items: block b has those from ``starts[b]`` to ``starts[b + 1]``."""

    rows: Int[Tensor, "cells"]
    places: Int[Tensor, "cells"]
    starts: list[int]

    @classmethod
    def of(
        cls, cells: Int[ndarray, "2 cells"], bounds: Int[ndarray, "blocks_and_one"], device: torch.device
    ) -> "_Cells":
        rows, items = cells[:, np.argsort(cells[1], kind="stable")]
        starts = np.searchsorted(items, bounds)
        places = items - np.repeat(bounds[:-1], np.diff(starts))
        return cls(torch.from_numpy(rows).to(device), torch.from_numpy(places).to(device), starts.tolist())

    def of_block(self, number: int) -> tuple[Tensor, Tensor]:
        here = slice(self.starts[number], self.starts[number + 1])
        return self.rows[here], self.places[here]


def _count(
    users: Float[Tensor, "rows dim"],
    items: Float[Tensor, "items dim"],
    bounds: Int[ndarray, "blocks_and_one"],
    least: Float[Tensor, "rows"],
    wanted: _Cells,
    unwanted: _Cells,
    first_row: int | None,
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """The number of items that score ``least`` or more, without the unwanted; and the score of each row's wanted cell.

    Scores are checked for NaN where ``first_row`` is given, from which errors count; rows after the wanted ones are
    padding.
    """
    counts, seen = torch.zeros(len(users), dtype=torch.int64, device=users.device), torch.zeros_like(least)
    memory = users.new_empty(len(users), int(np.diff(bounds).max()))
    for number, (start, end) in enumerate(pairwise(bounds.tolist())):
        scores = torch.mm(users, items[start:end].T, out=memory[:, : end - start])
        if first_row is not None:
            refuse_nan(scores[: len(wanted.rows)], first_row, start)
        rows, places = wanted.of_block(number)
        seen[rows] = scores[rows, places]
        scores[unwanted.of_block(number)] = torch.nan
        counts += scores.ge_(least[:, None]).sum(dim=1, dtype=torch.float32).long()
    return counts, seen


def excluded_of(dataset: Dataset, targets: Targets, protocol: str) -> Excluded | None:
    """The items that a protocol excludes from the catalogue: those before each target, or None."""
    if not EvaluationProtocol(protocol).excludes_history:
        return None
    starts = dataset.offsets[targets.users]
    return Excluded(starts, starts + targets.positions, dataset.items)
