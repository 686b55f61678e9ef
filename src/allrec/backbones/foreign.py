"""Backbones that others trained: taken as they are, or fitted to histories, in place of training."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allrec.backbones.base import StatesBackbone
from allrec.backbones.external import External, ExternalConfig, Matched, read_vectors
from allrec.backbones.importer import import_sasrec
from allrec.backbones.registry import BackboneModel
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data.dataset import Dataset
from allrec.errors import InputError
from allrec.training.batches import pad_histories
from allrec.training.loop import FitReport

# Histories made features of at one time.
FOLDED_TOGETHER = 1024


@dataclass(frozen=True)
class TakenReport(FitReport):
    """No steps and one validation, of what was taken.

    Attributes:
        counts: items and users that the files lack, and those that the data set lacks.
    """

    counts: dict[str, int]


class Taken(NamedTuple):
    """A backbone that was not trained here, and what its files and the data set do not have in common."""

    model: StatesBackbone
    counts: dict[str, int]


def is_foreign(config: BackboneModel, checkpoint: str | None) -> bool:
    """Whether the recipe takes a backbone that others trained."""
    return isinstance(config, ExternalConfig) or checkpoint is not None


def take_backbone(dataset: Dataset, config: BackboneModel, checkpoint: str | None) -> Taken | None:
    """What others trained, where the recipe says so; None where a backbone is to be trained."""
    if isinstance(config, ExternalConfig):
        return take_external(dataset, config)
    if isinstance(config, SASRecConfig) and checkpoint is not None:
        return Taken(take_checkpoint(checkpoint, dataset, config), {})
    return None


def take_checkpoint(path: str, dataset: Dataset, config: SASRecConfig) -> SASRec:
    """Imports a public SASRec whose items are those of the data set, in its order.

    Args:
        path: the checkpoint.
        dataset: whose catalogue it must fit.
        config: its heads, norm and padding are taken (the default padding leaves that to the checkpoint); all sizes
            come from the checkpoint.

    Raises:
        InputError: see ``import_sasrec``; or the number of items differs.
    """
    padding = None if config.padding == "unseen" else config.padding
    model = import_sasrec(path, heads=config.heads, norm=config.norm, padding=padding)
    if model.num_items != dataset.num_items:
        raise InputError(
            f"the checkpoint {path} has {model.num_items} items, data set {dataset.name!r} has {dataset.num_items}. "
            "Give one that was trained on this catalogue, its item n + 1 being item n here."
        )
    return model


def take_external(dataset: Dataset, config: ExternalConfig) -> Taken:
    """Reads embeddings that another library made, and fits the fold-in of histories where it gives users too.

    Returns:
        The backbone, and how many items and users the files and the data set do not have in common.

    Raises:
        InputError: see ``read_vectors``; or users and items differ in width, or no user who is known has a history.
    """
    items = read_vectors(config.items, config.item_ids, "item", dataset.item_ids)
    model = External(dataset.num_items, config.model_copy(update={"dim": items.vectors.shape[1]}))
    model.item_table.data.copy_(items.vectors)
    counts = _counts("items", items)
    if config.users is not None:
        users = read_vectors(config.users, config.user_ids, "user", dataset.user_ids)
        counts |= _counts("users", users)
        _fold_in(model, dataset, users, config.users)
    return Taken(model, counts)


def _counts(noun: str, matched: Matched) -> dict[str, int]:
    return {f"missing_{noun}": int((~matched.is_known).sum()), f"unknown_{noun}": matched.num_unknown}


def _fold_in(model: External, dataset: Dataset, users: Matched, path: str) -> None:
    if users.vectors.shape[1] != model.dim:
        raise InputError(
            f"{path} has users {users.vectors.shape[1]} wide, the items are {model.dim} wide. A dot product must score."
        )
    features, has_items = _features(model, dataset)
    is_fitted = users.is_known & has_items
    if not is_fitted.any():
        raise InputError(f"no user of {path} has a training interaction with an item that has an embedding")
    model.fit(features[is_fitted], users.vectors[is_fitted])


@torch.no_grad()
def _features(model: External, dataset: Dataset) -> tuple[Float[Tensor, "users features"], Bool[Tensor, "users"]]:
    offsets, items = dataset.train_csr()
    features = torch.zeros(dataset.num_users, 2 * model.dim)
    for first in range(0, dataset.num_users, FOLDED_TOGETHER):
        ends = offsets[first + 1 : first + 1 + FOLDED_TOGETHER]
        starts = offsets[first : first + len(ends)]
        rows = torch.from_numpy(np.flatnonzero(ends > starts))
        histories = pad_histories(items, starts[rows], ends[rows], model.max_length)
        lengths = (histories >= 0).sum(dim=1)
        features[first + rows] = model.features(histories)[torch.arange(len(rows)), lengths - 1]
    return features, (features != 0).any(dim=1)
