"""Stage 1 and stage 2: what learns, from which examples, by the one training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec.base import Config, InputError
from allrec.data import Dataset
from allrec.data.candidates import Touched, draw_candidates
from allrec.models.alignment import Alignment, AlignmentConfig
from allrec.models.backbones.base import Backbone
from allrec.models.candidate_scoring import answer_loss
from allrec.models.language_model import LanguageModel
from allrec.models.prompt import USER, PromptBuilder
from allrec.models.soft_tokens import SoftTokens, SoftTokensConfig
from allrec.training.backbone import encode_histories
from allrec.training.batching import LazyBatches, NegativeSampler, length_batches
from allrec.training.loop import FitReport, LoopConfig, fit

ALIGNMENT, LANGUAGE_MODEL = 1, 2
"""Stage numbers, so that two stages of a run draw differently; the backbone is 0."""
Module = TypeVar("Module", bound=torch.nn.Module)
OnStep = Callable[[int, dict[str, float]], None]


class AlignmentStageConfig(Config):
    """Stage 1."""

    network: AlignmentConfig = AlignmentConfig()
    positions: Literal["last", "every"] = Field(
        "every", description="Next items to learn from: a user's last, or every one."
    )
    batch_size: int = Field(512, ge=2, description="Next items a step.")
    loop: LoopConfig = LoopConfig(epochs=10, learning_rate=1e-3)


class SoftTokensStageConfig(Config):
    """Stage 2."""

    soft_tokens: SoftTokensConfig = SoftTokensConfig()
    positions: Literal["last", "every"] = Field(
        "last", description="Targets: one a user, the last training item, or every one."
    )
    sample: int | None = Field(
        None, ge=1, description="Train on so many targets, drawn once at random; none takes all."
    )
    num_candidates: int = Field(20, ge=2, description="Titles listed in a training prompt, the target's among them.")
    batch_tokens: int = Field(8192, ge=1, description="Tokens of titles a step, those of prompts and answers together.")
    loop: LoopConfig = LoopConfig(epochs=5, learning_rate=1e-4)


@dataclass(frozen=True)
class Examples:
    """Next items to learn from: row r is what ``users[r]`` chose at place ``positions[r]`` of their history."""

    users: Int[ndarray, "rows"]
    positions: Int[ndarray, "rows"]
    items: Int[ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.users)


def training_examples(dataset: Dataset, positions: Literal["last", "every"]) -> Examples:
    """Training items with at least one item before them: each user's last, or every one.

    Raises:
        InputError: there is none.
    """
    last = dataset.train_lengths - 1
    if positions == "last":
        users = np.flatnonzero(last >= 1)
        places = last[users]
    else:
        numbers = np.maximum(last, 0)
        users = np.repeat(np.arange(len(last)), numbers)
        places = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers) + 1
    if len(users) == 0:
        raise InputError(
            f"{dataset.name} has no user with two training interactions, so there is nothing to learn from."
        )
    return Examples(users, places, dataset.items[dataset.offsets[users] + places].astype(np.int64))


def represent_users(
    backbone: Backbone, dataset: Dataset, users: Int[ndarray, "rows"], positions: Int[ndarray, "rows"]
) -> Float[Tensor, "rows dim"]:
    """x_u for each row: the user's history before that place, through the frozen backbone."""
    starts = dataset.offsets[users]
    return encode_histories(backbone, dataset.items, starts, starts + positions)


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


def train_soft_tokens(
    dataset: Dataset,
    backbone: Backbone,
    joint_items: Float[Tensor, "items joint"],
    llm: LanguageModel,
    builder: PromptBuilder,
    config: SoftTokensStageConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> tuple[SoftTokens, FitReport]:
    """Stage 2: F_U and F_I learn to steer a frozen language model towards the title of the next item.

    Each epoch draws other negatives and another order of the candidates.

    Source: arXiv:2404.11343, section 4.3, equations 8 to 10.
    """
    examples = _sampled(training_examples(dataset, config.positions), config.sample, seed)
    users = represent_users(backbone, dataset, examples.users, examples.positions)
    soft_tokens = new_soft_tokens(users, joint_items, llm, config.soft_tokens, seed)
    offsets, items = dataset.train_csr()
    touched = Touched(
        np.repeat(np.arange(dataset.num_users), np.diff(offsets)), items, dataset.num_users, dataset.num_items
    )

    def batches(epoch: int) -> LazyBatches[tuple[ndarray, ndarray]]:
        rng = np.random.default_rng([seed, LANGUAGE_MODEL, epoch])
        candidates = draw_candidates(examples.users, examples.items, touched, config.num_candidates - 1, rng)
        rows = length_batches(_prompt_lengths(dataset, examples, candidates, builder), config.batch_tokens, rng)
        return LazyBatches(rows, lambda _, chosen: (chosen, candidates[chosen]))

    def loss(batch: tuple[ndarray, ndarray]) -> Tensor:
        rows, candidates = batch
        histories = [dataset.history(examples.users[row])[: examples.positions[row]] for row in rows]
        prompts = builder.prompts(histories, candidates)
        soft = project(soft_tokens, users[rows], joint_items, prompts.soft_items)
        return answer_loss(llm, prompts, builder.answers(examples.items[rows]), soft)

    report = fit(
        soft_tokens, batches, loss, config.loop, seed=seed, stage=LANGUAGE_MODEL, checkpoint=checkpoint, on_step=on_step
    )
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
        lambda: SoftTokens(users.shape[1], joint_items.shape[1], llm.dim, scale), seed, LANGUAGE_MODEL
    )
    if config.is_standardized:
        soft_tokens.user.standardize(users)
        soft_tokens.item.standardize(joint_items)
    return soft_tokens


def project(
    soft_tokens: SoftTokens,
    users: Float[Tensor, "rows dim"],
    joint_items: Float[Tensor, "items joint"],
    soft_items: Int[ndarray, "soft"],
) -> Float[Tensor, "soft llm_dim"]:
    """The soft tokens of a batch of prompts, in the order of their places; an item is projected once.

    Args:
        soft_tokens: F_U and F_I.
        users: x_u of each prompt's user.
        joint_items: e_i, or q_i where cold, of every item.
        soft_items: whose soft token each place takes; ``USER`` stands for the users in their order.
    """
    is_user = soft_items == USER
    unique, places = np.unique(soft_items[~is_user], return_inverse=True)
    num_users = int(is_user.sum())
    projected = torch.cat(
        [soft_tokens.user(users[:num_users]), soft_tokens.item(joint_items[torch.from_numpy(unique)])]
    )
    order = np.empty(len(soft_items), np.int64)
    order[is_user], order[~is_user] = np.arange(num_users), num_users + places
    return projected[torch.from_numpy(order)]


def initialized(make: Callable[[], Module], seed: int, stage: int) -> Module:
    """Makes a module whose first weights depend on the seed and the stage alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, stage]).generate_state(1, np.uint64)[0]))
        return make()


def _sampled(examples: Examples, sample: int | None, seed: int) -> Examples:
    if sample is None or sample >= len(examples):
        return examples
    rows = np.sort(np.random.default_rng([seed, LANGUAGE_MODEL]).choice(len(examples), sample, replace=False))
    return Examples(examples.users[rows], examples.positions[rows], examples.items[rows])


def _prompt_lengths(
    dataset: Dataset, examples: Examples, candidates: Int[ndarray, "rows candidates"], builder: PromptBuilder
) -> Int[ndarray, "rows"]:
    """Tokens of each prompt's titles, which is all that differs between prompts."""
    lengths = builder.title_lengths
    told = np.concatenate([[0], np.cumsum(lengths[dataset.items])])
    ends = dataset.offsets[examples.users] + examples.positions
    starts = np.maximum(ends - builder.config.max_history, dataset.offsets[examples.users])
    listed = np.where(candidates >= 0, lengths[candidates], 0).sum(axis=1)
    return told[ends] - told[starts] + listed + lengths[examples.items]
