"""Prompts as stage 2 has them: real or simulated titles and histories, random vectors in place of learned ones."""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from allrec.config import load_recipe
from allrec.data import Dataset
from allrec.data.negatives import UserItems, draw_candidates
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import answer_loss, score_candidates
from allrec.llm.prompt import PromptBuilder
from allrec.llm.readout import ReadOut, ReadOutConfig, read_out
from allrec.llm.soft_token_training import SoftTokensStageConfig, new_soft_tokens, prompt_lengths
from allrec.llm.soft_tokens import SoftTokens, project
from allrec.training.batches import length_batches
from allrec.training.examples import Examples, training_examples

USER_DIM, JOINT_DIM = 50, 128
PROMPT = load_recipe("a-llmrec").prompt
"""As all recipes lay it out: titles are cut to 16 tokens."""


@dataclass(frozen=True)
class Scene:
    """All that stage 2 needs, on its device."""

    dataset: Dataset
    llm: LanguageModel
    builder: PromptBuilder
    examples: Examples
    candidates: ndarray
    lengths: ndarray
    users: Tensor
    items: Tensor
    soft_tokens: SoftTokens

    def rows(self, repeat: int, count: int) -> ndarray:
        """Other users in every repeat."""
        return (np.arange(count) + repeat * count) % len(self.examples)

    def batches(self, rows: ndarray) -> list[ndarray]:
        """The same users in steps as the stage takes them: of like length together, so many tokens of titles a step."""
        tokens = SoftTokensStageConfig().batch_tokens
        return [rows[part] for part in length_batches(self.lengths[rows], tokens, np.random.default_rng(0))]

    def histories(self, rows: ndarray) -> list[ndarray]:
        """Items before each target."""
        users, positions = self.examples.users[rows], self.examples.positions[rows]
        return [self.dataset.history(user)[:position] for user, position in zip(users, positions, strict=True)]

    def loss(self, rows: ndarray) -> Tensor:
        """A step of stage 2 as the package takes it, up to the loss."""
        prompts = self.builder.prompts(self.histories(rows), self.candidates[rows])
        soft = project(self.soft_tokens, self.users[rows], self.items, prompts.soft_items)
        return answer_loss(self.llm, prompts, self.builder.answers(self.examples.items[rows]), soft)

    @torch.no_grad()
    def scores(self, rows: ndarray, tokens_per_batch: int) -> Tensor:
        """Log-likelihoods of 20 candidates as the package finds them."""
        candidates = self.candidates[rows]
        prompts = self.builder.prompts(self.histories(rows), candidates)
        soft = project(self.soft_tokens, self.users[rows], self.items, prompts.soft_items)
        answers = self.builder.answers(candidates.ravel())
        return score_candidates(self.llm, prompts, answers, candidates >= 0, soft, tokens_per_batch=tokens_per_batch)

    def read_out(self) -> ReadOut:
        """A head that has learned nothing, which costs what a trained one costs."""
        torch.manual_seed(0)
        sizes = (self.llm.hidden_dim, self.llm.dim, JOINT_DIM, USER_DIM)
        return ReadOut(*sizes, ReadOutConfig(), self.llm.embedding_scale).to(self.llm.device).eval()

    @torch.no_grad()
    def whole_catalogue(self, rows: ndarray, head: ReadOut, k: int = 20) -> Tensor:
        """The best of all items by the read-out head, whose prompt lists no candidates."""
        prompts = self.builder.prompts(self.histories(rows), [()] * len(rows))
        soft = project(self.soft_tokens, self.users[rows], self.items, prompts.soft_items)
        vectors = head.users(read_out(self.llm, prompts, soft, head.vector))
        return (vectors @ head.items(self.items).T).topk(k).indices


def make_scene(dataset: Dataset, llm: LanguageModel, given: argparse.Namespace) -> Scene:
    """Draws users, joint embeddings and candidates."""
    generator = torch.Generator().manual_seed(given.seed)
    builder = PromptBuilder.of(llm, dataset.titles, dataset.wording, PROMPT)
    examples = training_examples(dataset, "last")
    offsets, items = dataset.train_csr()
    seen = UserItems(
        np.repeat(np.arange(dataset.num_users), np.diff(offsets)), items, dataset.num_users, dataset.num_items
    )
    candidates = draw_candidates(examples.users, examples.items, seen, 19, np.random.default_rng(given.seed))
    users = torch.randn(len(examples), USER_DIM, generator=generator)
    joint = torch.rand(dataset.num_items, JOINT_DIM, generator=generator)
    soft_tokens = new_soft_tokens(users, joint, llm, SoftTokensStageConfig().soft_tokens, given.seed)
    device = llm.device
    lengths = prompt_lengths(dataset, examples, candidates, examples.items[:, None], np.arange(len(examples)), builder)
    return Scene(
        dataset, llm, builder, examples, candidates, lengths, users.to(device), joint.to(device), soft_tokens.to(device)
    )
