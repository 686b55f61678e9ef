"""Plain decoding: what the frozen language model writes behind a prompt, greedily or as the best of a beam."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allrec.errors import InputError
from allrec.llm.likelihood import embed_prompts
from allrec.llm.prompt import Prompts

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel


class Stop(NamedTuple):
    """A text is whole once it holds so many of these characters."""

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
