"""First words: a title or genres that the language model writes for a user, held against the catalogue."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.catalogue import Catalogue
from allrec.errors import InputError
from allrec.llm.generation import LIST_STOP, TITLE_STOP, Stop, Written, write
from allrec.llm.prompt import CLOSING, GENRES, Prompts
from allrec.llm.soft_tokens import project
from allrec.llm.title_scorer import TitleScorer

Task = Literal["title", "genres"]
TASKS: tuple[Task, ...] = ("title", "genres")
GENRE_TOKENS = 32
"""No list of genres is longer, in tokens."""


@dataclass(frozen=True)
class WrittenTitle:
    """A title that the language model wrote.

    Attributes:
        title: what stands between the quotes; all that was written where there are none.
        score: log-likelihood of what was written up to its end, in nats, the sum over its tokens.
        item_ids: the items of exactly this title, all of them where several have it; empty where none has.
        is_in_catalogue: whether there is such an item.
        is_candidate: whether one of them stood among the candidates in the prompt.
    """

    title: str
    score: float
    item_ids: list[str]
    is_in_catalogue: bool
    is_candidate: bool


@dataclass(frozen=True)
class WrittenGenres:
    """Genres that the language model wrote.

    Attributes:
        text: what it wrote.
        score: log-likelihood of what was written up to its end, in nats, the sum over its tokens.
        known: the genres of the data set among it, in their order.
        unknown: what else it lists.
    """

    text: str
    score: float
    known: list[str]
    unknown: list[str]


def write_titles(
    scorer: TitleScorer,
    catalogue: Catalogue,
    users: Float[Tensor, "users dim"],
    histories: list[Int[ndarray, "length"]],
    candidates: Int[ndarray, "users candidates"],
    k: int = 1,
) -> list[list[WrittenTitle]]:
    """The k likeliest titles that the language model writes for each user; nothing keeps it to the catalogue.

    Args:
        scorer: the language model over the catalogue.
        catalogue: its items.
        users: x_u of each user.
        histories: item positions, oldest first.
        candidates: item positions that the prompt lists, -1 pads.
        k: width of the beam; 1 is greedy.
    """
    prompts = scorer.builder.prompts(histories, candidates, CLOSING)
    # The quotes are among a title's tokens; the end of the sequence is one more.
    max_tokens = scorer.builder.config.max_title_tokens + 1
    rows = _write(scorer, users, prompts, TITLE_STOP, k, max_tokens)
    items_of = items_by_title(scorer, catalogue)
    return [
        [_title(catalogue, written, items_of, set(listed)) for written in row]
        for row, listed in zip(rows, candidates.tolist(), strict=True)
    ]


def write_genres(
    scorer: TitleScorer,
    catalogue: Catalogue,
    users: Float[Tensor, "users dim"],
    histories: list[Int[ndarray, "length"]],
    k: int = 1,
) -> list[list[WrittenGenres]]:
    """The k likeliest lists of genres that the language model writes for each user.

    Raises:
        InputError: the data set has no genres.
    """
    genres = catalogue.genres
    if genres is None:
        raise InputError(
            "no genres are known in this run: its data set has no column genres, genre, categories or category, or it "
            "was trained before they were kept. Prepare a source that has one, and train anew; or ask for a title."
        )
    known = {genre.casefold(): genre for row in genres for genre in row}
    prompts = scorer.builder.prompts(histories, [[] for _ in histories], GENRES)
    rows = _write(scorer, users, prompts, LIST_STOP, k, GENRE_TOKENS)
    return [[_genres(written, known) for written in row] for row in rows]


def items_by_title(scorer: TitleScorer, catalogue: Catalogue) -> dict[str, list[int]]:
    """The items of every title, as prompts tell it: cut where it is too long, quotes inside it made single."""
    titles = [None if title is None else title.replace('"', "'") for title in catalogue.titles]
    builder = scorer.builder
    long = np.flatnonzero(builder.title_lengths >= builder.config.max_title_tokens)
    answers = builder.answers(long)
    texts = scorer.llm.decode([answers[row].tolist() for row in range(len(long))])
    for item, text in zip(long.tolist(), texts, strict=True):
        titles[item] = _quoted(text) if titles[item] is not None else None
    items: dict[str, list[int]] = {}
    for item, title in enumerate(titles):
        if title is not None:
            items.setdefault(title, []).append(item)
    return items


def _write(
    scorer: TitleScorer, users: Float[Tensor, "users dim"], prompts: Prompts, stop: Stop, k: int, max_tokens: int
) -> list[list[Written]]:
    if k < 1:
        raise InputError(f"got k = {k}, expected at least 1.")
    with torch.no_grad():
        soft = project(scorer.soft_tokens, users, scorer.item_inputs, prompts.soft_items)
    return write(scorer.llm, prompts, soft, stop, k=k, max_tokens=max_tokens)


def _quoted(text: str) -> str:
    parts = text.split('"')
    return (parts[1] if len(parts) > 1 else text).strip()


def _title(catalogue: Catalogue, written: Written, items_of: dict[str, list[int]], listed: set[int]) -> WrittenTitle:
    title = _quoted(written.text)
    # A title that was broken off may equal a shorter one by chance.
    items = items_of.get(title, []) if written.is_whole else []
    ids = [catalogue.item_ids[item] for item in items]
    return WrittenTitle(title, written.log_prob, ids, bool(ids), not listed.isdisjoint(items))


def _genres(written: Written, known: dict[str, str]) -> WrittenGenres:
    named = []
    for part in _split(r"[,;|]", written.text):
        # A genre may have an "and" of its own, so that is tried whole.
        named += [part] if part.casefold() in known else _split(r"(?:^|\s)and\s", part)
    distinct = list(dict.fromkeys(known.get(name.casefold(), name) for name in named))
    genres = set(known.values())
    return WrittenGenres(
        written.text,
        written.log_prob,
        [name for name in distinct if name in genres],
        [name for name in distinct if name not in genres],
    )


def _split(separator: str, text: str) -> list[str]:
    parts = [part.strip(" \t\n.:\"'") for part in re.split(separator, text)]
    return [part for part in parts if part]
