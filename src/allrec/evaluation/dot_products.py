"""Ranks by a dot product of users and items, under any protocol."""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.dataset import Dataset, Targets
from allrec.evaluation.protocols import excluded_history
from allrec.evaluation.ranking import candidate_ranks, catalogue_ranks, dot_product_scores

SCORED_TOGETHER = 1024
"""Rows whose candidates are scored at one time."""


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
        dataset: whose histories protocol ``full`` takes out.
        targets: what is to be found.
        protocol: ``full``, ``full-repeat``, or one whose candidates are stored.
    """
    if protocol.startswith("full"):
        excluded = excluded_history(dataset, targets, np.arange(len(targets))) if protocol == "full" else None
        return catalogue_ranks(dot_product_scores(users, items), targets.items, len(items), excluded)
    scores = np.empty(targets.candidates[protocol].shape, dtype=np.float32)
    for start in range(0, len(scores), SCORED_TOGETHER):
        rows = slice(start, start + SCORED_TOGETHER)
        candidates = torch.from_numpy(targets.candidates[protocol][rows].clip(min=0)).to(items.device)
        scores[rows] = torch.einsum("rd,rcd->rc", users[rows], items[candidates]).cpu().numpy()
    return candidate_ranks(scores, targets.candidates[protocol], targets.items)
