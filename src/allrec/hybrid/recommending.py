"""The order that a fusion gives: what is near is retrieved, fused, and the best read by the language model."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from allrec import seeds
from allrec.hybrid.features import Found, Users, histories_of
from allrec.hybrid.fused import Fused, Scope
from allrec.hybrid.fusion import INTERPLAY
from allrec.runs.scoring import Scoring

LLM = "llm"


class Ordered(NamedTuple):
    """Items in their order, best first.

    Attributes:
        items: item positions.
        fused: the score that orders them, among those that the language model read and among the rest.
        read: the language model's log-likelihood of the title; nan where it did not read the item.
        contributions: of each item, what each evidence adds to its score; they sum to it.
    """

    items: Int[ndarray, "n"]
    fused: Float[ndarray, "n"]
    read: Float[ndarray, "n"]
    contributions: list[dict[str, float]]


def retrieved_items(fused: Fused, told: Int[ndarray, "length"], k: int, with_history: bool) -> Found:
    """What retrieval finds for a history: the first of it, at least k items where the catalogue has them."""
    depth = max(fused.depth, k + len(set(told.tolist())))
    candidates, users = fused.evidence.find(histories_of([told]), depth)
    is_asked = (candidates >= 0) & (with_history | ~np.isin(candidates, told))
    return Found(candidates[is_asked][None, : max(fused.num_fused, k)], users)


@torch.no_grad()
def order_fused(
    scoring: Scoring,
    fused: Fused,
    told: Int[ndarray, "length"],
    items: Int[ndarray, "n"],
    scope: Scope,
    *,
    num_ranked: int | None = None,
    users: Users | None = None,
    k: int | None = None,
) -> Ordered:
    """Orders items by all evidence: the best of the fast fusion are read by the language model, the rest follow.

    Args:
        scoring: the system.
        fused: its evidence and fusions.
        told: the history, oldest first.
        items: to be ordered, each once.
        scope: which fusion.
        num_ranked: so many the language model reads; None as the recipe has it, 0 leaves it out.
        users: what retrieval knows of the user already.
        k: so many are told of, the best; None is all.
    """
    features = fused.evidence.features(histories_of([told]), items[None], users)
    parts = fused.models[scope].contributions(torch.from_numpy(features))[0].numpy()
    scores = parts.sum(axis=1)
    order = np.argsort(-scores, kind="stable")
    asked = fused.num_ranked if num_ranked is None else num_ranked
    best = order[: asked if fused.llm_names(scope) else 0]
    best = best[seeds.rng(scoring.recipe.seed, "ranking", "listed").permutation(len(best))]
    read, added = np.full(len(items), np.nan), np.zeros(len(items))
    if len(best) > 1 and scoring.can_list(items[best][None]):
        raw = {
            name: scoring.score_with_llm(scoring.represent([told]), [told], items[best][None], name)  # type: ignore[arg-type]
            for name in fused.llm_names(scope)
        }
        read[best] = raw[LLM][0]
        added[best] = fused.added_by_llm(scope, features[:, best], raw)[0]
        order = np.concatenate([best[np.argsort(-(scores + added)[best], kind="stable")], order[len(best) :]])
    order = order[:k]
    names = [*fused.evidence.names, INTERPLAY]
    told_why = [dict(zip(names, map(float, parts[place]), strict=True)) for place in order]
    for place, why in zip(order, told_why, strict=True):
        if not np.isnan(read[place]):
            why[LLM] = float(added[place])
    return Ordered(items[order], (scores + added)[order], read[order], told_why)


def families(contributions: dict[str, float]) -> dict[str, float]:
    """Contributions summed by where they come from, for a reader in a hurry."""
    sums: dict[str, float] = {}
    for name, value in contributions.items():
        family = next((family for start, family in FAMILIES.items() if name.startswith(start)), name)
        sums[family] = sums.get(family, 0.0) + value
    return sums


FAMILIES = {
    "cf": "cf", "joint": "joint", "content": "content", "text": "text", "tuned_text": "text", "words": "words",
    "neighbours": "neighbours", "in_history": "history", "times_in": "history", "recency": "history",
    "log_count": "popularity", "history_length": "history", "llm": "llm",
}  # fmt: skip
"""Where evidence comes from, by how its name begins."""
