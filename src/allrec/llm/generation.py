"""Generation: the title or genres that the language model writes for a user, held against the catalogue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.catalogue import Catalogue
from allrec.errors import InputError
from allrec.llm.prompt import CLOSING, GENRES, Prompts
from allrec.llm.soft_tokens import embed_prompts, project
from allrec.llm.title_scorer import TitleScorer

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel


class Stop(NamedTuple):
    """A text is complete once it holds ``number`` of these characters."""

    marks: str
    number: int


TITLE_STOP = Stop('"', 2)
"""The quote that closes a title."""
LIST_STOP = Stop(".\n", 1)
"""A full stop or a new line behind a list."""


class Written(NamedTuple):
    """What a model wrote.

    Attributes:
        text: up to its end, white space around it gone.
        log_prob: of its tokens given the prompt, their sum in nats.
        is_whole: whether it came to its end before the tokens ran out.
    """

    text: str
    log_prob: float
    is_whole: bool


def write(
    llm: LanguageModel,
    prompts: Prompts,
    soft: Float[Tensor, "soft dim"],
    stop: Stop,
    *,
    k: int = 1,
    max_tokens: int = 48,
) -> list[list[Written]]:
    """What a frozen language model writes behind each prompt; nothing keeps it to the catalogue.

    Args:
        llm: the frozen language model.
        prompts: a prompt a user.
        soft: soft tokens in the order of ``prompts.soft_items``.
        stop: where a text ends; the end of sequence ends it too.
        k: texts a prompt: the likeliest token each time for 1, else the k best of a beam of k.
        max_tokens: no text is longer, nor longer than the model's room behind the longest prompt.

    Returns:
        For each prompt k texts, likeliest first.

    Raises:
        InputError: a prompt leaves no room.
    """
    lengths = prompts.tokens.lengths
    max_tokens = min(max_tokens, llm.max_length - int(lengths.max()))
    if max_tokens < 1:
        raise InputError(f"a prompt of {lengths.max()} tokens leaves a model of {llm.max_length} no room to write.")
    embeddings = embed_prompts(llm, prompts, soft)
    # Padding goes to the left, so that all rows are written on at the same place.
    places = np.arange(embeddings.shape[1]) - (embeddings.shape[1] - lengths[:, None])
    moved = embeddings[torch.arange(len(lengths))[:, None], torch.from_numpy(places.clip(min=0))]
    is_read = torch.from_numpy(places >= 0).to(llm.device)
    is_ended = partial(_ended, count_marks(llm, stop.marks), llm.end[0], stop.number)
    ids, log_probs = llm.write(moved, is_read, lambda rows: is_ended(rows)[:, -1], k=k, max_tokens=max_tokens)
    return [_texts(llm, *row) for row in zip(ids, log_probs, is_ended(ids), strict=True)]


def count_marks(llm: LanguageModel, marks: str) -> Int[Tensor, "vocabulary"]:
    """How many of these characters the text of each token holds."""
    texts = llm.decode([[token] for token in range(llm.num_tokens)])
    counts = [sum(text.count(mark) for mark in marks) for text in texts]
    return torch.tensor(counts + [0] * (llm.vocabulary - len(counts)), device=llm.device)


def _ended(
    num_marks: Int[Tensor, "vocabulary"], end: int, number: int, ids: Int[Tensor, "*rows written"]
) -> Bool[Tensor, "*rows written"]:
    """Whether a text is whole with this token."""
    return (num_marks[ids].cumsum(-1) >= number) | ((ids == end).cumsum(-1) > 0)


def _texts(
    llm: LanguageModel,
    ids: Int[Tensor, "k written"],
    log_probs: Float[Tensor, "k written"],
    is_ended: Bool[Tensor, "k written"],
) -> list[Written]:
    is_own = is_ended.cumsum(-1) - is_ended.long() == 0
    texts = llm.decode([row[own].tolist() for row, own in zip(ids, is_own, strict=True)])
    sums = log_probs.masked_fill(~is_own, 0).sum(-1).tolist()
    return [Written(text.strip(), *of) for text, *of in zip(texts, sums, is_ended.any(-1).tolist(), strict=True)]


Task = Literal["title", "genres"]
TASKS: tuple[Task, ...] = ("title", "genres")
GENRE_TOKENS = 32
"""No list of genres is longer, in tokens."""


@dataclass(frozen=True)
class WrittenTitle:
    """A title that the language model wrote.

    Attributes:
        title: the text between the quotes; all that was written where there are none.
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
