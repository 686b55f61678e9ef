"""A language model that reads titles and no list of candidates: ranking and stage 2, in tokens and targets a second.

    python bench/reading.py --dataset FOLDER

Ranking reads each prompt and each different beginning of its 20 titles once, and is held against one plain forward pass
of transformers over as many tokens, a sequence a user. Stage 2 has the user's soft token behind the titles of the
history, and one target a user or every one; the peak of memory is that of a process which does a step of each.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from allrec.data import Dataset
from allrec.llm.likelihood import answer_loss, answer_trees, score_candidates
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.llm.soft_token_training import SoftTokensStageConfig, new_soft_tokens, shared_beginnings
from allrec.llm.soft_tokens import project
from allrec.training.examples import training_examples
from measure import dataset_of, in_own_process, options, rates, ratio, show, start
from shapes import SHAPES, make_llm

LAYOUT = PromptConfig(max_title_tokens=16, soft_token="none", user_place="history", lists_candidates=False)
TITLES = 20


class Reading:
    """Prompts of users with long histories, and what is done with them.

    Args:
        dataset: its longest histories are read.
        given: shape, threads, seed.
    """

    def __init__(self, dataset: Dataset, given: argparse.Namespace) -> None:
        self.dataset, self.llm = dataset, make_llm(given.shape)
        self.builder = PromptBuilder.of(self.llm, dataset.titles, dataset.wording, LAYOUT)
        lengths = np.diff(dataset.train_csr()[0])
        self.users = np.argsort(-np.minimum(lengths, LAYOUT.max_history + 1), kind="stable")
        self.titles = np.random.default_rng(given.seed).integers(dataset.num_items, size=(len(self.users), TITLES))
        self.inputs = torch.zeros(dataset.num_items, 8)
        self.states = torch.randn(dataset.num_users, 8, generator=torch.Generator().manual_seed(given.seed))
        config = SoftTokensStageConfig().soft_tokens
        self.soft_tokens = new_soft_tokens(self.states, self.inputs, self.llm, config, given.seed)

    def rank(self, users: np.ndarray) -> int:
        """Scores 20 titles of each user; returns how many tokens had to be read for that."""
        prompts = self.builder.bare().prompts([self.dataset.history(user) for user in users], [()] * len(users))
        answers = self.builder.answers(self.titles[users].ravel())
        score_candidates(self.llm, prompts, answers, np.ones((len(users), TITLES), bool), torch.zeros(0, self.llm.dim))
        trees = answer_trees(answers, np.full(len(users), TITLES))
        return int(prompts.tokens.lengths.sum() + (trees.depths > 0).sum())

    @torch.no_grad()
    def forward(self, users: np.ndarray, num_tokens: int) -> int:
        """A plain pass over so many tokens, a sequence a user, with the logits of as many places as ranking has."""
        width = num_tokens // len(users)
        kept = len(self.builder.answers(self.titles[users].ravel()).values) // len(users)
        for user in users:
            tokens = torch.randint(self.llm.vocabulary, (1, width), generator=torch.Generator().manual_seed(int(user)))
            self.llm._model(tokens, logits_to_keep=min(kept, width))
        return width * len(users)

    def train(self, users: np.ndarray, positions: str) -> int:
        """A step of stage 2 over the targets of these users; returns how many."""
        examples = training_examples(self.dataset, positions)
        rows = np.flatnonzero(np.isin(examples.users, users))
        pairs = zip(examples.users[rows], examples.positions[rows], strict=True)
        prompts = self.builder.prompts([self.dataset.history(user)[:place] for user, place in pairs], [()] * len(rows))
        soft = project(self.soft_tokens, self.states[examples.users[rows]], self.inputs, prompts.soft_items)
        groups = shared_beginnings(examples, self.builder)[rows]
        answer_loss(self.llm, prompts, self.builder.answers(examples.items[rows]), soft, groups).backward()
        return len(rows)


def peak_of(given: argparse.Namespace) -> None:
    """A step of each kind, for its memory."""
    reading = Reading(dataset_of(given), given)
    for positions in ("last", "every"):
        reading.train(reading.users[: given.users], positions)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns the ratios and rates."""
    parser = options(__doc__ or "")
    parser.add_argument("--shape", choices=SHAPES, default=SHAPES[0])
    parser.add_argument("--users", type=int, default=8, help="users of a repeat")
    given = start(parser, arguments)
    reading = Reading(dataset_of(given), given)

    def users(repeat: int) -> np.ndarray:
        return reading.users[(np.arange(given.users) + repeat * given.users) % len(reading.users)]

    num_tokens = reading.rank(users(0))
    sides = {
        "rank": lambda repeat: reading.rank(users(repeat)),
        "plain": lambda repeat: reading.forward(users(repeat), num_tokens),
        "one target": lambda repeat: reading.train(users(repeat), "last"),
        "every target": lambda repeat: reading.train(users(repeat), "every"),
    }
    found = rates(sides, given)
    speed = {name: float(np.median(values)) for name, values in found.items()}
    _, peak = in_own_process(peak_of, given)
    results = {"rank": ratio(found, "rank", "plain"), "every": ratio(found, "every target", "one target"), "peak": peak}
    rows = [
        ["ranking 20 titles, over a plain pass over as many tokens", results["rank"], speed["rank"], "tokens"],
        ["stage 2, one target a user", "", speed["one target"], "targets"],
        ["stage 2, every target, over one a user", results["every"], speed["every target"], "targets"],
        ["peak memory of stage 2, GiB", peak, "", ""],
    ]
    show(f"{given.shape}, titles read, none listed", given, ["what", "ratio", "a second", "of"], rows)
    return results


if __name__ == "__main__":
    main()
