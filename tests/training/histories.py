"""Small data sets for tests, made from lists of histories, and a small backbone over them."""

from pathlib import Path

import numpy as np
import torch

from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data.dataset import Dataset, Targets
from allrec.errors import Wording


def dataset_of(histories, num_items, num_candidates=4):
    """Leave-last-out over ``histories``; candidates are the target and the first other items of the catalogue."""
    lengths = np.array([len(history) for history in histories])
    users = np.flatnonzero(lengths >= 3)
    targets = {}
    for split, back in (("valid", 2), ("test", 1)):
        items = np.array([histories[user][-back] for user in users], dtype=np.int32)
        others = [[item for item in range(num_items) if item != target][: num_candidates - 1] for target in items]
        candidates = np.array([[target, *rest] for target, rest in zip(items, others, strict=True)], dtype=np.int32)
        candidates = candidates.reshape(len(users), min(num_candidates, num_items))
        targets[split] = Targets(users.astype(np.int32), lengths[users] - back, items, {"paper": candidates})
    return Dataset(
        name="small",
        path=Path("small"),
        user_ids=[f"user {user}" for user in range(len(histories))],
        item_ids=[f"item {item}" for item in range(num_items)],
        titles=[None] * num_items,
        texts=[None] * num_items,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate([*histories, []]).astype(np.int32),
        train_lengths=np.where(lengths >= 3, lengths - 2, lengths).astype(np.int64),
        targets=targets,
        wording=Wording(),
        sha256="",
        counts={},
    )


def checkerboard(num_users, num_items, rng):
    """Each user's history is all items of one parity but one, in random order: that one is the right recommendation."""
    histories, missing = [], []
    for user in range(num_users):
        own = rng.permutation(np.arange(user % 2, num_items, 2))
        histories.append(own[1:].tolist())
        missing.append(int(own[0]))
    return histories, np.array(missing)


def bytes_of(module):
    return b"".join(value.detach().numpy().tobytes() for value in module.state_dict().values())


def make_backbone(num_items, dim=8):
    return freeze(SASRec(num_items, SASRecConfig(dim=dim, blocks=1, max_length=4), torch.Generator().manual_seed(3)))
