"""Measures the two skills of an embedded language model, on titles that it has never seen.

    python scripts/measure_embedded.py embedded-small --dataset DATASET

Every question is one prompt of the package: a user's vector, twenty titles each with a vector, the closing words.
Choose: the answer's likelihood ranks the twenty; right is the title whose vector is nearest to the user's, which has a
cosine of 0.7 to it while all others are random. Copy: the user's vector is that title's own, and the answer is decoded
greedily; right is the whole title, closing quote and end included.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy import ndarray

from allrec.data import load_dataset
from allrec.errors import Wording
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import embed_prompts, score_candidates
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.prompt import USER, PromptBuilder, PromptConfig, Prompts
from embedded_tasks import noisy, vectors
from embedded_text import titles

NUM_CANDIDATES = 20
VECTOR_SCALE = 0.15


def measure(llm: LanguageModel, names: Sequence[str | None], num_questions: int, seed: int) -> dict[str, float]:
    """Shares of right answers.

    Args:
        llm: the language model.
        names: titles of one catalogue.
        num_questions: prompts a skill.
        seed: draws lists and vectors.
    """
    builder = PromptBuilder(
        llm.encode, names, Wording(), PromptConfig(), begin=llm.begin, end=llm.end, max_length=llm.max_length
    )
    rng = np.random.default_rng(seed)
    lists = np.array([rng.choice(len(names), NUM_CANDIDATES, replace=False) for _ in range(num_questions)])
    right = rng.integers(NUM_CANDIDATES, size=num_questions)
    prompts = builder.prompts([[]] * num_questions, lists)
    own = np.stack([vectors(NUM_CANDIDATES, llm.dim, rng) for _ in range(num_questions)])
    asked = own[np.arange(num_questions), right]
    scores = score_candidates(
        llm, prompts, builder.answers(lists.ravel()), np.ones(lists.shape, bool),
        _soft(prompts, own, np.stack([noisy(vector, 0.7, rng) for vector in asked])),
    )  # fmt: skip
    answers = builder.answers(lists[np.arange(num_questions), right])
    copied = _decode(llm, prompts, _soft(prompts, own, asked), int(answers.lengths.max()))
    whole = [list(answers[row]) == copied[row][: answers.lengths[row]] for row in range(num_questions)]
    return {"choose": float((scores.argmax(1).numpy() == right).mean()), "copy": float(np.mean(whole))}


def _soft(prompts: Prompts, own: ndarray, users: ndarray) -> torch.Tensor:
    soft = np.empty((len(prompts.soft_items), own.shape[-1]), np.float32)
    is_user = prompts.soft_items == USER
    soft[is_user], soft[~is_user] = users, own.reshape(-1, own.shape[-1])
    return torch.from_numpy(soft) * VECTOR_SCALE


@torch.no_grad()
def _decode(llm: LanguageModel, prompts: Prompts, soft: torch.Tensor, num_tokens: int) -> list[list[int]]:
    """Greedy answers; a prompt at a time, for padding would stand between it and its answer."""
    embeddings = embed_prompts(llm, prompts, soft)
    decoded = []
    for row, length in enumerate(prompts.tokens.lengths):
        cache = llm.read(embeddings[row : row + 1, : length - 1])
        ids: list[int] = []
        state = llm.hidden(embeddings[row : row + 1, length - 1 : length], None, torch.tensor([[length - 1]]), cache)
        for place in range(num_tokens):
            ids.append(int(llm.logits(state)[0, -1].argmax()))
            if ids[-1] == llm.end[0]:
                break
            position = torch.tensor([[int(length) + place]])
            state = llm.hidden(llm.embed(torch.tensor([[ids[-1]]])), None, position, cache)
        decoded.append(ids)
    return decoded


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="embedded-small, embedded-large, or a folder")
    parser.add_argument("--dataset", action="append", default=[], help="a prepared data set whose titles are used too")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = LanguageModel.load(LanguageModelConfig(name=given.name))
    catalogues = {"made here": titles(np.random.default_rng(10**6), 2000)}
    catalogues |= {name: [title for title in load_dataset(name).titles if title] for name in given.dataset}
    for catalogue, found in catalogues.items():
        shares = measure(model, found, given.questions, 0)
        print(f"{catalogue}: copy {shares['copy']:.3f}, choose {shares['choose']:.3f}")
