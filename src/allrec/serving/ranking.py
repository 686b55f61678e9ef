"""Requests ranked together: the one ranking of ``hybrid/ranking`` under each request's mask, boost and diversity."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch.nn import functional

from allrec.hybrid.features import Histories, histories_of
from allrec.hybrid.ranking import FusedRanker, Scored
from allrec.serving.snapshots import Snapshot

KEPT = 4_096
"""Rankings that are kept, for requests that ask again while nothing has changed."""
DEPTH = 100
"""Best candidates that boost and diversity order anew, and that further pages are made of."""


@dataclass(frozen=True)
class Wanted:
    """What a request wants of the ranking.

    Attributes:
        history: item positions, oldest first.
        k: how many items at least.
        exclude: item positions that are left out.
        filter: a CEL expression; None keeps everything.
        boost: a CEL expression that multiplies an item's odds; None leaves them.
        diversity: 0 orders by score alone, 1 by dissimilarity alone.
        with_history: whether items of the history may be recommended again.
        user: fields that expressions read.
    """

    history: tuple[int, ...]
    k: int = 10
    exclude: frozenset[int] = frozenset()
    filter: str | None = None
    boost: str | None = None
    diversity: float = 0.0
    with_history: bool = False
    user: dict[str, Any] = field(default_factory=dict)


class Ranked(NamedTuple):
    """Items of a request, best first.

    Attributes:
        items: positions.
        scores: what orders them before diversity, larger is better.
        num_read: how many of them the language model read.
    """

    items: Int[ndarray, "items"]
    scores: Float[ndarray, "items"]
    num_read: int = 0


class RequestRanker:
    """Ranks a tenant's requests that came together; a ranking is kept while nothing that it depends on has changed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], Ranked] = OrderedDict()
        self._lock = Lock()
        self.num_kept, self.num_ranked = 0, 0

    def rank(
        self, snapshot: Snapshot, wanted: Sequence[Wanted], masks: Sequence[Bool[ndarray, "items"] | None]
    ) -> list[Ranked]:
        """Ranks requests together, without the language model.

        Args:
            snapshot: of their tenant.
            wanted: one a request.
            masks: ``mask_of`` each.

        Raises:
            InputError: a boost that does not compile, or gives no number.
        """
        keys = [key_of(snapshot, one, mask) for one, mask in zip(wanted, masks, strict=True)]
        found = [self._get(key) for key in keys]
        missing = [row for row, known in enumerate(found) if known is None]
        if missing:
            new = score(snapshot, [wanted[row] for row in missing], [masks[row] for row in missing])
            for row, ranked in zip(missing, new, strict=True):
                found[row] = ranked
                self._put(keys[row], ranked)
        self.num_ranked += len(missing)
        self.num_kept += len(wanted) - len(missing)
        return [settled(snapshot, one, known) for one, known in zip(wanted, found, strict=True) if known is not None]

    def _get(self, key: tuple[Any, ...]) -> Ranked | None:
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
            return known

    def _put(self, key: tuple[Any, ...], ranked: Ranked) -> None:
        with self._lock:
            self._kept[key] = ranked
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)


def mask_of(snapshot: Snapshot, wanted: Wanted, now: float) -> Bool[ndarray, "items"] | None:
    """Which items a request may be given: available, kept by its filter, not excluded; None where that is all.

    Args:
        snapshot: of the request's tenant.
        wanted: the request.
        now: when it is answered, in seconds since 1970-01-01 UTC.

    Raises:
        InputError: a filter that does not compile, or gives no truth value.
    """
    mask = snapshot.available(now)
    if wanted.filter is not None:
        mask &= snapshot.expressions.mask(wanted.filter, snapshot.items, wanted.user)
    if wanted.exclude:
        mask[list(wanted.exclude)] = False
    return None if mask.all() else mask


def key_of(snapshot: Snapshot, wanted: Wanted, mask: Bool[ndarray, "items"] | None) -> tuple[Any, ...]:
    """Everything that a ranking depends on, before boost and diversity."""
    seen = None if mask is None else blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()
    return (
        snapshot.served.version,
        snapshot.joined_at,
        wanted.history,
        wanted.with_history,
        max(wanted.k, DEPTH),
        seen,
    )


def score(snapshot: Snapshot, wanted: Sequence[Wanted], masks: Sequence[Bool[ndarray, "items"] | None]) -> list[Ranked]:
    """Candidates of each request, best first, ``DEPTH`` of them and k at least where the catalogue has as many."""
    found: list[Ranked | None] = [None] * len(wanted)
    for with_history in (False, True):
        rows = [row for row, one in enumerate(wanted) if one.with_history == with_history]
        if not rows:
            continue
        part = [wanted[row] for row in rows]
        histories = histories_of([np.array(one.history, np.int64) for one in part])
        excepted = None if with_history else np.full(len(rows), -1)
        scored = scored_of(snapshot, histories, excepted, [masks[row] for row in rows], max(one.k for one in part))
        for number, row in enumerate(rows):
            found[row] = best_of(scored, number, max(wanted[row].k, DEPTH))
    return [one for one in found if one is not None]


def scored_of(
    snapshot: Snapshot,
    histories: Histories,
    excepted: Int[ndarray, "rows"] | None,
    masks: Sequence[Bool[ndarray, "items"] | None],
    k: int,
) -> Scored:
    """What ``AllRec.recommend`` ranks, for several histories at once and each under its mask."""
    model = snapshot.model
    allowed = None
    if any(mask is not None for mask in masks):
        everything = np.ones(snapshot.num_items, bool)
        allowed = np.stack([everything if mask is None else mask for mask in masks])
    # One part: requests that come together are fewer than users who are ranked for at one time.
    (scored,) = model.ranker.rank_catalogue(histories, excepted, depth=k, allowed=allowed)
    if ((scored.items >= 0).sum(axis=1) < k).any():
        scored = model.backbone_ranker.filled(scored, histories, excepted, allowed)
    return scored


def best_of(scored: Scored, row: int, depth: int) -> Ranked:
    """A row's best candidates, best first."""
    places = scored.best(depth)[row]
    places = places[scored.items[row, places] >= 0]
    return Ranked(scored.items[row, places].astype(np.int64), scored.scores[row, places].astype(np.float64))


def settled(snapshot: Snapshot, wanted: Wanted, ranked: Ranked) -> Ranked:
    """The same candidates after boost and diversity."""
    if wanted.boost is not None:
        ranked = boosted(snapshot, wanted, ranked)
    if wanted.diversity > 0:
        ranked = diversified(snapshot, ranked, wanted.diversity)
    return ranked


def boosted(snapshot: Snapshot, wanted: Wanted, ranked: Ranked) -> Ranked:
    """Candidates whose odds are multiplied, in their new order."""
    scores = ranked.scores + log_factor(snapshot, wanted, ranked.items)
    order = np.argsort(-scores, kind="stable")
    return ranked._replace(items=ranked.items[order], scores=scores[order])


def multiplied(snapshot: Snapshot, wanted: Wanted, ranked: Ranked) -> Ranked:
    """Candidates whose scores are no logits, in the order that a boost of the scores themselves gives them."""
    factor = snapshot.expressions.factor(wanted.boost or "1.0", snapshot.items, wanted.user)[ranked.items]
    scores = np.where(ranked.scores >= 0, ranked.scores * factor, ranked.scores / factor)
    order = np.argsort(-scores, kind="stable")
    return ranked._replace(items=ranked.items[order], scores=scores[order])


def log_factor(snapshot: Snapshot, wanted: Wanted, items: Int[ndarray, "*items"]) -> Float[ndarray, "*items"]:
    """What a boost adds to scores, which are logits: the logarithm of what it multiplies the odds by."""
    factor = snapshot.expressions.factor(wanted.boost or "1.0", snapshot.items, wanted.user)
    return np.log(factor[items])


def diversified(snapshot: Snapshot, ranked: Ranked, diversity: float, num_ordered: int = 50) -> Ranked:
    """The best candidates by maximal marginal relevance, the rest behind them.

    Each place goes to the candidate of the largest (1 - diversity) · relevance - diversity · similarity: relevance is
    the score, scaled to [0, 1] over these candidates; similarity the largest cosine of the text with one before it.

    Source: Carbonell and Goldstein, SIGIR 1998.
    """
    num_ordered = min(num_ordered, len(ranked.items))
    if num_ordered < 2:
        return ranked
    texts = functional.normalize(snapshot.model.text_embeddings[torch.from_numpy(ranked.items[:num_ordered])], dim=1)
    cosines, scores = (texts @ texts.T).numpy(), ranked.scores[:num_ordered]
    relevance = (scores - scores.min()) / max(float(scores.max() - scores.min()), 1e-9)
    nearest, is_left, order = np.zeros(num_ordered), np.ones(num_ordered, bool), []
    for _ in range(num_ordered):
        value = np.where(is_left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        chosen = int(value.argmax())
        order.append(chosen)
        is_left[chosen] = False
        nearest = np.maximum(nearest, cosines[chosen])
    places = np.array([*order, *range(num_ordered, len(ranked.items))])
    return ranked._replace(items=ranked.items[places], scores=ranked.scores[places])


def contributions(
    snapshot: Snapshot, history: Sequence[int], items: Int[ndarray, "items"]
) -> list[dict[str, float]] | None:
    """What each evidence adds to the score of some items; None for a run without a fusion."""
    ranker = snapshot.model.ranker
    if not isinstance(ranker, FusedRanker) or not len(items):
        return None
    features = ranker.evidence.features(histories_of([np.array(history, np.int64)]), items[None])
    scored = Scored(slice(0, 1), items[None], np.zeros((1, len(items))), features)
    return ranker.contributions(scored, 0, np.arange(len(items)), "catalogue")
