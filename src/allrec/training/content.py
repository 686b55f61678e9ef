"""Trains what reads items by their content: a tower for similarity, and a backbone whose items are content first."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize

from allrec.base import Config, InputError
from allrec.data.dataset import Dataset
from allrec.models.backbones.base import freeze
from allrec.models.backbones.sasrec import SASRec, SASRecConfig
from allrec.models.content import ContentConfig, ContentTable, ContentTower, ItemContent, Vocabulary, Words
from allrec.training.backbone import BackboneConfig, Batch, TrainingBatches, validation
from allrec.training.batching import LazyBatches, pad_histories
from allrec.training.examples import OnStep
from allrec.training.loop import FitReport, LoopConfig, fit

BACKBONE_STAGE = 4
TOWER_STAGE = 5
NEVER = -1e9
"""Added to a logit that must not count; finite, so that no gradient becomes nan."""


class ContentBackboneConfig(Config):
    """A SASRec whose items are content first, and how it is trained: softmax over the items seen in training."""

    content: ContentConfig = Field(ContentConfig(), description="What reads an item's content.")
    backbone: BackboneConfig = Field(
        BackboneConfig(
            model=SASRecConfig(dim=128),
            loss="softmax",
            tokens_per_batch=1024,
            loop=LoopConfig(epochs=30, learning_rate=2e-3, betas=(0.9, 0.98), patience=3),
        ),
        description="Shape and training of the SASRec.",
    )


class TowerConfig(Config):
    """The content tower and how it is trained."""

    content: ContentConfig = Field(ContentConfig(), description="What reads an item's content.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of a content embedding dropped while training.")
    max_history: int = Field(10, ge=1, description="Latest items of a history that count.")
    batch_size: int = Field(512, ge=1, description="Histories of a batch.")
    loop: LoopConfig = Field(
        LoopConfig(epochs=5, optimizer="adamw", learning_rate=2e-3), description="Optimizer and epochs."
    )


class CatalogueContent(NamedTuple):
    """What is known of the items beside who bought them, frozen with a run.

    Attributes:
        texts: text embeddings.
        vocabulary: of the titles.
        words: the titles' words.
    """

    texts: Float[Tensor, "items text_dim"]
    vocabulary: Vocabulary
    words: Words


class ContentBackbone(NamedTuple):
    """A frozen SASRec with a plain item table, and the content part that gives a new item its row in it."""

    model: SASRec
    content: ItemContent
    report: FitReport


def catalogue_content(dataset: Dataset, text_embeddings: Float[Tensor, "items text_dim"]) -> CatalogueContent:
    """Text embeddings and title words of a data set's items."""
    vocabulary = Vocabulary.of(dataset.titles)
    return CatalogueContent(text_embeddings, vocabulary, vocabulary.weigh(dataset.titles))


def train_content_backbone(
    dataset: Dataset,
    catalogue: CatalogueContent,
    config: ContentBackboneConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> ContentBackbone:
    """Trains a SASRec on item content; an item never seen in training is no negative either.

    Args:
        dataset: training interactions and validation targets are read.
        catalogue: texts and words of its items.
        config: shape, loss and optimizer; ``backbone.loss`` is of no account.
        seed: fixes weights, batches and dropout.
        checkpoint: see ``fit``.
        on_step: see ``fit``.

    Raises:
        InputError: the backbone is no SASRec.
    """
    shape = config.backbone.model
    if not isinstance(shape, SASRecConfig):
        raise InputError(f"content.backbone.model is {type(shape).__name__}, expected SASRecConfig: leave kind out.")
    generator = _generator(seed, BACKBONE_STAGE)
    content_config = config.content.model_copy(update={"dim": shape.dim})
    content = ItemContent(catalogue.texts.shape[1], len(catalogue.vocabulary), content_config, generator)
    model = SASRec(dataset.num_items, shape, generator)
    is_seen = torch.from_numpy((dataset.train_counts() > 0).astype(np.float32))
    table = ContentTable(content, catalogue.texts, catalogue.words, is_seen, config.content.id_dropout)
    parametrize.register_parametrization(model, "item_table", table)
    only_seen = (1 - is_seen) * NEVER

    def loss(batch: Batch) -> Tensor:
        is_target = batch.next_items >= 0
        with parametrize.cached():
            logits = model.states(batch.histories)[is_target] @ model.item_embeddings().T
        return functional.cross_entropy(logits + only_seen, batch.next_items[is_target])

    source = TrainingBatches(dataset, config.backbone.model_copy(update={"loss": "softmax"}), seed, "cpu")
    validate = validation(model, dataset, config.backbone, seed)
    report = fit(
        model, source, loss, config.backbone.loop,
        seed=seed, stage=BACKBONE_STAGE, checkpoint=checkpoint, validate=validate, on_step=on_step,
    )  # fmt: skip
    with torch.no_grad():
        parametrize.remove_parametrizations(model, "item_table", leave_parametrized=True)
    return ContentBackbone(freeze(model), freeze(content), report)


def train_tower(
    dataset: Dataset,
    catalogue: CatalogueContent,
    config: TowerConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> ContentTower:
    """Draws items together that follow each other, by a softmax over all items seen in training.

    The logarithm of an item's count is added to its logit, so that popularity need not be read from its content. Items
    of the history are no negatives, and what the user had before teaches nothing. ``checkpoint`` and ``on_step`` are
    those of ``fit``.

    Raises:
        InputError: no user has two different training items.

    Source: sampled-softmax correction as in Yi et al., RecSys 2019, here over the whole catalogue.
    """
    content = ItemContent(
        catalogue.texts.shape[1], len(catalogue.vocabulary), config.content, _generator(seed, TOWER_STAGE)
    )
    tower = ContentTower(content, config.dropout)
    batches = NextItems(dataset, config, seed)
    counts = torch.from_numpy(dataset.train_counts()).float()
    log_counts = torch.where(counts > 0, counts.clamp(min=1).log(), torch.tensor(NEVER))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        histories, targets = batch
        items = tower.items(catalogue.texts, catalogue.words)
        logits = tower.users(items, histories) @ items.T + log_counts
        own = torch.zeros_like(logits).scatter_add_(1, histories.clamp(min=0), (histories >= 0) * NEVER)
        return functional.cross_entropy(logits + own, targets)

    fit(tower, batches, loss, config.loop, seed=seed, stage=TOWER_STAGE, checkpoint=checkpoint, on_step=on_step)
    return freeze(tower)


class NextItems:
    """Training histories with the item that came next, where the user had not had it; the latest item first."""

    def __init__(self, dataset: Dataset, config: TowerConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        offsets, self.items = dataset.train_csr()
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        ends = np.flatnonzero(np.arange(len(users)) > offsets[users])
        starts = offsets[users[ends]]
        histories = latest_first(pad_histories(self.items, starts, ends, config.max_history))
        is_new = (histories.numpy() != self.items[ends][:, None]).all(axis=1)
        self.histories, self.targets = histories[torch.from_numpy(is_new)], self.items[ends[is_new]].astype(np.int64)
        if len(self.targets) == 0:
            raise InputError("no user has two different training items, expected some. Give longer histories.")

    def __call__(self, epoch: int) -> LazyBatches[tuple[Tensor, Tensor]]:
        order = np.random.default_rng([self.seed, TOWER_STAGE, epoch]).permutation(len(self.targets))
        size = self.config.batch_size
        rows = [order[start : start + size] for start in range(0, len(order), size)]
        return LazyBatches(rows, self._build)

    def _build(self, index: int, rows: Int[np.ndarray, "batch"]) -> tuple[Tensor, Tensor]:
        return self.histories[torch.from_numpy(rows)], torch.from_numpy(self.targets[rows])


def latest_first(histories: Int[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Histories turned round: the latest item first, padding still on the right."""
    places = (histories >= 0).sum(dim=1, keepdim=True) - 1 - torch.arange(histories.shape[1])
    return histories.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1)


def _generator(seed: int, stage: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, stage]).generate_state(1)[0]))
