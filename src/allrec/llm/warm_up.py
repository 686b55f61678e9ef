"""Warm-up of stage 2, before any language model is asked: F_U(x_u) is drawn to what the user chose next.

That is F_I of the item; or, for a model that reads, where its own embeddings of the item's title stand, and F_I(e_i)
with it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec import seeds
from allrec.backbones.base import Backbone, represent_users
from allrec.data.dataset import Dataset
from allrec.errors import Config
from allrec.llm.prompt import FIRST_TITLE, PromptBuilder
from allrec.llm.soft_tokens import SoftTokens
from allrec.parallel import OnProgress
from allrec.training.batches import LazyBatches
from allrec.training.examples import training_examples
from allrec.training.loop import LoopConfig, fit

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

STREAM = "warm-up"
Batch = tuple[Int[ndarray, "batch"], Bool[Tensor, "llm_dim"]]


class WarmUpConfig(Config):
    """How soft tokens learn to find each other before the language model reads them."""

    epochs: int = Field(0, ge=0, description="Passes over every training position; 0 leaves the warm-up out.")
    towards: Literal["items", "titles"] = Field(
        "items",
        description="What a user's soft token is drawn to: the next item's, or the mean of the model's own embeddings "
        "of its title, where the item's is drawn as well.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Step size of Adam.")
    batch_size: int = Field(512, ge=1, description="Positions a step; all seen items are told apart.")
    kept: float = Field(
        0.2, gt=0, le=1, description="Share of the coordinates that a step compares: a model's heads read parts alone."
    )
    size: float = Field(
        1.0, gt=0, description="Root mean square of soft tokens afterwards, in that of the model's token embeddings."
    )


class Match(nn.Module):
    """Users and items as soft tokens, compared by direction; the temperature is learned."""

    def __init__(self, soft_tokens: SoftTokens) -> None:
        super().__init__()
        self.soft_tokens = soft_tokens
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def title_loss(
        self,
        users: Float[Tensor, "batch dim"],
        items: Float[Tensor, "items joint"],
        titles: Float[Tensor, "items llm_dim"],
        targets: Int[Tensor, "batch"],
        own: Int[Tensor, "some"],
    ) -> Float[Tensor, ""]:
        """Cross-entropies, in nats, of softmaxes over all titles: users to the next title, some items to their own.

        Args:
            users: x_u.
            items: what F_I reads of each item.
            titles: where the titles stand.
            targets: each user's next item, as its row among the items.
            own: rows of the items that are compared with the titles.
        """
        offered = functional.normalize(titles, dim=1)
        asked = functional.normalize(
            torch.cat([self.soft_tokens.user(users), self.soft_tokens.item(items[own])]), dim=1
        )
        logits = self.log_scale.exp() * asked @ offered.T
        return functional.cross_entropy(logits[: len(users)], targets) + functional.cross_entropy(
            logits[len(users) :], own
        )

    def loss(
        self,
        users: Float[Tensor, "batch dim"],
        items: Float[Tensor, "items joint"],
        targets: Int[Tensor, "batch"],
        is_kept: Bool[Tensor, "llm_dim"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy, in nats, of a softmax over all items of s · cos(F_U(x_u), F_I(i)) on the kept coordinates.

        Args:
            users: x_u.
            items: what F_I reads of each item.
            targets: each user's next item, as its row among the items.
            is_kept: which coordinates of the soft tokens are compared.
        """
        asked = functional.normalize(self.soft_tokens.user(users) * is_kept, dim=1)
        offered = functional.normalize(self.soft_tokens.item(items) * is_kept, dim=1)
        return functional.cross_entropy(self.log_scale.exp() * asked @ offered.T, targets)


def warm_up(
    soft_tokens: SoftTokens,
    dataset: Dataset,
    backbone: Backbone,
    item_inputs: Float[Tensor, "items joint"],
    embedding_scale: float,
    config: WarmUpConfig,
    *,
    titles: Float[Tensor, "items llm_dim"] | None = None,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Trains F_U and F_I, in place, so that a user's soft token lies nearest to that of the next item.

    A frozen model that picks a title by the vector behind it can pick from the first step on then; what is left to
    stage 2 is how this very model reads vectors. The paper has no such step (docs/fidelity.md).

    Args:
        soft_tokens: what learns.
        dataset: every training position is learned from.
        backbone: frozen; gives x_u.
        item_inputs: what F_I reads of every item; items that training never saw are told apart from nothing.
        embedding_scale: root mean square of the language model's token embeddings.
        config: steps, coordinates, size.
        titles: where each item's title stands among the model's embeddings, see ``title_embeddings``; for
            ``towards="titles"``.
        seed: of batches and coordinates.
        checkpoint: where progress is kept.
        on_progress: told of each step's loss.
    """
    examples = training_examples(dataset, "every")
    users = represent_users(backbone, dataset, examples.users, examples.positions)
    seen = np.flatnonzero(dataset.train_counts())
    targets, items = torch.from_numpy(np.searchsorted(seen, examples.items)), item_inputs[torch.from_numpy(seen)]
    seen_titles = torch.zeros(0) if titles is None else titles[torch.from_numpy(seen)]
    match = Match(soft_tokens)
    llm_dim = soft_tokens.user.outer.out_features

    def batches(epoch: int) -> LazyBatches[Batch]:
        order = seeds.rng(seed, STREAM, "order", epoch).permutation(len(targets))
        rows = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
        return LazyBatches(
            rows, lambda index, chosen: (chosen, kept_coordinates(llm_dim, config.kept, seed, epoch, index))
        )

    def loss(batch: Batch) -> Tensor:
        rows, is_kept = batch
        if titles is None:
            return match.loss(users[rows], items, targets[torch.from_numpy(rows)], is_kept)
        own = torch.unique(targets[torch.from_numpy(rows)])
        return match.title_loss(users[rows], items, seen_titles, targets[torch.from_numpy(rows)], own)

    loop = LoopConfig(epochs=config.epochs, learning_rate=config.learning_rate, checkpoint_every=50)
    fit(match, batches, loss, loop, seed=seed, stream=STREAM, checkpoint=checkpoint, on_progress=on_progress)
    soft_tokens.user.resize(users, config.size * embedding_scale)
    soft_tokens.item.resize(item_inputs, config.size * embedding_scale)


@torch.no_grad()
def title_embeddings(llm: LanguageModel, builder: PromptBuilder) -> Float[Tensor, "items llm_dim"]:
    """The mean of the model's input embeddings of each title's tokens, around the mean of all titles."""
    titles = builder.pieces.take(np.arange(FIRST_TITLE, len(builder.pieces)))
    rows = torch.from_numpy(np.repeat(np.arange(len(titles)), titles.lengths))
    tokens = llm.embed(torch.from_numpy(titles.values)).float().cpu()
    sums = torch.zeros(len(titles), llm.dim).index_add_(0, rows, tokens)
    means = sums / torch.from_numpy(titles.lengths)[:, None]
    return means - means.mean(0)


def kept_coordinates(llm_dim: int, share: float, seed: int, epoch: int, index: int) -> Bool[Tensor, "llm_dim"]:
    """The coordinates that a step compares: that share of them, one at least, drawn anew for every step."""
    count = max(1, round(share * llm_dim))
    order = seeds.rng(seed, STREAM, "directions", epoch, index).permutation(llm_dim)
    return torch.from_numpy(order < count)
