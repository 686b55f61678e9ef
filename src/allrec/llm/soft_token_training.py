"""Stage 2: F_U and F_I learn to steer a frozen language model towards the title of the next item."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec import seeds
from allrec.backbones.base import Backbone, freeze, represent_users
from allrec.data.dataset import Dataset
from allrec.data.negatives import UserItems, draw_candidates
from allrec.errors import Config
from allrec.llm.likelihood import answer_loss
from allrec.llm.prompt import PromptBuilder
from allrec.llm.soft_tokens import SoftTokens, SoftTokensConfig, project
from allrec.llm.warm_up import WarmUpConfig, title_embeddings, warm_up
from allrec.parallel import OnProgress
from allrec.training.batches import LazyBatches, length_batches
from allrec.training.examples import Examples, initialized, sampled, training_examples
from allrec.training.loop import FitReport, LoopConfig, fit

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

RANDOM_ITEMS = 1 << 20
"""Keeps the draw of random item vectors apart from the epochs' draws."""


class SoftTokensStageConfig(Config):
    """Stage 2."""

    soft_tokens: SoftTokensConfig = SoftTokensConfig()
    positions: Literal["last", "every"] = Field(
        "last", description="Targets: one a user, the last training item, or every one."
    )
    sample: int | None = Field(
        None, ge=1, description="Train on so many targets, drawn once at random; none takes all."
    )
    item_source: Literal["joint", "random"] = Field(
        "joint", description="What F_I reads: joint embeddings, or fixed random vectors in their place (an ablation)."
    )
    num_candidates: int = Field(20, ge=2, description="Titles listed in a training prompt, the target's among them.")
    batch_tokens: int = Field(8192, ge=1, description="Tokens of titles a step, those of prompts and answers together.")
    warm_up: WarmUpConfig = WarmUpConfig()
    loop: LoopConfig = LoopConfig(epochs=5, learning_rate=1e-4)


def train_soft_tokens(
    dataset: Dataset,
    backbone: Backbone,
    item_inputs: Float[Tensor, "items joint"],
    llm: LanguageModel,
    builder: PromptBuilder,
    config: SoftTokensStageConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    on_warm_up: OnProgress | None = None,
) -> tuple[SoftTokens, FitReport]:
    """Stage 2: F_U and F_I learn to steer a frozen language model towards the title of the next item.

    Each epoch draws other negatives and another order of the candidates. Where the prompt has no soft token there is
    nothing to learn, and no step is taken.

    Args:
        dataset: its training interactions are learned from.
        backbone: frozen; gives x_u.
        item_inputs: what F_I reads of every item; see ``item_inputs_of``.
        llm: frozen.
        builder: lays out the prompts.
        config: targets, candidates, batches, steps.
        seed: of samples, negatives and first weights.
        checkpoint: where progress is kept.
        on_progress: told of each step's loss.
        on_warm_up: the same, of the warm-up that comes before.

    Source: arXiv:2404.11343, section 4.3, equations 8 to 10.
    """
    if builder.config.is_bare:
        unused = new_soft_tokens(torch.zeros(1, backbone.dim), item_inputs, llm, config.soft_tokens, seed)
        return freeze(unused), FitReport(steps=0, epochs=0, losses=[], validations=[], best_epoch=None)
    rng = seeds.rng(seed, "soft tokens", "sample")
    examples = sampled(training_examples(dataset, config.positions), config.sample, rng)
    users = represent_users(backbone, dataset, examples.users, examples.positions)
    soft_tokens = new_soft_tokens(users, item_inputs, llm, config.soft_tokens, seed)
    warm_checkpoint = None if checkpoint is None else checkpoint.with_name(f"warm-up-{checkpoint.name}")
    titles = title_embeddings(llm, builder) if config.warm_up.towards == "titles" else None
    if config.warm_up.epochs and (builder.config.has_both or titles is not None):
        warm_up(
            soft_tokens, dataset, backbone, item_inputs, llm.embedding_scale, config.warm_up,
            titles=titles, seed=seed, checkpoint=warm_checkpoint, on_progress=on_warm_up,
        )  # fmt: skip

    def loss(batch: tuple[ndarray, ndarray]) -> Tensor:
        rows, candidates = batch
        histories = [dataset.history(examples.users[row])[: examples.positions[row]] for row in rows]
        prompts = builder.prompts(histories, candidates)
        soft = project(soft_tokens, users[rows], item_inputs, prompts.soft_items)
        return answer_loss(llm, prompts, builder.answers(examples.items[rows]), soft)

    batches = _drawn_anew(dataset, examples, builder, config, seed)
    kept: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "on_progress": on_progress}
    report = fit(soft_tokens, batches, loss, config.loop, stream="soft tokens", **kept)
    soft_tokens.requires_grad_(False)
    return soft_tokens, report


def new_soft_tokens(
    users: Float[Tensor, "rows dim"],
    joint_items: Float[Tensor, "items joint"],
    llm: LanguageModel,
    config: SoftTokensConfig,
    seed: int,
) -> SoftTokens:
    """F_U and F_I before they have learned anything; their inputs' centre and scale come from the data."""
    scale = llm.embedding_scale if config.is_scaled else 1.0
    soft_tokens = initialized(
        lambda: SoftTokens(users.shape[1], joint_items.shape[1], llm.dim, scale), seed, "soft tokens"
    )
    if config.is_standardized:
        soft_tokens.user.standardize(users)
        soft_tokens.item.standardize(joint_items)
    return soft_tokens


def _drawn_anew(
    dataset: Dataset, examples: Examples, builder: PromptBuilder, config: SoftTokensStageConfig, seed: int
) -> Callable[[int], LazyBatches[tuple[ndarray, ndarray]]]:
    """The batches of an epoch: rows of examples, and the candidates that each row's prompt lists."""
    seen = _user_items(dataset)

    def batches(epoch: int) -> LazyBatches[tuple[ndarray, ndarray]]:
        rng = seeds.rng(seed, "soft tokens", "epoch", epoch)
        candidates = draw_candidates(examples.users, examples.items, seen, config.num_candidates - 1, rng)
        rows = length_batches(prompt_lengths(dataset, examples, candidates, builder), config.batch_tokens, rng)
        return LazyBatches(rows, lambda _, chosen: (chosen, candidates[chosen]))

    return batches


def _user_items(dataset: Dataset) -> UserItems:
    offsets, items = dataset.train_csr()
    users = np.repeat(np.arange(dataset.num_users), np.diff(offsets))
    return UserItems(users, items, dataset.num_users, dataset.num_items)


def prompt_lengths(
    dataset: Dataset, examples: Examples, candidates: Int[ndarray, "rows candidates"], builder: PromptBuilder
) -> Int[ndarray, "rows"]:
    """Tokens of each prompt's titles, which is all that differs between prompts."""
    lengths = builder.title_lengths
    listed = np.where((candidates >= 0) & builder.lists_candidates, lengths[candidates], 0).sum(axis=1)
    return told_lengths(dataset, examples, builder) + listed + lengths[examples.items]


def told_lengths(dataset: Dataset, examples: Examples, builder: PromptBuilder) -> Int[ndarray, "rows"]:
    """Tokens of the titles of each history that is told."""
    told = np.concatenate([[0], np.cumsum(builder.title_lengths[dataset.items])])
    ends = dataset.offsets[examples.users] + examples.positions
    starts = np.maximum(ends - builder.config.max_history, dataset.offsets[examples.users])
    return told[ends] - told[starts]
