"""What the embedded language models practise: copying a title out of a list, and choosing it by a vector.

A sequence is a list of titles, each with a vector behind it, and questions: a noisy copy of one of the vectors at the
place of a user's soft token, then that vector's title as the answer. Questions come one after the other, so that every
sequence teaches much; a share of the sequences is laid out as the package's own prompt.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from tokenizers import Tokenizer
from torch import Tensor

from allrec.errors import Wording
from allrec.llm.prompt import PromptConfig, wording_pieces
from embedded_text import titles

BEGIN, END = 0, 1
FIRST_WORD = 258
"""Token ids below are special or single bytes."""
CATALOGUE_SIZE = 300
WORDINGS = tuple(
    Wording(noun=noun, verb=verb, past=past)
    for noun, verb, past in (
        ("item", "buy", "bought"), ("movie", "watch", "watched"), ("game", "play", "played"), ("book", "read", "read"),
        ("song", "hear", "heard"), ("product", "order", "ordered"), ("article", "view", "viewed"),
    )
)  # fmt: skip
NOTHING, TEXT, ANSWER, SOFT = range(4)
"""What a place of a sequence is: unscored, wording or a title in a list, determined, a soft token."""


@dataclass(frozen=True)
class Task:
    """One kind of sequence. Pairs are ranges, both ends included; shares are probabilities."""

    candidates: tuple[int, int]
    history: tuple[int, int]
    questions: int
    cosine: tuple[float, float]
    max_tokens: int
    random_share: float
    random_length: tuple[int, int]
    user_first_share: float
    template_share: float
    bare_share: float = 0.1
    max_title_tokens: int = 48


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences: token ids, what each place is, and the soft tokens' vectors, in order."""

    tokens: Tensor
    kinds: Tensor
    vectors: Tensor


class Catalogues:
    """Token ids of titles of a few made-up catalogues, and of the prompt's wording.

    In every third catalogue titles are cut into smaller tokens than need be, as the words of a real catalogue are, of
    which the tokenizer has seen few.
    """

    def __init__(self, tokenizer: Tokenizer, rng: np.random.Generator, num_catalogues: int = 12) -> None:
        def encode(texts: list[str]) -> list[ndarray]:
            return [np.array(encoding.ids) for encoding in tokenizer.encode_batch(texts)]

        self.titles = []
        for place in range(num_catalogues):
            texts = [f' "{text}"' for text in titles(rng, CATALOGUE_SIZE)]
            rows = encode(texts)
            self.titles.append(rows if place % 3 else [_crumbled(row, tokenizer, rng) for row in rows])
        self.wordings = [encode(list(wording_pieces(wording, PromptConfig()))) for wording in WORDINGS]
        self.comma, self.open_quote, self.close_quote = encode([",", ' "', '"'])
        self.num_tokens = tokenizer.get_vocab_size()

    def draw(self, task: Task, count: int, rng: np.random.Generator) -> list[ndarray]:
        """Titles of one catalogue, or strings of random tokens between quotes."""
        if rng.random() < task.random_share:
            lengths = rng.integers(task.random_length[0], task.random_length[1] + 1, size=count)
            strings = [rng.integers(FIRST_WORD, self.num_tokens, size=length) for length in lengths]
            return [np.concatenate([self.open_quote, string, self.close_quote]) for string in strings]
        catalogue = self.titles[rng.integers(len(self.titles))]
        chosen = [catalogue[place] for place in rng.choice(len(catalogue), count, replace=False)]
        keep = task.max_title_tokens
        return [ids if len(ids) <= keep else np.concatenate([ids[: keep - 1], self.close_quote]) for ids in chosen]


def _crumbled(row: ndarray, tokenizer: Tokenizer, rng: np.random.Generator) -> ndarray:
    """A title with a third of its words' tokens spelled out in single bytes' tokens."""
    spelled: list[int] = []
    for place, token in enumerate(row):
        text = tokenizer.id_to_token(int(token))
        is_kept = place == 0 or place == len(row) - 1 or rng.random() > 0.33
        spelled += [int(token)] if is_kept else [tokenizer.token_to_id(character) for character in text]
    return np.array(spelled)


class Writer:
    """Puts one sequence together."""

    def __init__(self) -> None:
        self.tokens: list[ndarray] = []
        self.kinds: list[ndarray] = []
        self.vectors: list[ndarray] = []
        self.length = 0

    def write(self, tokens: ndarray, kind: int) -> None:
        """Appends tokens of one kind."""
        self.tokens.append(tokens)
        self.kinds.append(np.full(len(tokens), kind))
        self.length += len(tokens)

    def mark(self, vector: ndarray) -> None:
        """Appends the place of a soft token."""
        self.vectors.append(vector)
        self.write(np.array([END]), SOFT)


def vectors(count: int, dim: int, rng: np.random.Generator) -> ndarray:
    """Random directions with a root mean square of 1, [count, dim]."""
    drawn = rng.standard_normal((count, dim))
    return drawn / np.sqrt((drawn**2).mean(axis=1, keepdims=True))


def noisy(vector: ndarray, cosine: float, rng: np.random.Generator) -> ndarray:
    """A vector whose expected cosine to the given one is ``cosine``."""
    return cosine * vector + np.sqrt(1 - cosine**2) * vectors(1, len(vector), rng)[0]


def sequence(task: Task, catalogues: Catalogues, dim: int, rng: np.random.Generator) -> Writer:
    """One sequence of a task: a list of titles with vectors, then questions."""
    num_history, num_candidates = (int(rng.integers(low, high + 1)) for low, high in (task.history, task.candidates))
    names = catalogues.draw(task, num_history + num_candidates, rng)
    own = vectors(len(names), dim, rng)
    # Projected embeddings share a common part; the answer must not hang on it.
    shown = own + rng.choice([0.0, 0.0, 0.5]) * rng.standard_normal(dim)
    targets = num_history + rng.integers(num_candidates, size=task.questions)
    opening, past, _, listing, closing = catalogues.wordings[rng.integers(len(WORDINGS))]
    is_bare = rng.random() < task.bare_share
    has_template, is_user_first = rng.random() < task.template_share, rng.random() < task.user_first_share
    writer = Writer()
    writer.write(np.array([BEGIN]), NOTHING)
    if is_user_first and not is_bare:
        writer.mark(noisy(own[targets[0]], rng.uniform(*task.cosine), rng))
    for part, words, after in ((slice(0, num_history), opening, past), (slice(num_history, None), listing, None)):
        if has_template:
            writer.write(words, TEXT)
        _list(writer, names[part], shown[part], catalogues.comma, is_bare)
        if has_template and after is not None:
            writer.write(after, TEXT)
    for place, target in enumerate(targets):
        if (place or not is_user_first) and not is_bare:
            writer.write(np.array([BEGIN]), NOTHING)
            writer.mark(noisy(own[target], rng.uniform(*task.cosine), rng))
        writer.write(closing, TEXT)
        # Without vectors nothing says which title comes: its first token after the quote is a guess.
        known = 2 if is_bare else 0
        writer.write(names[target][:known], TEXT)
        writer.write(np.append(names[target][known:], END), ANSWER)
        if writer.length > task.max_tokens:
            break
    return writer


def _list(writer: Writer, names: list[ndarray], shown: ndarray, comma: ndarray, is_bare: bool) -> None:
    for place, (name, vector) in enumerate(zip(names, shown, strict=True)):
        if place:
            writer.write(comma, TEXT)
        writer.write(name, TEXT)
        if not is_bare:
            writer.mark(vector)


def batch(task: Task, catalogues: Catalogues, dim: int, num_tokens: int, rng: np.random.Generator) -> Batch:
    """Sequences of one task, padded on the right, at least ``num_tokens`` places together."""
    rows: list[Writer] = []
    longest = 0
    while longest * len(rows) < num_tokens:
        rows.append(sequence(task, catalogues, dim, rng))
        longest = max(longest, rows[-1].length)
    tokens = np.full((len(rows), longest), END)
    kinds = np.full((len(rows), longest), NOTHING)
    for row, writer in enumerate(rows):
        tokens[row, : writer.length] = np.concatenate(writer.tokens)
        kinds[row, : writer.length] = np.concatenate(writer.kinds)
    drawn = np.array([vector for writer in rows for vector in writer.vectors], np.float32).reshape(-1, dim)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(kinds), torch.from_numpy(drawn))
