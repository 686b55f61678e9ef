"""Scores titles with the frozen language model and what stage 2 learned, over one catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.llm.likelihood import score_candidates, take_prompts
from allrec.llm.prompt import Packed, PromptBuilder, Prompts
from allrec.llm.score_files import content_name, stored
from allrec.llm.soft_tokens import SoftTokens, project

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

USERS_TOGETHER = 256
"""Users whose prompts are laid out at one time."""
ANSWERS_A_PROMPT = 64
"""Titles that are read behind one copy of the prompt without a history."""
VARIANTS = ("llm", "llm-random-items", "llm-no-soft")
"""The system; its items' vectors exchanged at random; and the bare text, without any vector."""
PRIOR, LENGTH = "title_prior", "title_length"
"""What a title's score is held against: log P(title | no history), in nats, and its number of tokens."""
Normalize = Literal["sum", "mean", "pmi", "pmi-mean"]


class TitleScorer:
    """log P(title | prompt) of candidates, and what it is held against.

    Args:
        llm: frozen.
        builder: of prompts over the catalogue.
        soft_tokens: F_U and F_I, frozen.
        item_inputs: what F_I reads of every item.
        priors: returns log P(title | no history) of every item; see ``title_priors``.
        seed: of the random exchange of items.
        normalize: "sum" favours short titles; "mean", over a title's tokens, those whose ends can be guessed from their
            beginnings; "pmi" and "pmi-mean" are the same less the prior, log P(title | prompt) - log P(title | no
            history), so that a title that is common anyway is not preferred.
        tokens_per_batch: tokens read at one time.

    Source: pointwise mutual information in place of likelihood, Holtzman et al., arXiv:2104.08315, equation 2.
    """

    def __init__(
        self,
        llm: LanguageModel,
        builder: PromptBuilder,
        soft_tokens: SoftTokens,
        item_inputs: Float[Tensor, "items joint"],
        priors: Callable[[], Float[ndarray, "items"]],
        *,
        seed: int,
        normalize: Normalize,
        tokens_per_batch: int,
    ) -> None:
        self.llm, self.builder, self.soft_tokens, self.item_inputs = llm, builder, soft_tokens, item_inputs
        self.priors, self.seed, self.normalize, self.tokens_per_batch = priors, seed, normalize, tokens_per_batch

    @cached_property
    def bare_builder(self) -> PromptBuilder:
        """Of the same prompts without any soft token."""
        return self.builder.bare()

    def fits(self, candidates: Int[ndarray, "rows candidates"]) -> bool:
        """Whether a prompt has room for each row of candidates, -1 pads."""
        return self.builder.fits(candidates)

    def fits_each(self, candidates: Int[ndarray, "rows candidates"]) -> Bool[ndarray, "rows"]:
        """Which rows of candidates, -1 pads, a prompt has room for."""
        return self.builder.fits_each(candidates)

    def score(
        self,
        users: Float[Tensor, "users dim"],
        histories: Sequence[Int[ndarray, "length"]],
        candidates: Int[ndarray, "users candidates"],
        variant: str = "llm",
        cache: Path | None = None,
    ) -> Float[ndarray, "users candidates"]:
        """Score of every candidate, in nats or nats a token, larger is better.

        Args:
            users: x_u of each user.
            histories: oldest first.
            candidates: in the order in which the prompt lists them; -1 pads, and has minus infinity.
            variant: one of ``VARIANTS``.
            cache: folder of what was scored before without any soft token, by any run; see ``cached_scores``.
        """
        scores = self.log_probs(users, histories, candidates, variant, cache)
        if self.normalize.startswith("pmi"):
            scores -= self.of_titles(candidates, PRIOR, padding=0)
        if self.normalize.endswith("mean"):
            scores /= self.of_titles(candidates, LENGTH, padding=1)
        return scores

    def log_probs(
        self,
        users: Float[Tensor, "users dim"],
        histories: Sequence[Int[ndarray, "length"]],
        candidates: Int[ndarray, "users candidates"],
        variant: str = "llm",
        cache: Path | None = None,
    ) -> Float[ndarray, "users candidates"]:
        """log P(title | prompt) of every candidate, in nats, the sum over its tokens; see ``score``."""
        builder, item_inputs = self._variant(variant)
        scores = np.empty(candidates.shape, np.float32)
        for start in range(0, len(candidates), USERS_TOGETHER):
            rows = slice(start, start + USERS_TOGETHER)
            is_candidate = candidates[rows] >= 0
            prompts = builder.prompts(histories[rows], candidates[rows])
            answers = builder.answers(candidates[rows][is_candidate])
            with torch.no_grad():
                soft = project(self.soft_tokens, users[rows], item_inputs, prompts.soft_items)
            given = (self.llm, prompts, answers, is_candidate, soft)
            scores[rows] = cached_scores(*given, tokens_per_batch=self.tokens_per_batch, cache=cache).numpy()
        return scores

    def of_titles(
        self, candidates: Int[ndarray, "users candidates"], name: str, padding: float = -np.inf
    ) -> Float[ndarray, "users candidates"]:
        """What is known of the candidates' titles whoever the user is: ``PRIOR`` or ``LENGTH``; of -1 the padding."""
        values = self.priors() if name == PRIOR else self.builder.title_lengths
        return np.where(candidates >= 0, values[candidates], padding).astype(np.float32)

    def _variant(self, variant: str) -> tuple[PromptBuilder, Tensor]:
        if variant not in VARIANTS:
            raise ValueError(f"got variant {variant!r}, expected one of {VARIANTS}")
        if variant == "llm-no-soft":
            return self.bare_builder, self.item_inputs
        if variant == "llm-random-items":
            exchanged = seeds.rng(self.seed, "llm-random-items").permutation(len(self.item_inputs))
            return self.builder, self.item_inputs[torch.from_numpy(exchanged)]
        return self.builder, self.item_inputs


def cached_scores(
    llm: LanguageModel,
    prompts: Prompts,
    answers: Packed,
    is_candidate: Bool[ndarray, "users candidates"],
    soft: Float[Tensor, "soft dim"],
    *,
    tokens_per_batch: int,
    cache: Path | None,
) -> Float[Tensor, "users candidates"]:
    """``score_candidates``; prompts without a soft token depend on no run, and are scored once for all of them.

    Kept are the users who were scored together, as one file: other users beside them are scored anew.
    """

    def compute() -> Tensor:
        return score_candidates(llm, prompts, answers, is_candidate, soft, tokens_per_batch=tokens_per_batch)

    if cache is None or prompts.is_soft.any():
        return compute()
    return stored([cache], content_name(llm, prompts, answers, is_candidate), "scores", compute)


def title_priors(
    llm: LanguageModel,
    builder: PromptBuilder,
    items: Int[ndarray, "items"],
    *,
    tokens_per_batch: int,
    cache: Path | None = None,
) -> Float[ndarray, "items"]:
    """log P(title | no history) of items, in nats: behind the text of a new user, without any soft token.

    Args:
        llm: frozen.
        builder: of prompts over the catalogue.
        items: item positions.
        tokens_per_batch: tokens read at one time.
        cache: see ``cached_scores``.
    """
    bare, num_rows = builder.bare(), -(-len(items) // ANSWERS_A_PROMPT)
    is_answer = np.arange(num_rows * ANSWERS_A_PROMPT).reshape(num_rows, ANSWERS_A_PROMPT) < len(items)
    # Titles of like beginnings and lengths lie side by side, so that little is read twice.
    order = np.argsort(builder.title_lengths[items], kind="stable")
    prompts, _ = take_prompts(bare.prompts([[]], [[]]), np.zeros(num_rows, np.int64))
    answers, soft = bare.answers(items[order]), torch.zeros(0, llm.dim)
    given = (llm, prompts, answers, is_answer, soft)
    scores = cached_scores(*given, tokens_per_batch=tokens_per_batch, cache=cache)
    priors = np.empty(len(items), np.float32)
    priors[order] = scores.numpy()[is_answer]
    return priors
