"""Stage 1: the alignment network learns on embeddings that are looked up, never computed again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec.base import Config
from allrec.data import Dataset
from allrec.models.alignment import Alignment, AlignmentConfig
from allrec.models.backbones.base import Backbone
from allrec.training.batching import NegativeSampler
from allrec.training.examples import ALIGNMENT, OnStep, initialized, represent_users, training_examples
from allrec.training.loop import FitReport, LoopConfig, fit


class AlignmentStageConfig(Config):
    """Stage 1."""

    network: AlignmentConfig = AlignmentConfig()
    positions: Literal["last", "every"] = Field(
        "every", description="Next items to learn from: a user's last, or every one."
    )
    batch_size: int = Field(512, ge=2, description="Next items a step.")
    loop: LoopConfig = LoopConfig(epochs=10, learning_rate=1e-3)


def train_alignment(
    dataset: Dataset,
    backbone: Backbone,
    text_embeddings: Float[Tensor, "items text_dim"],
    config: AlignmentStageConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> tuple[Alignment, FitReport]:
    """Stage 1: learns the joint space on embeddings that are looked up, never computed again.

    Source: arXiv:2404.11343, section 4.2.
    """
    item_embeddings = backbone.item_embeddings().detach()
    alignment = initialized(
        lambda: Alignment(item_embeddings.shape[1], text_embeddings.shape[1], config.network), seed, ALIGNMENT
    )
    examples = training_examples(dataset, config.positions)
    users = represent_users(backbone, dataset, examples.users, examples.positions)
    sampler = NegativeSampler(*dataset.train_csr(), dataset.num_items)

    def batches(epoch: int) -> Sequence[tuple[ndarray, ndarray]]:
        rng = np.random.default_rng([seed, ALIGNMENT, epoch])
        order = rng.permutation(len(examples))
        negatives = sampler.draw(examples.users, rng)
        chunks = range(0, len(order), config.batch_size)
        return [(order[start : start + config.batch_size], negatives) for start in chunks]

    def loss(batch: tuple[ndarray, ndarray]) -> dict[str, Tensor]:
        rows, negatives = batch
        positive, negative = torch.from_numpy(examples.items[rows]), torch.from_numpy(negatives[rows])
        items = (item_embeddings[positive], item_embeddings[negative])
        texts = (text_embeddings[positive], text_embeddings[negative])
        losses = alignment.losses(users[rows], *items, *texts)
        return {"total": losses.total(config.network.alpha, config.network.beta), **losses._asdict()}

    report = fit(
        alignment, batches, loss, config.loop, seed=seed, stage=ALIGNMENT, checkpoint=checkpoint, on_step=on_step
    )
    alignment.requires_grad_(False)
    return alignment, report
