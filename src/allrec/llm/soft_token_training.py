"""Stage 2: F_U and F_I learn to steer a frozen language model towards the title of the next item.

Before that comes a warm-up without the language model: F_U(x_u) is drawn to F_I of what the user chose next or, for a
model that reads, to where its own embeddings of the item's title lie, and F_I(e_i) with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec import seeds
from allrec.backbones.base import Backbone, freeze, represent_users
from allrec.data.dataset import Dataset
from allrec.data.negatives import UserItems, draw_candidates
from allrec.errors import Config
from allrec.llm.likelihood import answer_loss, choice_loss
from allrec.llm.prompt import FIRST_TITLE, Packed, PromptBuilder, Prompts
from allrec.llm.soft_tokens import SoftTokens, SoftTokensConfig, project
from allrec.parallel import OnProgress
from allrec.training.batches import LazyBatches, length_batches
from allrec.training.distributed import Place, Share, share_rows
from allrec.training.examples import Examples, initialized, sampled_groups, training_examples
from allrec.training.loop import FitReport, LoopConfig, fit

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

WARM_UP = "warm-up"
"""Stream of the warm-up's random numbers."""


class WarmUpBatch(NamedTuple):
    """A step of the warm-up: rows of the examples, the compared coordinates, and the items whose titles are learned."""

    rows: Int[ndarray, "batch"]
    is_kept: Bool[Tensor, "llm_dim"]
    own: Int[Tensor, "some"]


class WarmUpConfig(Config):
    """How soft tokens learn to find each other before the language model reads them."""

    epochs: int = Field(0, ge=0, description="Passes over the targets of stage 2; 0 leaves the warm-up out.")
    towards: Literal["items", "titles"] = Field(
        "items",
        description="What a user's soft token is drawn to: the next item's, or the mean of the model's own embeddings "
        "of its title, where the item's is drawn as well.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Step size of Adam.")
    batch_size: int = Field(512, ge=1, description="Positions a step; the softmax is over all seen items.")
    kept: float = Field(
        0.2, gt=0, le=1, description="Share of the coordinates that a step compares: a model's heads read parts alone."
    )
    size: float = Field(
        1.0, gt=0, description="Root mean square of soft tokens afterwards, in that of the model's token embeddings."
    )


class WarmUpMatch(nn.Module):
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
            titles: mean token embeddings of the titles.
            targets: each user's next item, as its row among the items.
            own: rows of the items that are compared with the titles.
        """
        keys = functional.normalize(titles, dim=1)
        queries = torch.cat([self.soft_tokens.user(users), self.soft_tokens.item(items[own])])
        logits = self.log_scale.exp() * functional.normalize(queries, dim=1) @ keys.T
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
        queries = functional.normalize(self.soft_tokens.user(users) * is_kept, dim=1)
        keys = functional.normalize(self.soft_tokens.item(items) * is_kept, dim=1)
        return functional.cross_entropy(self.log_scale.exp() * queries @ keys.T, targets)


def warm_up(
    soft_tokens: SoftTokens,
    dataset: Dataset,
    examples: Examples,
    users: Float[Tensor, "examples dim"],
    item_inputs: Float[Tensor, "items joint"],
    embedding_scale: float,
    config: WarmUpConfig,
    titles: Float[Tensor, "items llm_dim"] | None = None,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Trains F_U and F_I, in place, so that a user's soft token lies nearest to that of the next item.

    A frozen model that picks a title by the vector behind it can pick from the first step on then; what is left to
    stage 2 is how this very model reads vectors. The paper has no such step (docs/fidelity.md).

    Args:
        soft_tokens: what learns.
        dataset: says which items were seen in training.
        examples: the targets that are learned from: those of stage 2.
        users: x_u before each of them.
        item_inputs: what F_I reads of every item; items without training interactions are not in the softmax.
        embedding_scale: root mean square of the language model's token embeddings.
        config: steps, coordinates, size.
        titles: the mean embedding of each item's title, see ``title_embeddings``; for
            ``towards="titles"``.
        seed: of batches and coordinates.
        checkpoint: where progress is kept.
        on_progress: receives each step's loss.
    """
    seen = np.flatnonzero(dataset.train_counts())
    targets, items = torch.from_numpy(np.searchsorted(seen, examples.items)), item_inputs[torch.from_numpy(seen)]
    seen_titles = torch.zeros(0) if titles is None else titles[torch.from_numpy(seen)]
    match = WarmUpMatch(soft_tokens)

    def loss(batch: WarmUpBatch) -> Tensor:
        asking, wanted = users[batch.rows], targets[torch.from_numpy(batch.rows)]
        if titles is None:
            return match.loss(asking, items, wanted, batch.is_kept)
        return match.title_loss(asking, items, seen_titles, wanted, batch.own)

    loop = LoopConfig(epochs=config.epochs, learning_rate=config.learning_rate, checkpoint_every=50)
    given: dict[str, Any] = {"checkpoint": checkpoint, "on_progress": on_progress, "share": _warm_up_share}
    batches = _warm_up_batches(targets, soft_tokens.user.outer.out_features, config, seed)
    fit(match, batches, loss, loop, seed=seed, stream=WARM_UP, **given)
    soft_tokens.user.resize(users, config.size * embedding_scale)
    soft_tokens.item.resize(item_inputs, config.size * embedding_scale)


def _warm_up_batches(
    targets: Int[Tensor, "rows"], llm_dim: int, config: WarmUpConfig, seed: int
) -> Callable[[int], LazyBatches[WarmUpBatch]]:
    def batches(epoch: int) -> LazyBatches[WarmUpBatch]:
        order = seeds.rng(seed, WARM_UP, "order", epoch).permutation(len(targets))
        rows = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]

        def batch(index: int, chosen: Int[ndarray, "batch"]) -> WarmUpBatch:
            is_kept = kept_coordinates(llm_dim, config.kept, seed, epoch, index)
            return WarmUpBatch(chosen, is_kept, torch.unique(targets[torch.from_numpy(chosen)]))

        return LazyBatches(rows, batch)

    return batches


def _warm_up_share(batch: WarmUpBatch, here: Place) -> tuple[WarmUpBatch, float]:
    """A worker's rows of a batch; the items' own loss is a mean over all of the batch, so every worker has them all."""
    rows, weight = share_rows(len(batch.rows), here)
    return batch._replace(rows=batch.rows[rows]), weight


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
    order = seeds.rng(seed, WARM_UP, "directions", epoch, index).permutation(llm_dim)
    return torch.from_numpy(order < count)


class SoftTokensStageConfig(Config):
    """Stage 2."""

    soft_tokens: SoftTokensConfig = SoftTokensConfig()
    positions: Literal["last", "every"] = Field(
        "last", description="Targets: one a user, the last training item, or every one."
    )
    sample: int | None = Field(None, ge=1, description="Targets to train on, drawn once at random; none takes all.")
    item_source: Literal["joint", "random"] = Field(
        "joint", description="What F_I reads: joint embeddings, or fixed random vectors in their place (an ablation)."
    )
    objective: Literal["title", "choice"] = Field(
        "title",
        description="What is learned: to write the target's title (the paper), or to prefer it to other candidates' by "
        "log P(title | prompt) - log P(title | no history), the latter of the untuned model, by which pmi ranks.",
    )
    choice_scale: float = Field(0.25, gt=0, description="Inverse temperature of the choice, a nat.")
    num_candidates: int = Field(
        20, ge=2, description="Titles that a training prompt lists, or that are chosen among; the target's is one."
    )
    batch_tokens: int = Field(8192, ge=1, description="Tokens of titles a step, those of prompts and answers together.")
    warm_up: WarmUpConfig = WarmUpConfig()
    loop: LoopConfig = LoopConfig(epochs=5, learning_rate=1e-4)


@dataclass(frozen=True)
class StageTwoReport(FitReport):
    """The outcome of stage 2.

    Attributes:
        examples: how many targets each part learned from.
    """

    examples: dict[str, int]


NOTHING = StageTwoReport(0, 0, [], [], None, {"stage 2": 0, "warm-up": 0})
"""Where nothing can learn."""


def train_soft_tokens(
    dataset: Dataset,
    backbone: Backbone,
    item_inputs: Float[Tensor, "items joint"],
    llm: LanguageModel,
    builder: PromptBuilder,
    config: SoftTokensStageConfig,
    priors: Float[ndarray, "items"] | None = None,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
    on_warm_up: OnProgress | None = None,
) -> tuple[SoftTokens, StageTwoReport]:
    """Stage 2: F_U and F_I learn to steer a frozen language model towards the title of the next item.

    Each epoch draws other negatives and another order of the candidates. Where the prompt has no soft token and the
    model no adapter there is nothing to learn, and no step is taken.

    Args:
        dataset: its training interactions are learned from.
        backbone: frozen; gives x_u.
        item_inputs: what F_I reads of every item; see ``item_inputs_of``.
        llm: frozen; an adapter of it that can learn does, with the same steps as the soft tokens.
        builder: lays out the prompts.
        config: targets, candidates, batches, steps.
        priors: log P(title | no history) of every item, in nats, for ``objective="choice"``.
        seed: of samples, negatives and first weights.
        checkpoint: where progress is kept.
        on_progress: receives each step's loss.
        on_warm_up: the same, of the warm-up that comes before.

    Source: arXiv:2404.11343, section 4.3, equations 8 to 10.
    """
    if builder.config.is_bare and not llm.learning:
        nobody = torch.zeros(1, backbone.dim)
        return freeze(new_soft_tokens(nobody, item_inputs, llm, config.soft_tokens, seed)), NOTHING
    every = training_examples(dataset, config.positions)
    chance = seeds.rng(seed, "soft tokens", "sample")
    examples = sampled_groups(every, shared_beginnings(every, builder), config.sample, chance)
    users = represent_users(backbone, dataset, examples.users, examples.positions)
    soft_tokens = new_soft_tokens(users, item_inputs, llm, config.soft_tokens, seed)
    own: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "on_progress": on_progress}
    given = (soft_tokens, dataset, examples, users, item_inputs)
    num_warm = _warm_up_for(llm, builder, config.warm_up, *given, **own | {"on_progress": on_warm_up})

    def loss(batch: tuple[ndarray, ndarray]) -> Tensor:
        rows, candidates = batch
        prompts = builder.prompts(_histories(dataset, examples, rows), candidates)
        soft = project(soft_tokens, users[rows], item_inputs, prompts.soft_items)
        chosen = (candidates, examples.items[rows], groups[rows])
        return _objective(config, llm, builder, prompts, soft, *chosen, priors)

    groups = shared_beginnings(examples, builder)
    batches = _drawn_anew(dataset, examples, groups, builder, config, seed)
    learner = _learner(soft_tokens.requires_grad_(not builder.config.is_bare), llm)
    share = _share_of(examples, builder, config)
    report = fit(learner, batches, loss, config.loop, stream="soft tokens", share=share, **own)
    learner.requires_grad_(False)
    return soft_tokens, StageTwoReport(**vars(report), examples={"stage 2": len(examples), "warm-up": num_warm})


def _warm_up_for(
    llm: LanguageModel, builder: PromptBuilder, config: WarmUpConfig, soft_tokens: SoftTokens, dataset: Dataset,
    examples: Examples, users: Float[Tensor, "examples dim"], item_inputs: Float[Tensor, "items joint"], *,
    checkpoint: Path | None, **given: Any,
) -> int:  # fmt: skip
    """The warm-up, where it is wanted and the prompt has what is compared in it; how many targets it learned from."""
    given["checkpoint"] = None if checkpoint is None else checkpoint.with_name(f"warm-up-{checkpoint.name}")
    titles = title_embeddings(llm, builder) if config.towards == "titles" else None
    is_wanted = config.epochs > 0 and (builder.config.has_both or titles is not None)
    if is_wanted:
        warm_up(soft_tokens, dataset, examples, users, item_inputs, llm.embedding_scale, config, titles, **given)
    return len(examples) if is_wanted else 0


def _objective(
    config: SoftTokensStageConfig,
    llm: LanguageModel,
    builder: PromptBuilder,
    prompts: Prompts,
    soft: Float[Tensor, "soft dim"],
    candidates: Int[ndarray, "rows candidates"],
    targets: Int[ndarray, "rows"],
    groups: Int[ndarray, "rows"],
    priors: Float[ndarray, "items"] | None,
) -> Float[Tensor, ""]:
    """What is learned: to write the target's title, or to choose it among the candidates; -1 pads them."""
    if config.objective == "title":
        return answer_loss(llm, prompts, builder.answers(targets), soft, groups)
    if priors is None:
        raise ValueError("a choice among candidates needs the priors of their titles")
    is_real = candidates >= 0
    held = np.where(is_real, priors[candidates], -np.inf)
    wanted = (candidates == targets[:, None]).argmax(axis=1)
    return choice_loss(llm, prompts, builder.answers(candidates[is_real]), held, wanted, soft, config.choice_scale)


def _histories(dataset: Dataset, examples: Examples, rows: Int[ndarray, "rows"]) -> list[Int[ndarray, "length"]]:
    return [dataset.history(examples.users[row])[: examples.positions[row]] for row in rows]


def _share_of(
    examples: Examples, builder: PromptBuilder, config: SoftTokensStageConfig
) -> Share[tuple[ndarray, ndarray]]:
    """A worker's part of a batch, weighed by what the loss is a mean over: tokens of titles, or users who choose."""
    lengths = builder.title_lengths[examples.items] + builder.num_end
    if config.objective == "choice":
        lengths = np.ones(len(examples), np.int64)

    def share(batch: tuple[ndarray, ndarray], here: Place) -> tuple[tuple[ndarray, ndarray], float]:
        rows, candidates = batch
        part, weight = share_rows(len(rows), here)
        tokens = lengths[rows]
        return (rows[part], candidates[part]), float(tokens[part].sum() / tokens.sum()) if weight else 0.0

    return share


def _learner(soft_tokens: SoftTokens, llm: LanguageModel) -> nn.Module:
    return soft_tokens if llm.adapter is None else nn.ModuleList([soft_tokens, llm.adapter])


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


def shared_beginnings(examples: Examples, builder: PromptBuilder) -> Int[ndarray, "rows"]:
    """Which examples' prompts begin alike: those of a user whose histories begin with the same title."""
    if not builder.shares_beginnings:
        return np.arange(len(examples))
    starts = np.maximum(examples.positions - builder.config.max_history, 0)
    _, groups = np.unique(np.stack([examples.users, starts]), axis=1, return_inverse=True)
    return groups.ravel()


def _drawn_anew(
    dataset: Dataset,
    examples: Examples,
    groups: Int[ndarray, "rows"],
    builder: PromptBuilder,
    config: SoftTokensStageConfig,
    seed: int,
) -> Callable[[int], LazyBatches[tuple[ndarray, ndarray]]]:
    """The batches of an epoch: rows of examples, whole groups, and the candidates that each row's prompt lists."""
    seen = _user_items(dataset)
    order = np.argsort(groups, kind="stable")
    rows_of = Packed(order, np.concatenate([[0], np.cumsum(np.bincount(groups))]))

    def batches(epoch: int) -> LazyBatches[tuple[ndarray, ndarray]]:
        rng = seeds.rng(seed, "soft tokens", "epoch", epoch)
        candidates = draw_candidates(examples.users, examples.items, seen, config.num_candidates - 1, rng)
        answers = candidates if config.objective == "choice" else examples.items[:, None]
        lengths = prompt_lengths(dataset, examples, candidates, answers, groups, builder)
        chosen = [rows_of.take(batch).values for batch in length_batches(lengths, config.batch_tokens, rng)]
        return LazyBatches(chosen, lambda _, rows: (rows, candidates[rows]))

    return batches


def _user_items(dataset: Dataset) -> UserItems:
    offsets, items = dataset.train_csr()
    users = np.repeat(np.arange(dataset.num_users), np.diff(offsets))
    return UserItems(users, items, dataset.num_users, dataset.num_items)


def prompt_lengths(
    dataset: Dataset,
    examples: Examples,
    candidates: Int[ndarray, "rows candidates"],
    answers: Int[ndarray, "rows answers"],
    groups: Int[ndarray, "rows"],
    builder: PromptBuilder,
) -> Int[ndarray, "groups"]:
    """Tokens of the titles that each group of prompts reads: the longest history once, and every answer; -1 pads."""
    lengths = builder.title_lengths
    listed = np.where((candidates >= 0) & builder.lists_candidates, lengths[candidates], 0).sum(axis=1)
    answered = np.where(answers >= 0, lengths[answers], 0).sum(axis=1)
    longest = np.zeros(groups.max(initial=-1) + 1, np.int64)
    np.maximum.at(longest, groups, history_lengths(dataset, examples, builder))
    return longest + np.bincount(groups, listed + answered).astype(np.int64)


def history_lengths(dataset: Dataset, examples: Examples, builder: PromptBuilder) -> Int[ndarray, "rows"]:
    """Tokens of the titles of each history, as far back as a prompt goes."""
    total = np.concatenate([[0], np.cumsum(builder.title_lengths[dataset.items])])
    ends = dataset.offsets[examples.users] + examples.positions
    starts = np.maximum(ends - builder.config.max_history, dataset.offsets[examples.users])
    return total[ends] - total[starts]
