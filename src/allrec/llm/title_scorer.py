"""Scores titles with the frozen language model and what stage 2 learned, over one catalogue."""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import score_candidates
from allrec.llm.prompt import PromptBuilder
from allrec.llm.soft_tokens import SoftTokens, project

USERS_TOGETHER = 256
"""Users whose prompts are laid out at one time."""
VARIANTS = ("llm", "llm-random-items", "llm-no-soft")
"""The system; its items' vectors exchanged at random; and the bare text, without any vector."""


class TitleScorer:
    """log P(title | prompt) of candidates.

    Args:
        llm: frozen.
        builder: of prompts over the catalogue.
        soft_tokens: F_U and F_I, frozen.
        item_inputs: what F_I reads of every item.
        seed: of the random exchange of items.
        normalize: "sum" or "mean" over a title's tokens.
        tokens_per_batch: tokens read at one time.
    """

    def __init__(
        self,
        llm: LanguageModel,
        builder: PromptBuilder,
        soft_tokens: SoftTokens,
        item_inputs: Float[Tensor, "items joint"],
        *,
        seed: int,
        normalize: Literal["sum", "mean"],
        tokens_per_batch: int,
    ) -> None:
        self.llm, self.builder, self.soft_tokens, self.item_inputs = llm, builder, soft_tokens, item_inputs
        self.seed, self.normalize, self.tokens_per_batch = seed, normalize, tokens_per_batch

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
    ) -> Float[ndarray, "users candidates"]:
        """log P(title | prompt) of every candidate, in nats.

        Args:
            users: x_u of each user.
            histories: oldest first.
            candidates: in the order in which the prompt lists them; -1 pads, and has minus infinity.
            variant: one of ``VARIANTS``.
        """
        builder, item_inputs = self._variant(variant)
        scores = np.empty(candidates.shape, np.float32)
        for start in range(0, len(candidates), USERS_TOGETHER):
            rows = slice(start, start + USERS_TOGETHER)
            is_candidate = candidates[rows] >= 0
            prompts = builder.prompts(histories[rows], candidates[rows])
            answers = builder.answers(candidates[rows][is_candidate])
            with torch.no_grad():
                soft = project(self.soft_tokens, users[rows], item_inputs, prompts.soft_items)
            scores[rows] = score_candidates(
                self.llm, prompts, answers, is_candidate, soft,
                normalize=self.normalize, tokens_per_batch=self.tokens_per_batch,
            ).numpy()  # fmt: skip
        return scores

    def _variant(self, variant: str) -> tuple[PromptBuilder, Tensor]:
        if variant not in VARIANTS:
            raise ValueError(f"got variant {variant!r}, expected one of {VARIANTS}")
        if variant == "llm-no-soft":
            return self.bare_builder, self.item_inputs
        if variant == "llm-random-items":
            exchanged = seeds.rng(self.seed, "llm-random-items").permutation(len(self.item_inputs))
            return self.builder, self.item_inputs[torch.from_numpy(exchanged)]
        return self.builder, self.item_inputs
