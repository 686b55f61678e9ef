"""The frozen parts of a trained system, and every score that they give."""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.errors import InputError
from allrec.config import Recipe
from allrec.data.catalogue import Catalogue
from allrec.evaluation.evaluate import Ranker
from allrec.evaluation.readings import readout_ranker
from allrec.hybrid.fused import Fused
from allrec.hybrid.rankers import Rankers
from allrec.alignment.model import Alignment, NoAlignment
from allrec.backbones.base import Backbone
from allrec.llm.likelihood import score_candidates
from allrec.llm.language_model import LanguageModel
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.llm.readout import ReadOut
from allrec.llm.soft_tokens import SoftTokens
from allrec.backbones.base import encode_histories
from allrec.llm.readout_training import Reader
from allrec.llm.soft_token_training import item_inputs_of, project

LlmScorer = Literal["llm", "llm-random-items", "llm-no-soft", "readout"]
USERS_TOGETHER = 256
"""Users whose prompts are laid out at one time."""


class Scoring:
    """What the stages learned, frozen, over one catalogue.

    Args:
        recipe: complete.
        catalogue: items and known users.
        backbone: frozen.
        text_embeddings: Q of every item.
        alignment: frozen.
        llm: frozen.
        soft_tokens: frozen; None before stage 2 has run.

    Attributes:
        fused: evidence and fusion; None where the recipe has none, or its stage has not run.
        readout: the read-out head, frozen; None where the recipe has none, or before it is trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        catalogue: Catalogue,
        backbone: Backbone,
        text_embeddings: Float[Tensor, "items text_dim"],
        alignment: Alignment | NoAlignment,
        llm: LanguageModel,
        soft_tokens: SoftTokens | None,
    ) -> None:
        self.recipe, self.catalogue, self.backbone, self.llm = recipe, catalogue, backbone, llm
        self.alignment, self.text_embeddings, self.soft_tokens = alignment, text_embeddings, soft_tokens
        self.fused: Fused | None = None
        self.readout: ReadOut | None = None
        is_added = np.arange(catalogue.num_items) >= catalogue.num_items - catalogue.num_added
        self.is_cold = torch.from_numpy((catalogue.train_counts < recipe.cold_below) | is_added)
        self.item_embeddings = backbone.item_embeddings().detach()
        with torch.no_grad():
            self.joint_items = alignment.joint_items(self.item_embeddings, text_embeddings, self.is_cold)
            self.joint_embeddings = alignment.scored_items(self.joint_items)
        self.item_inputs = item_inputs_of(self.joint_items, recipe.soft_tokens.item_source, recipe.seed)
        self.builder = self.new_builder(recipe.prompt)

    def new_builder(self, config: PromptConfig) -> PromptBuilder:
        """Lays out prompts over this catalogue for this language model."""
        llm, catalogue = self.llm, self.catalogue
        return PromptBuilder(
            llm.encode,
            catalogue.titles,
            catalogue.wording,
            config,
            begin=llm.begin,
            end=llm.end,
            max_length=llm.max_length,
        )

    @cached_property
    def bare_builder(self) -> PromptBuilder:
        """Lays out the same prompts without any soft token; made once, for it reads every title."""
        return self.new_builder(self.recipe.prompt.model_copy(update={"soft_token": "none", "has_user": False}))

    @property
    def rankers(self) -> dict[str, Ranker]:
        """Scorers of the fusion and of the read-out head, where there are such."""
        return dict(Rankers(self)) | ({} if self.readout is None else {"readout": readout_ranker(self)})

    @property
    def trained_soft_tokens(self) -> SoftTokens:
        """F_U and F_I.

        Raises:
            InputError: stage 2 has not been trained.
        """
        if self.soft_tokens is None:
            raise InputError("stage 2 has not been trained. Resume with: allrec train DATASET --run RUN --resume")
        return self.soft_tokens

    @property
    def trained_readout(self) -> ReadOut:
        """The read-out head.

        Raises:
            InputError: there is none.
        """
        if self.readout is None:
            raise InputError("this run has no read-out head. Train one with: --set readout.enabled=true")
        return self.readout

    @property
    def reader(self) -> Reader:
        """What reads a user for the read-out head."""
        return Reader(
            self.llm, self.builder, self.backbone, self.joint_items, self.item_inputs, self.trained_soft_tokens
        )

    @cached_property
    def readout_items(self) -> Float[Tensor, "items readout_dim"]:
        """Every item as the read-out head scores it: a dot product with ``read``."""
        with torch.no_grad():
            items: Tensor = self.trained_readout.items(self.joint_items)
        return items

    def read(
        self, users: Float[Tensor, "users dim"], histories: Sequence[Int[ndarray, "length"]]
    ) -> Float[Tensor, "users readout_dim"]:
        """What the read-out head makes of each user, in one forward pass of the language model."""
        return self.reader.read(self.trained_readout, users, histories, self.recipe.evaluation.llm_tokens_per_batch)

    def represent(self, histories: Sequence[Int[ndarray, "length"]]) -> Float[Tensor, "users dim"]:
        """x_u of bare histories, oldest first."""
        lengths = np.array([len(history) for history in histories])
        ends = np.cumsum(lengths)
        items = np.concatenate([np.asarray(history, np.int64) for history in histories])
        return encode_histories(self.backbone, items, ends - lengths, ends)

    def can_list(self, candidates: Int[ndarray, "rows candidates"]) -> bool:
        """Whether the language model's prompt has room for each row of candidates."""
        return self.builder.fits(candidates)

    def score_with_llm(
        self,
        users: Float[Tensor, "users dim"],
        histories: Sequence[Int[ndarray, "length"]],
        candidates: Int[ndarray, "users candidates"],
        scorer: LlmScorer = "llm",
    ) -> Float[ndarray, "users candidates"]:
        """log P(title | prompt) of every candidate, in nats.

        Args:
            users: x_u of each user.
            histories: oldest first.
            candidates: item positions in the order in which the prompt lists them; -1 pads, and scores minus infinity.
            scorer: the system; the same with the items' soft tokens exchanged at random; or the bare text alone. The
                read-out head's are dot products and not nats, of a prompt without candidates.
        """
        if scorer == "readout":
            return self._score_with_readout(users, histories, candidates)
        soft_tokens = self.trained_soft_tokens
        builder, joint = self._variant(scorer)
        scores = np.empty(candidates.shape, np.float32)
        for start in range(0, len(candidates), USERS_TOGETHER):
            rows = slice(start, start + USERS_TOGETHER)
            is_candidate = candidates[rows] >= 0
            prompts = builder.prompts(histories[rows], candidates[rows])
            answers = builder.answers(candidates[rows][is_candidate])
            with torch.no_grad():
                soft = project(soft_tokens, users[rows], joint, prompts.soft_items)
            asked = self.recipe.evaluation
            scores[rows] = score_candidates(
                self.llm, prompts, answers, is_candidate, soft,
                normalize=asked.normalize, tokens_per_batch=asked.llm_tokens_per_batch,
            ).numpy()  # fmt: skip
        return scores

    def _score_with_readout(
        self, users: Tensor, histories: Sequence[Int[ndarray, "length"]], candidates: Int[ndarray, "users candidates"]
    ) -> Float[ndarray, "users candidates"]:
        items = self.readout_items[torch.from_numpy(candidates.clip(min=0)).long()]
        scores = torch.einsum("ud,ucd->uc", self.read(users, histories), items)
        return np.where(candidates >= 0, scores.numpy(), np.float32(-np.inf))

    def _variant(self, scorer: LlmScorer) -> tuple[PromptBuilder, Tensor]:
        if scorer == "llm-no-soft":
            return self.bare_builder, self.item_inputs
        if scorer == "llm-random-items":
            exchanged = seeds.rng(self.recipe.seed, "llm-random-items").permutation(
                len(self.item_inputs)
            )
            return self.builder, self.item_inputs[torch.from_numpy(exchanged)]
        return self.builder, self.item_inputs
