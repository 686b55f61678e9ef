"""From scores to ranks. Ranks are 0-based and ties count against the target."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from allrec.data.dataset import flat

# Scores held at one time when ranking over the whole catalogue: 16 MiB of float32.
MAX_SCORES = 1 << 22
# Rows at least: a large catalogue is read from memory once for all of them.
ROWS = 16

ScoreRows = Callable[[slice], Tensor]


class Excluded(NamedTuple):
    """Items that a row may not be given: ``items[starts[row]:ends[row]]``, the target itself excepted.

    For protocol ``full`` these are the slices of the users' histories before their targets.
    """

    starts: Int[np.ndarray, "rows"]
    ends: Int[np.ndarray, "rows"]
    items: Int[np.ndarray, "interactions"]

    def others(self, rows: slice, targets: Int[np.ndarray, "part"]) -> Int64[np.ndarray, "2 others"]:
        """What some of the rows may not be given: rows, counted from the first of these, and items."""
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
        scores: larger is better, in any unit; infinities are legal. The scores of padding are not looked at.
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
