"""Evidence for candidates: named numbers that say why a user may want an item, the same for any list it stands in.

Every value is a function of the history before the target, of the candidate and of what training froze. Nothing is
normalised within a list, so twenty given candidates and the whole catalogue have the same evidence.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.candidates import is_repeated
from allrec.evidence.histories import Histories
from allrec.evidence.similarity import DenseSpace, Space
from allrec.models.backbones.base import Backbone
from allrec.training.backbone import encode_histories

LATEST = 10
"""Latest items of a history that similarity looks at."""
STEP_BACK = 0.7
"""Weight of an item in a mean over the history, relative to the item after it."""
RECALLED = 50
"""Latest items of a history in which a candidate is looked up."""
CELLS = 1 << 19
"""History items times candidates compared at one time."""
ROWS = 512
"""Users scored against the whole catalogue at one time."""

POOLS = ("largest", "latest", "mean")
HISTORY = ("in_history", "times_in_history", "recency_in_history", "log_count", "history_length")
FREE = ("log_count", "history_length")
"""Evidence of which more need not speak for a candidate; all other evidence speaks for it, the more the better."""
CONTEXT = ("log_count", "history_length", "in_history")
"""Evidence that decides how much the rest counts."""


class Scorer(NamedTuple):
    """x · item, of a backbone's users and any table of items: its own embeddings (cf), or joint ones (joint)."""

    backbone: Backbone
    items: Float[Tensor, "items dim"]


class Evidence:
    """What training froze of a catalogue, and the evidence that it gives.

    Args:
        train_counts: how often every item occurs in training.
        scorers: name -> scorer; its evidence is the log probability of a softmax over the catalogue, in nats.
        num_trained: items of the catalogue that was trained on, all where None; that softmax is over them alone, so
            that items that come later change no evidence of the others.
        spaces: name -> space; its evidence is the similarity to the latest ten items of the history: the largest, the
            very latest item's, and a mean in which older items weigh less.
    """

    def __init__(
        self,
        train_counts: Int[ndarray, "items"],
        scorers: Mapping[str, Scorer],
        spaces: Mapping[str, Space],
        num_trained: int | None = None,
    ) -> None:
        self.log_counts = torch.from_numpy(np.log1p(train_counts)).float()
        self.num_items = len(train_counts)
        self.num_trained = self.num_items if num_trained is None else num_trained
        self.scorers, self.spaces = dict(scorers), dict(spaces)

    @property
    def names(self) -> list[str]:
        """Names of the evidence, in the order of the features."""
        return [*self.scorers, *(f"{space}_{pool}" for space in self.spaces for pool in POOLS), *HISTORY]

    @torch.no_grad()
    def features(
        self, histories: Histories, candidates: Int[ndarray, "rows candidates"]
    ) -> Float[ndarray, "rows candidates evidence"]:
        """The evidence for every candidate of every row, float32.

        Args:
            histories: one a row, before the target.
            candidates: item positions; -1 pads, and has zeros.
        """
        num_rows, num_candidates = candidates.shape
        features = np.zeros((num_rows, num_candidates, len(self.names)), np.float32)
        step = max(1, CELLS // (LATEST * max(1, num_candidates)))
        for scored, rows in self._score(histories, candidates):
            features[rows, :, : len(self.scorers)] = scored
        for start in range(0, num_rows, step):
            part = slice(start, start + step)
            chunk = torch.from_numpy(candidates[part].astype(np.int64))
            columns = [*self._compare(histories.part(part), chunk), *self._recall(histories.part(part), chunk)]
            features[part, :, len(self.scorers) :] = torch.stack(columns, dim=2).numpy()
        features[candidates < 0] = 0
        return features

    @torch.no_grad()
    def retrieve(self, histories: Histories, depth: int) -> Int[ndarray, "rows retrieved"]:
        """The union of what every scorer and every dense space finds nearest, and of the latest items themselves.

        Args:
            histories: one a row.
            depth: how many items each of them gives.

        Returns:
            Item positions, int64, each once a row; -1 at the end of rows that have fewer.
        """
        depth = min(depth, self.num_items)
        found = [histories.latest_first(LATEST)]
        for scorer in self.scorers.values():
            scores = self._catalogue_scores(histories, scorer)
            found.append(torch.cat([chunk.topk(depth, dim=1).indices for _, chunk in scores]))
        for space in self.spaces.values():
            if isinstance(space, DenseSpace):
                found.append(nearest_items(histories, space, depth))
        candidates = torch.cat(found, dim=1).numpy()
        candidates[is_repeated(candidates)] = -1
        # Padding goes to the end and is cut, since every column costs evidence.
        candidates = np.take_along_axis(candidates, np.argsort(candidates < 0, axis=1, kind="stable"), axis=1)
        return candidates[:, : max(1, int((candidates >= 0).sum(axis=1).max(initial=0)))]

    def _catalogue_scores(
        self, histories: Histories, scorer: Scorer
    ) -> Iterator[tuple[slice, Float[Tensor, "chunk items"]]]:
        users = encode_histories(scorer.backbone, histories.items, histories.starts, histories.ends)
        for start in range(0, max(1, len(users)), ROWS):
            yield slice(start, start + ROWS), users[start : start + ROWS] @ scorer.items.T

    def _score(
        self, histories: Histories, candidates: Int[ndarray, "rows candidates"]
    ) -> Iterator[tuple[Float[ndarray, "chunk candidates scorers"], slice]]:
        if not self.scorers:
            return
        wanted = torch.from_numpy(candidates.clip(min=0).astype(np.int64))
        for chunks in zip(
            *(self._catalogue_scores(histories, scorer) for scorer in self.scorers.values()), strict=True
        ):
            rows = chunks[0][0]
            columns = [
                scores.gather(1, wanted[rows]) - scores[:, : self.num_trained].logsumexp(dim=1, keepdim=True)
                for _, scores in chunks
            ]
            yield torch.stack(columns, dim=2).numpy(), rows

    def _compare(self, histories: Histories, candidates: Tensor) -> Iterator[Float[Tensor, "rows candidates"]]:
        latest = histories.latest_first(LATEST)
        is_item = (latest >= 0)[:, :, None]
        weights = step_weights(latest)[:, :, None]
        for space in self.spaces.values():
            similarity = space.similarity(latest, candidates) * is_item
            yield similarity.masked_fill(~is_item, -1).amax(dim=1) * is_item[:, 0]
            yield similarity[:, 0]
            yield (similarity * weights).sum(dim=1)

    def _recall(self, histories: Histories, candidates: Tensor) -> Iterator[Float[Tensor, "rows candidates"]]:
        recalled = histories.latest_first(RECALLED)
        is_same = (recalled[:, :, None] == candidates[:, None]) & (recalled >= 0)[:, :, None]
        steps = torch.arange(recalled.shape[1])[:, None]
        lengths = torch.from_numpy(np.log1p(histories.ends - histories.starts)).float()
        yield is_same.any(dim=1).float()
        yield is_same.sum(dim=1).float().log1p()
        yield (is_same / (1.0 + steps)).amax(dim=1)
        yield self.log_counts[candidates.clamp(min=0)]
        yield lengths[:, None].expand(-1, candidates.shape[1])


def largest_similarity(histories: Histories, space: DenseSpace) -> Float[Tensor, "rows items"]:
    """The largest cosine of every item of the catalogue with the latest items of each history; -1 without any."""
    latest = histories.latest_first(LATEST)
    largest = torch.full((len(latest), len(space.unit)), -1.0)
    for step in range(latest.shape[1]):
        cosines = space.unit[latest[:, step].clamp(min=0)] @ space.unit.T
        largest = torch.maximum(largest, cosines.masked_fill(latest[:, step, None] < 0, -1))
    return largest


def step_weights(latest: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length"]:
    """Weights of a mean over the history, the latest item first; each row sums to 1, an empty one to 0."""
    weights = (latest >= 0) * STEP_BACK ** torch.arange(latest.shape[1])
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


def nearest_items(histories: Histories, space: DenseSpace, depth: int) -> Int[Tensor, "rows depth"]:
    """The items nearest to the weighted mean of the latest items."""
    latest = histories.latest_first(LATEST)
    users = torch.einsum("rl,rld->rd", step_weights(latest), space.unit[latest.clamp(min=0)])
    chunks = [(chunk @ space.unit.T).topk(depth, dim=1).indices for chunk in torch.split(users, ROWS)]
    return torch.cat(chunks) if chunks else latest.new_zeros(0, depth)
