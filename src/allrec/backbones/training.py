"""Trains the collaborative backbone on the training histories, every position of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from allrec import seeds
from allrec.backbones.base import Backbone, StatesBackbone, encode_histories, freeze
from allrec.backbones.losses import (
    BackboneLoss,
    Negatives,
    binary_cross_entropy,
    sampled_softmax,
    softmax,
)
from allrec.backbones.pretrained import Pretrained, PretrainedReport, load_pretrained
from allrec.backbones.registry import BackboneConfig, make_backbone
from allrec.data.dataset import Dataset, Targets
from allrec.data.negatives import NegativeSampler
from allrec.evaluation.metrics import ndcg_at
from allrec.evaluation.ranks import dot_product_ranks
from allrec.parallel import OnProgress
from allrec.training.batches import LazyBatches, length_batches, pad_histories, windows
from allrec.training.distributed import Place, share_rows
from allrec.training.loop import FitReport, fit

STREAM = "backbone"


class TrainedBackbone(NamedTuple):
    """A frozen backbone and how its training went; the report's validations are NDCG@10."""

    model: StatesBackbone
    report: FitReport


class Batch(NamedTuple):
    """Histories, the item that came after each place (-1 where none), and sampled items where the loss needs them."""

    histories: Int[Tensor, "batch length"]
    next_items: Int[Tensor, "batch length"]
    negatives: Negatives | None


def share_of(batch: Batch, here: Place) -> tuple[Batch, float]:
    """A worker's histories of a batch, weighed by the places that predict a next item; see ``distributed.Share``."""
    rows, weight = share_rows(len(batch.histories), here)
    is_target = batch.next_items >= 0
    counts = is_target.sum(dim=1)
    negatives = batch.negatives
    if negatives is not None and negatives.log_expected is None:
        # One for each token, in the order of the tokens.
        before = int(counts[: rows.start].sum())
        negatives = Negatives(negatives.items[before : before + int(counts[rows].sum())])
    share = int(counts[rows].sum()) / int(counts.sum()) if weight else 0.0
    return Batch(batch.histories[rows], batch.next_items[rows], negatives), share


def train_backbone(
    dataset: Dataset,
    config: BackboneConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    device: torch.device | str = "cpu",
) -> TrainedBackbone:
    """Trains a backbone on the training histories and keeps the epoch with the best NDCG@10 on validation.

    One that others trained is taken instead: a checkpoint, or external embeddings.

    Args:
        dataset: its training interactions and validation targets are read, its test targets are not.
        config: shape, loss, batches and optimizer.
        seed: fixes initial weights, batches, negatives and dropout.
        checkpoint: see ``fit``.
        on_progress: see ``fit``.
        device: where to train.

    Raises:
        InputError: no user has two training interactions, or what others trained does not fit the data set.
    """
    pretrained = load_pretrained(dataset, config.model, config.checkpoint)
    if pretrained is not None:
        return _validated(pretrained, dataset, config, seed, device)
    generator = seeds.torch_generator(seed, STREAM, "weights")
    model = make_backbone(dataset.num_items, config.model, generator).to(device)
    source = TrainingBatches(dataset, config, seed, device)

    def loss(batch: Batch) -> Tensor:
        is_target = batch.next_items >= 0
        states = model.states(batch.histories)[is_target]
        return source.loss(states, batch.next_items[is_target], model.item_embeddings(), batch.negatives)

    validate = validation(model, dataset, config, seed)
    report = fit(
        model,
        source,
        loss,
        config.loop,
        seed=seed,
        stream=STREAM,
        checkpoint=checkpoint,
        validate=validate,
        on_progress=on_progress,
        share=share_of,
        split=("item_table",) if dataset.num_items > config.split_table_above else (),
    )
    return TrainedBackbone(freeze(model), report)


def _validated(
    pretrained: Pretrained, dataset: Dataset, config: BackboneConfig, seed: int, device: torch.device | str
) -> TrainedBackbone:
    model = freeze(pretrained.model.to(device))
    validate = validation(model, dataset, config, seed)
    validations = [] if validate is None else [float(validate())]
    return TrainedBackbone(model, PretrainedReport(0, 0, [], validations, None, pretrained.counts))


class TrainingBatches:
    """The batches of an epoch: windows over the training histories, in which every place predicts the next item."""

    def __init__(self, dataset: Dataset, config: BackboneConfig, seed: int, device: torch.device | str) -> None:
        self.config, self.seed, self.device, self.num_items = config, seed, device, dataset.num_items
        offsets, self.items = dataset.train_csr()
        # The last training item is a target alone, hence - 1.
        ends = np.maximum(offsets[1:] - 1, offsets[:-1])
        self.users, self.starts, self.ends = windows(offsets[:-1], ends, config.model.max_length)
        is_sampled = config.loss == "sampled-softmax" or dataset.num_items > config.sampled_softmax_above
        self.loss: BackboneLoss = binary_cross_entropy
        if config.loss != "bce":
            self.loss = sampled_softmax if is_sampled else softmax
        self.sampler: NegativeSampler | None = None
        if config.loss == "bce":
            self.sampler = NegativeSampler.of(dataset.user_ids, offsets, self.items, dataset.num_items)
            kept = self.sampler.has_negative[self.users]
            self.users, self.starts, self.ends = self.users[kept], self.starts[kept], self.ends[kept]
        self.shares = drawn_shares(dataset.train_counts())

    def __call__(self, epoch: int) -> LazyBatches[Batch]:
        rng = seeds.rng(self.seed, STREAM, "order", epoch)
        rows = length_batches(self.ends - self.starts, self.config.tokens_per_batch, rng)
        return LazyBatches(rows, lambda index, chosen: self._build(chosen, epoch, index))

    def _build(self, rows: Int[np.ndarray, "batch"], epoch: int, index: int) -> Batch:
        starts, ends = self.starts[rows], self.ends[rows]
        histories = pad_histories(self.items, starts, ends, self.config.model.max_length)
        next_items = pad_histories(self.items, starts + 1, ends + 1, self.config.model.max_length)
        rng = seeds.rng(self.seed, STREAM, "negatives", epoch, index)
        negatives = self._negatives(np.repeat(self.users[rows], ends - starts), rng)
        return Batch(histories.to(self.device), next_items.to(self.device), negatives)

    def _negatives(self, token_users: Int[np.ndarray, "tokens"], rng: np.random.Generator) -> Negatives | None:
        if self.sampler is not None:
            return Negatives(torch.from_numpy(self.sampler.draw(token_users, rng)).to(self.device))
        if self.loss is not sampled_softmax:
            return None
        items, log_expected = shared_negatives(self.shares, self.config.num_negatives, rng)
        return Negatives(torch.from_numpy(items).to(self.device), log_expected.to(self.device))


def drawn_shares(train_counts: Int[np.ndarray, "items"]) -> Float[np.ndarray, "items"]:
    """How likely sampled softmax draws each item: by its count and one more, so that an unseen one can be drawn."""
    counts = train_counts + 1.0
    shares: Float[np.ndarray, "items"] = counts / counts.sum()
    return shares


def shared_negatives(
    shares: Float[np.ndarray, "items"], num_negatives: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "negatives"], Float[Tensor, "negatives"]]:
    """Items drawn with replacement, and the logarithm of how often each was expected in the sample."""
    items = np.searchsorted(np.cumsum(shares), rng.random(num_negatives) * shares.sum(), side="right")
    items = np.minimum(items, len(shares) - 1)
    return items, torch.from_numpy(np.log(num_negatives * shares[items])).float()


def validation(model: Backbone, dataset: Dataset, config: BackboneConfig, seed: int) -> Callable[[], float] | None:
    """NDCG@10 on validation targets, of a fixed sample of users where there are too many; None where there are none."""
    chosen = validation_targets(dataset, config.validation_users, seeds.rng(seed, STREAM, "validation users"))
    if len(chosen) == 0:
        return None
    return lambda: ndcg_at(backbone_ranks(model, dataset, chosen, config.validation_protocol), 10)


def validation_targets(dataset: Dataset, max_users: int, rng: np.random.Generator) -> Targets:
    """The targets of validation, or a sample of them where there are more than ``max_users``."""
    targets = dataset.targets["valid"]
    rows = np.arange(len(targets))
    if len(rows) > max_users:
        rows = np.sort(rng.choice(len(rows), max_users, replace=False))
    return targets.take(rows)


def backbone_ranks(backbone: Backbone, dataset: Dataset, targets: Targets, protocol: str) -> Int[np.ndarray, "rows"]:
    """0-based ranks of the targets by x_u · E_i under a protocol: a stored one, ``full`` or ``full-repeat``."""
    starts = dataset.offsets[targets.users]
    users = encode_histories(backbone, dataset.items, starts, starts + targets.positions)
    return dot_product_ranks(users, backbone.item_embeddings().detach(), dataset, targets, protocol)
