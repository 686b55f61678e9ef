"""Training of stage 1, on precomputed text embeddings unless the text encoder is tuned too."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from allrec import seeds
from allrec.alignment.losses import MATCHING, is_matchable
from allrec.alignment.model import Alignment, AlignmentConfig, AlignmentStageConfig, Distinct, NoAlignment
from allrec.alignment.text_encoder import TextEncoder, embed_texts
from allrec.backbones.base import Backbone, represent_users
from allrec.data.dataset import Dataset
from allrec.data.negatives import NegativeSampler
from allrec.errors import InputError
from allrec.parallel import OnProgress
from allrec.training.distributed import Place, share_rows
from allrec.training.examples import initialized, training_examples
from allrec.training.loop import FitReport, fit


class Batch(NamedTuple):
    """Rows of the examples, a negative for each, and the items that InfoNCE contrasts, if any."""

    rows: Int[ndarray, "batch"]
    negatives: Int[ndarray, "batch"]
    distinct: Int[ndarray, "items"] | None


def share_of(batch: Batch, here: Place) -> tuple[Batch, float]:
    """A worker's rows of a batch; InfoNCE compares all items with each other, so every worker has them all."""
    rows, weight = share_rows(len(batch.rows), here)
    return Batch(batch.rows[rows], batch.negatives[rows], batch.distinct), weight


def train_alignment(
    dataset: Dataset,
    backbone: Backbone,
    text_embeddings: Float[Tensor, "items text_dim"],
    config: AlignmentStageConfig,
    *,
    seed: int,
    encoder: TextEncoder | None = None,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Alignment | NoAlignment, FitReport]:
    """Stage 1: learns the joint space.

    Without a stage 1 (``network.kind`` is ``identity``) nothing is trained, and no step is reported.

    Args:
        dataset: next items come from its training part.
        backbone: frozen.
        text_embeddings: Q of every item by the encoder as it came.
        config: of the stage.
        seed: of the run.
        encoder: with ``config.tune_text``, the text encoder, which is tuned in place.
        checkpoint: see ``fit``.
        on_progress: see ``fit``.
        device: where to train; what comes back is there too.

    Source: arXiv:2404.11343, section 4.2.
    """
    if config.network.kind == "identity":
        return NoAlignment(), FitReport(0, 0, [], [], None)
    item_embeddings, texts = backbone.item_embeddings().detach().to(device), text_embeddings.to(device)
    alignment = _untrained(item_embeddings, texts, config, seed).to(device)
    examples = training_examples(dataset, config.positions)
    users = represent_users(backbone, dataset, examples.users, examples.positions).to(device)
    groups = torch.from_numpy(text_groups(_contrasted(text_embeddings, config.network))).to(device)
    module = alignment if encoder is None else nn.ModuleList([alignment, encoder.tunable()])

    def texts_of(items: Tensor) -> Tensor:
        if encoder is None:
            return texts[items]
        return embed_texts([dataset.texts[item] for item in items.tolist()], encoder.embed, encoder.dim).to(device)

    def loss(batch: Batch) -> dict[str, Tensor]:
        positive, negative = torch.from_numpy(examples.items[batch.rows]), torch.from_numpy(batch.negatives)
        items = (item_embeddings[positive], item_embeddings[negative])
        positive_texts, negative_texts = texts_of(torch.cat([positive, negative])).chunk(2)
        own = None if batch.distinct is None else torch.from_numpy(batch.distinct)
        distinct = None if own is None else Distinct(item_embeddings[own], texts_of(own), groups[own])
        losses = alignment.losses(users[batch.rows], *items, positive_texts, negative_texts, distinct)
        return {"total": losses.total(config.network.alpha, config.network.beta), **losses._asdict()}

    batches = _batches(dataset, examples.users, text_embeddings, config, seed)
    named: dict[str, Any] = {"seed": seed, "stream": "alignment", "checkpoint": checkpoint, "on_progress": on_progress}
    named["share"] = share_of
    report = fit(module, batches, loss, config.loop, **named)
    module.requires_grad_(False)
    return alignment, report


def _untrained(item_embeddings: Tensor, texts: Tensor, config: AlignmentStageConfig, seed: int) -> Alignment:
    widths = item_embeddings.shape[1], texts.shape[1]
    return initialized(lambda: Alignment(*widths, config.network), seed, "alignment")


def _batches(
    dataset: Dataset,
    users: Int[ndarray, "rows"],
    text_embeddings: Float[Tensor, "items text_dim"],
    config: AlignmentStageConfig,
    seed: int,
) -> Callable[[int], Sequence[Batch]]:
    sampler = NegativeSampler.of(dataset.user_ids, *dataset.train_csr(), dataset.num_items)
    kept = np.flatnonzero(sampler.has_negative[users])
    matches = MATCHING[config.network.matching].is_contrastive
    # Alone for InfoNCE, since to find items without a text takes a quarter of the texts' memory.
    is_matched = is_matchable(torch.from_numpy(dataset.train_counts()), text_embeddings) if matches else torch.zeros(0)
    matched = np.flatnonzero(is_matched)

    def batches(epoch: int) -> list[Batch]:
        rng = seeds.rng(seed, "alignment", "epoch", epoch)
        order = rng.permutation(kept)
        negatives = np.zeros(len(users), np.int64)
        negatives[kept] = sampler.draw(users[kept], rng)
        chunks = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
        distinct: Sequence[ndarray | None] = [None] * len(chunks)
        if matches:
            distinct = distinct_batches(matched, config.distinct_items, len(chunks), rng)
        return [Batch(rows, negatives[rows], items) for rows, items in zip(chunks, distinct, strict=True)]

    return batches


def _contrasted(text_embeddings: Float[Tensor, "items text_dim"], network: AlignmentConfig) -> Tensor:
    """All of them for InfoNCE, none else: to find equal ones takes several times their memory."""
    return text_embeddings if MATCHING[network.matching].is_contrastive else text_embeddings[:0]


def text_groups(text_embeddings: Float[Tensor, "items text_dim"]) -> Int[ndarray, "items"]:
    """A number for each item, the same for items whose text embeddings are equal to the bit."""
    rows = np.ascontiguousarray(text_embeddings.numpy())
    whole = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)


def distinct_batches(
    items: Int[ndarray, "items"], size: int, num_batches: int, rng: np.random.Generator
) -> list[Int[ndarray, "distinct"]]:
    """Batches of distinct items: every item comes about as often, and a batch has ``size`` or all there are.

    Args:
        items: to draw from.
        size: items a batch.
        num_batches: how many batches.
        rng: shuffles; what a shuffle leaves over at its end is left out.

    Raises:
        InputError: there are fewer than two items.
    """
    if len(items) < 2:
        raise InputError(
            f"{len(items)} items were seen in training and have a text, and InfoNCE needs two to contrast. "
            "Set alignment.network.matching to mse."
        )
    per_shuffle = max(1, len(items) // size)
    shuffles = (rng.permutation(items)[: per_shuffle * size] for _ in range(-(-num_batches // per_shuffle)))
    batches = [batch for shuffled in shuffles for batch in np.array_split(shuffled, per_shuffle)]
    return batches[:num_batches]
