"""A text encoder tuned on what follows what: its last layers bring an item near those that are bought after it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec import seeds
from allrec.alignment.text_encoder import LastLayers, TextStates
from allrec.data.dataset import Dataset
from allrec.errors import Config, InputError
from allrec.parallel import OnProgress
from allrec.training.batches import LazyBatches
from allrec.training.loop import FitReport, LoopConfig, fit

STREAM = "text tuning"
READ_TOGETHER = 256
"""Items embedded at one time."""


class TextTuningConfig(Config):
    """A copy of the text encoder whose last layers are trained, beside the frozen one."""

    enabled: bool = Field(False, description="Whether it is trained, and its embeddings stand behind the frozen ones.")
    layers: int = Field(2, ge=1, description="Last layers of the encoder that are trained.")
    max_tokens: int = Field(24, ge=8, description="Tokens of a text that are read, at most.")
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="Of the layers' products while they learn; weights, and what the trained layers give, are float32.",
    )
    max_history: int = Field(10, ge=1, description="Latest items of a history that count.")
    batch_users: int = Field(128, ge=2, description="Users of a batch; their items are each other's negatives.")
    loop: LoopConfig = Field(
        LoopConfig(epochs=2, optimizer="adamw", learning_rate=1e-4, weight_decay=1e-2, checkpoint_every=20),
        description="Optimizer and epochs.",
    )


class Batch(NamedTuple):
    """Training targets of some users.

    Attributes:
        items: the distinct items of all users of the batch, ascending.
        histories: places in ``items``, the latest item first, -1 pads; one row a target.
        targets: places in ``items``.
    """

    items: Int[ndarray, "items"]
    histories: Int[Tensor, "targets length"]
    targets: Int[Tensor, "targets"]


class NextItemEncoder(nn.Module):
    """The trained layers, and how a history is read: the mean of its items, the latest weighing most."""

    def __init__(self, layers: LastLayers) -> None:
        super().__init__()
        self.layers = layers
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.raw_decay = nn.Parameter(torch.tensor(0.0))

    def users(
        self, items: Float[Tensor, "items dim"], histories: Int[Tensor, "targets length"]
    ) -> Float[Tensor, "targets dim"]:
        """Histories, the latest item first, -1 pads; scaled, so that a dot product with an item is a logit."""
        steps = torch.arange(histories.shape[1])
        weights = (histories >= 0) * torch.exp(-functional.softplus(self.raw_decay) * steps)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return self.log_scale.exp() * torch.einsum("tl,tld->td", weights, items[histories.clamp(min=0)])


def next_item_loss(
    logits: Float[Tensor, "targets items"],
    log_shares: Float[Tensor, "items"],
    is_excluded: Bool[Tensor, "targets items"],
    targets: Int[Tensor, "targets"],
) -> Float[Tensor, ""]:
    """InfoNCE over the items of a batch: -log softmax(logit - log q) of the target, a mean over the targets, in nats.

    An item is in a batch the likelier the more often it is bought; without log q the popular ones would be pushed away
    from everything.

    Args:
        logits: of every target's history and every item of the batch.
        log_shares: log q of the items, their shares of the training interactions.
        is_excluded: items that are no negatives of a target; the target itself counts whatever stands there.
        targets: places of the targets.

    Source: van den Oord et al., arXiv:1807.03748, equation 4; the correction as in Yi et al., RecSys 2019.
    """
    is_target = functional.one_hot(targets, logits.shape[1]).bool()
    return functional.cross_entropy((logits - log_shares).masked_fill(is_excluded & ~is_target, -torch.inf), targets)


class UserBatches:
    """Batches of users with all their training targets that were new to them."""

    def __init__(self, dataset: Dataset, config: TextTuningConfig, seed: int, has_text: Bool[ndarray, "items"]) -> None:
        self.config, self.seed, self.has_text = config, seed, has_text
        self.offsets, self.items = dataset.train_csr()
        self.users = np.flatnonzero(np.diff(self.offsets) >= 2)
        if len(self.users) == 0:
            raise InputError("no user has two training items, expected some. Give longer histories.")

    def __call__(self, epoch: int) -> LazyBatches[Batch]:
        order = seeds.rng(self.seed, STREAM, "order", epoch).permutation(self.users)
        size = self.config.batch_users
        return LazyBatches([order[start : start + size] for start in range(0, len(order), size)], self._build)

    def _build(self, index: int, users: Int[ndarray, "batch"]) -> Batch:
        histories, targets = [], []
        for user in users:
            own = self.items[self.offsets[user] : self.offsets[user + 1]]
            own = own[self.has_text[own]]
            for place in range(1, len(own)):
                if own[place] not in own[:place]:
                    histories.append(own[max(0, place - self.config.max_history) : place][::-1])
                    targets.append(own[place])
        items = np.unique(np.concatenate([*histories, targets]).astype(np.int64)) if targets else np.zeros(0, np.int64)
        width = max((len(history) for history in histories), default=1)
        padded = np.full((len(targets), width), -1)
        for row, history in enumerate(histories):
            padded[row, : len(history)] = np.searchsorted(items, history)
        return Batch(items, torch.from_numpy(padded), torch.from_numpy(np.searchsorted(items, targets)))


def tune_text(
    dataset: Dataset,
    layers: LastLayers,
    states: TextStates,
    config: TextTuningConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
) -> FitReport:
    """Trains an encoder's last layers to find the next item among those of a batch, by its text, in place.

    The layers below were run once. Items of the history and items of the target's title are no negatives.

    Args:
        dataset: its training interactions are read.
        layers: a copy of the encoder's last layers; frozen again in the end.
        states: what they read of the items' texts.
        config: of the training.
        seed: fixes the batches and dropout.
        checkpoint: see ``fit``.
        on_progress: see ``fit``.

    Raises:
        InputError: no user has two training items.
    """
    module = NextItemEncoder(layers)
    counts = torch.from_numpy(dataset.train_counts()).float()
    log_shares = (counts.clamp(min=1) / counts.sum()).log()
    titles = title_numbers(dataset.titles)

    def loss(batch: Batch) -> Tensor:
        if len(batch.targets) == 0:
            return 0.0 * module.log_scale
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            embeddings = module.layers(states, torch.from_numpy(batch.items)).float()
        logits = module.users(embeddings, batch.histories) @ embeddings.T
        own = titles[batch.items]
        is_equal = torch.from_numpy(own[batch.targets.numpy()][:, None] == own)
        is_owned = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool)
        is_owned.scatter_(1, batch.histories.masked_fill(batch.histories < 0, logits.shape[1]), True)
        return next_item_loss(logits, log_shares[batch.items], is_equal | is_owned[:, :-1], batch.targets)

    source = UserBatches(dataset, config, seed, np.array([bool(text) for text in dataset.texts]))
    report = fit(
        module, source, loss, config.loop, seed=seed, stream=STREAM, checkpoint=checkpoint, on_progress=on_progress
    )
    layers.requires_grad_(False)
    return report


def title_numbers(titles: Sequence[str | None]) -> Int[ndarray, "items"]:
    """A number for each item, the same for equal titles; items without a title have one each."""
    numbers: dict[object, int] = {}
    keys = [title or (place,) for place, title in enumerate(titles)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def tuned_embeddings(layers: LastLayers, states: TextStates) -> Float[Tensor, "items text_dim"]:
    """Unit vectors of all items by the tuned layers; zeros where there is no text."""
    with torch.no_grad():
        return torch.cat(
            [layers(states, items) for items in torch.split(torch.arange(len(states.rows)), READ_TOGETHER)]
        )
