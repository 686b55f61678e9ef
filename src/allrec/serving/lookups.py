"""Answers beside the ranking of the catalogue: similar items, users for an item, free text, a given list."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from allrec.alignment.text_encoder import TextEncoder
from allrec.hybrid.features import histories_of
from allrec.hybrid.retrieval import reciprocal_rank_fusion, scan
from allrec.runs.add_items import text_encoder_of
from allrec.serving.ranking import Ranked
from allrec.serving.snapshots import Served, Snapshot

NEAREST = 200
USERS = 20_000
"""Known users who are looked through for an item: the first of the run."""
SMOOTHING = 20


def similar(snapshot: Snapshot, item: int, allowed: Bool[ndarray, "items"]) -> Ranked:
    """Items nearest to one, by what is bought together and by text; a new item has neighbours by its text at once.

    The lists are of the joint embeddings, in which cold items stand by their text, and of the texts themselves.

    Returns:
        Scores are sums of 1 / (20 + rank) over the two lists.
    """
    allowed = allowed.copy()
    allowed[item] = False
    lists = []
    for table in (snapshot.model.joint_items, snapshot.model.text_embeddings):
        unit = functional.normalize(table, dim=1)
        lists.append(scan(unit[item : item + 1], unit, NEAREST, 0, allowed[None])[0])
    return fused(lists)


def fused(lists: Sequence[Int[ndarray, "1 depth"]]) -> Ranked:
    """Reciprocal rank fusion of one query's lists, -1 pads."""
    (items,) = reciprocal_rank_fusion(lists, np.zeros((1, 0), np.int64))
    items = items[items >= 0]
    scores = np.zeros(len(items))
    for one in lists:
        ranks = {place: rank for rank, place in enumerate(one[0].tolist()) if place >= 0}
        scores += [1 / (SMOOTHING + ranks[item]) if item in ranks else 0.0 for item in items.tolist()]
    return Ranked(items, scores)


class KeptEncoder:
    """Encodes texts as a run's items were encoded; the encoder is loaded at its first use and kept."""

    def __init__(self, served: Served) -> None:
        self._served, self._lock = served, Lock()
        self._encoder: TextEncoder | None = None

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts text_dim"]:
        """Q of texts."""
        with self._lock, torch.no_grad():
            if self._encoder is None:
                self._encoder = text_encoder_of(self._served.model.run)
            return self._encoder.encode(list(texts))


@lru_cache(maxsize=4)
def encoder_of(served: Served) -> KeptEncoder:
    """A run's encoder; kept for the latest few runs."""
    return KeptEncoder(served)


def by_text(
    snapshot: Snapshot,
    query: Float[Tensor, "1 text_dim"],
    allowed: Bool[ndarray, "items"],
    personal: Ranked | None = None,
) -> Ranked:
    """Items whose text is nearest to a query's; with a user's ranking, both orders fused.

    Returns:
        Scores are cosines, or sums of 1 / (20 + rank) over both orders.
    """
    unit = functional.normalize(snapshot.model.text_embeddings, dim=1)
    own = functional.normalize(query, dim=1)
    (items,) = scan(own, unit, NEAREST, 0, allowed[None])[0]
    items = items[items >= 0]
    if personal is None or not len(items):
        return Ranked(items, (unit[torch.from_numpy(items)] @ own[0]).numpy().astype(np.float64))
    mine = personal.items[np.isin(personal.items, items)]
    return fused([items[None], mine[None]])


def ranked_list(snapshot: Snapshot, history: Sequence[int], items: Int[ndarray, "items"]) -> Ranked:
    """Given items, best first, as ``AllRec.rank`` has them without the language model."""
    histories = histories_of([np.array(history, np.int64)])
    (scored,) = snapshot.model.ranker.rank_lists(histories, items[None])
    places = scored.best()[0]
    return Ranked(scored.items[0, places], scored.scores[0, places].astype(np.float64))


class Audience(NamedTuple):
    """Users to whom an item would go.

    Attributes:
        user_ids: the likeliest first.
        scores: log probability of the item among the run's items, in nats.
    """

    user_ids: list[str]
    scores: list[float]


class Audiences:
    """Known users of a run as its backbone represents them, computed at their first use and kept."""

    def __init__(self, served: Served) -> None:
        self._served, self._lock = served, Lock()
        self._users: Float[Tensor, "users dim"] | None = None
        self._normalisers: Float[Tensor, "users"] | None = None

    def of(self, snapshot: Snapshot, item: int, k: int, is_left_out: Callable[[str], bool]) -> Audience:
        """The k users of the largest joint score of an item, without those who had it.

        Args:
            snapshot: of the tenant.
            item: its position.
            k: how many users.
            is_left_out: whether a user may not be named, or has it by now.
        """
        users, normalisers = self._represented()
        scores = (users @ snapshot.model.joint_embeddings[item] - normalisers).numpy()
        catalogue = snapshot.model.catalogue
        owners = np.repeat(np.arange(len(catalogue.user_ids)), np.diff(catalogue.offsets))[catalogue.items == item]
        scores[owners[owners < len(scores)]] = -np.inf
        order = np.argsort(-scores, kind="stable")
        likely = ((catalogue.user_ids[user], scores[user]) for user in order if np.isfinite(scores[user]))
        best = list(islice((pair for pair in likely if not is_left_out(pair[0])), k))
        return Audience([user_id for user_id, _ in best], [float(score) for _, score in best])

    def _represented(self) -> tuple[Float[Tensor, "users dim"], Float[Tensor, "users"]]:
        with self._lock, torch.no_grad():
            if self._users is None or self._normalisers is None:
                model = self._served.model
                everyone = range(min(USERS, len(model.catalogue.user_ids)))
                self._users = model.represent([model.catalogue.history(user).astype(np.int64) for user in everyone])
                _, self._normalisers = scan(self._users, model.joint_embeddings, 0, model.catalogue.num_items)
            return self._users, self._normalisers


@lru_cache(maxsize=4)
def audiences_of(served: Served) -> Audiences:
    """A run's users; kept for the latest few runs."""
    return Audiences(served)
