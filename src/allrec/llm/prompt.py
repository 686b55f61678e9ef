"""The prompt of stage 2: what the language model reads about a user, and the places of the soft tokens in it.

A prompt is a list of pieces: wording, titles, markers. Every piece is turned into token ids once; a prompt is then put
together from ids, and the places of its soft tokens are known because we laid them out. Nothing is searched for in
text, so a title may say anything.

    [begin] USER is a user representation. This user has bought "Title" ITEM, "Title" ITEM before. Recommend one item
    for this user to buy next, out of these item titles: "Title" ITEM, "Title" ITEM. The recommendation is "Title" [end]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from pydantic import Field

from allrec.errors import Config, InputError, Wording

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

Encode = Callable[[list[str]], list[list[int]]]
Row = Sequence[int] | Int[ndarray, "length"]
Rows = Sequence[Row] | Int[ndarray, "rows length"]
USER = -1
"""Stands in ``soft_items`` where the user's soft token goes."""
BEGIN, MARKER, COMMA, END, OPENING, HISTORY_END, NEWCOMER, CANDIDATES, CLOSING, GENRES = range(10)
FIRST_TITLE = 10
BESIDE_TITLES = ("after", "before")
"""Places of soft tokens that belong to titles, listed candidates' included."""
IN_HISTORY = (*BESIDE_TITLES, "instead")
"""Places of soft tokens among what the user has had."""


class PromptConfig(Config):
    """How a prompt is laid out."""

    max_history: int = Field(
        10, ge=0, description="Items of the history in the prompt, the latest, at most (the paper: 10)."
    )
    max_title_tokens: int = Field(
        48, ge=4, description="Tokens of a title at most, quotes included; a longer one is cut."
    )
    soft_token: Literal["after", "before", "instead", "last", "none"] = Field(
        "after",
        description="Place of an item's soft token: after its title (the paper), before it, nowhere, or, of the "
        "history alone, in place of its title, or behind the whole text, right before the answer.",
    )
    has_user: bool = Field(True, description="Whether the prompt has the user's soft token.")
    user_place: Literal["first", "history", "last"] = Field(
        "first",
        description="Place of the user's soft token: it begins the prompt (the paper), follows the titles of the "
        "history as if it were one more, or ends the prompt, as it does for a user without a history, too.",
    )
    lists_candidates: bool | None = Field(
        None,
        description="Whether the candidates' titles are listed (the paper); none lists them from a billion weights on.",
    )

    @property
    def is_bare(self) -> bool:
        """Whether there is no soft token at all, so that stage 2 has nothing to learn."""
        return self.soft_token == "none" and not self.has_user

    @property
    def has_both(self) -> bool:
        """Whether the user and the items have soft tokens, so that one can be looked for among the others."""
        return self.soft_token != "none" and self.has_user


@dataclass(frozen=True)
class Packed:
    """Rows of different lengths, one behind the other: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: Int[ndarray, "total"]
    offsets: Int[ndarray, "rows+1"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Packed":
        """Packs a list of lists."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        values = np.fromiter((value for row in rows for value in row), np.int64, int(lengths.sum()))
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def lengths(self) -> Int[ndarray, "rows"]:
        """The number of values in each row."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Int[ndarray, "length"]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def rows(self) -> Int[ndarray, "total"]:
        """The row of each value."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def places(self) -> Int[ndarray, "total"]:
        """The place of each value in its row."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)

    def take(self, rows: Int[ndarray, "chosen"]) -> "Packed":
        """The chosen rows, in their order, repeats allowed; no loop over rows."""
        return self._slices(self.offsets[rows], self.lengths[rows])

    def cut(self, starts: Int[ndarray, "rows"], lengths: Int[ndarray, "rows"]) -> "Packed":
        """A slice of each row, ``lengths`` values from ``starts`` on; no loop over rows."""
        return self._slices(self.offsets[:-1] + starts, lengths)

    def _slices(self, starts: Int[ndarray, "rows"], lengths: Int[ndarray, "rows"]) -> "Packed":
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Packed(self.values[np.repeat(starts, lengths) + within], offsets)

    def followed_by(self, other: "Packed") -> "Packed":
        """Row i of both, one behind the other."""
        stacked = Packed(
            np.concatenate([self.values, other.values]),
            np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
        )
        taken = stacked.take(np.arange(2 * len(self)).reshape(2, -1).T.ravel())
        return Packed(taken.values, taken.offsets[::2])

    @property
    def is_real(self) -> Bool[ndarray, "rows width"]:
        """Which places of ``padded`` hold a value."""
        is_real: Bool[ndarray, "rows width"] = np.arange(self.lengths.max(initial=0)) < self.lengths[:, None]
        return is_real

    def padded(self) -> ndarray:
        """The rows as a table, padded with zeros on the right."""
        is_real = self.is_real
        table = np.zeros(is_real.shape, self.values.dtype)
        table[is_real] = self.values
        return table


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts: token ids, which of the places are soft, and whose soft token goes there."""

    tokens: Packed
    is_soft: Bool[ndarray, "total"]
    soft_items: Int[ndarray, "soft"]
    """Item positions in the order of the soft places; ``USER`` for a user."""

    def followed_by(self, answers: Packed) -> "Prompts":
        """Each prompt with its answer behind it, where nothing is soft."""
        plain = Packed(np.zeros(len(answers.values), bool), answers.offsets)
        is_soft = Packed(self.is_soft, self.tokens.offsets).followed_by(plain)
        return Prompts(self.tokens.followed_by(answers), is_soft.values, self.soft_items)

    @cached_property
    def soft_offsets(self) -> Int[ndarray, "rows+1"]:
        """The soft tokens of row i are ``soft_offsets[i]`` to ``soft_offsets[i + 1]`` among all."""
        offsets: Int[ndarray, "rows+1"] = np.concatenate([[0], np.cumsum(self.is_soft)])[self.tokens.offsets]
        return offsets


class PromptBuilder:
    """Lays out prompts over one catalogue.

    Args:
        encode: texts to token ids, without special tokens; text that looks like a special token is plain text to it.
        titles: a title an item, None where there is none.
        wording: how the data set speaks of its items.
        config: the layout.
        begin: token ids that open every prompt (empty where the model has none).
        end: token ids that end an answer.
        max_length: the language model's limit, in tokens, prompt and answer together.
    """

    def __init__(
        self,
        encode: Encode,
        titles: Sequence[str | None],
        wording: Wording,
        config: PromptConfig,
        *,
        begin: Sequence[int],
        end: Sequence[int],
        max_length: int,
    ) -> None:
        if not end:
            raise InputError("the tokenizer has no end-of-sequence token; an answer could never end. Choose another.")
        self.config = config
        self.max_length = max_length
        self._given: dict[str, Any] = {
            "encode": encode, "titles": titles, "wording": wording,
            "begin": begin, "end": end, "max_length": max_length,
        }  # fmt: skip
        spoken = [*wording_pieces(wording, config), genre_question(wording)]
        fixed = [*begin], [end[0]], *encode([","]), [*end], *encode(spoken)
        self.pieces = Packed.of([*fixed, *title_tokens(encode, titles, wording, config)])
        self._lengths = self.pieces.lengths

    @classmethod
    def of(
        cls, llm: "LanguageModel", titles: Sequence[str | None], wording: Wording, config: PromptConfig
    ) -> "PromptBuilder":
        """For a language model: with its tokens and its limit."""
        return cls(llm.encode, titles, wording, config, begin=llm.begin, end=llm.end, max_length=llm.max_length)

    def bare(self) -> "PromptBuilder":
        """Of the same prompts without any soft token."""
        config = self.config.model_copy(update={"soft_token": "none", "has_user": False})
        return PromptBuilder(config=config, **self._given)

    @property
    def lists_candidates(self) -> bool:
        """Whether prompts list candidates; where that was left open they do, as in the paper."""
        return self.config.lists_candidates is not False

    @property
    def shares_beginnings(self) -> bool:
        """Whether the prompts of a user's targets begin alike: with nothing of their own before the last title."""
        begins_alike = not self.config.has_user or self.config.user_place != "first"
        return begins_alike and self.config.soft_token not in IN_HISTORY and not self.lists_candidates

    @property
    def num_end(self) -> int:
        """Tokens that end an answer behind its title."""
        return int(self._lengths[END])

    @property
    def title_lengths(self) -> Int[ndarray, "items"]:
        """Tokens of each item's title, quotes included."""
        return self._lengths[FIRST_TITLE:]

    def fits(self, candidates: Int[ndarray, "rows candidates"]) -> bool:
        """Whether every row of candidates, -1 pads, can be listed in a prompt that the model reads."""
        return bool(self.fits_each(candidates).all())

    def fits_each(self, candidates: Int[ndarray, "rows candidates"]) -> Bool[ndarray, "rows"]:
        """Which rows of candidates, -1 pads, can be listed in a prompt that the model reads, history left out."""
        is_listed = (candidates >= 0) & self.lists_candidates
        num_listed = is_listed.sum(axis=1)
        titles = np.where(is_listed, self.title_lengths[candidates], 0)
        around = self._lengths[COMMA] + self._lengths[MARKER] * (self.config.soft_token in BESIDE_TITLES)
        listing = self._lengths[CANDIDATES] + titles.sum(axis=1) + around * num_listed - self._lengths[COMMA]
        # The answer is one of the titles, at worst the longest.
        longest = np.where(num_listed > 0, titles.max(axis=1, initial=0), self.config.max_title_tokens)
        bare = self._lengths[self._pieces([], [])].sum() + self._lengths[END]
        return bare + np.where(num_listed > 0, listing, 0) + longest <= self.max_length

    def answers(self, items: Int[ndarray, "rows"]) -> Packed:
        """The answer for each item: its title between quotes, then the end of the sequence.

        Raises:
            ValueError: an item is none; -1 pads and has no answer.
        """
        if np.min(items, initial=0) < 0:
            raise ValueError(f"item {np.min(items)} has no title; cut the padding away first")
        rows = np.stack([np.asarray(items) + FIRST_TITLE, np.full(len(items), END)], axis=1).ravel()
        taken = self.pieces.take(rows)
        return Packed(taken.values, taken.offsets[::2])

    def prompts(self, histories: Rows, candidates: Rows, closing: int = CLOSING) -> Prompts:
        """Lays out a prompt a user.

        Args:
            histories: item positions, oldest first, -1 pads; the latest that fit enter the prompt.
            candidates: item positions in the order in which they are listed, where the layout lists them; may be
                empty, and -1 pads.
            closing: the piece that the answer follows: ``CLOSING`` asks for a title, ``GENRES`` for genres.

        Raises:
            InputError: the candidates alone outgrow the model.
        """
        rows = [self._row(history, listed, closing) for history, listed in zip(histories, candidates, strict=True)]
        lengths = np.array([len(row) for row, _ in rows], np.int64)
        pieces = np.concatenate([np.array(row, np.int64) for row, _ in rows]) if rows else np.zeros(0, np.int64)
        taken = self.pieces.take(pieces)
        offsets = taken.offsets[np.concatenate([[0], np.cumsum(lengths)])]
        is_soft = np.repeat(pieces == MARKER, taken.lengths)
        soft_items = np.array([item for _, items in rows for item in items], np.int64)
        return Prompts(Packed(taken.values, offsets), is_soft, soft_items)

    def _row(self, history: Row, candidates: Row, closing: int) -> tuple[list[int], list[int]]:
        history = [int(item) for item in history if item >= 0]
        history = history[max(0, len(history) - self.config.max_history) :]
        candidates = [int(item) for item in candidates if item >= 0 and self.lists_candidates]
        room = self.max_length - self._length([], candidates)
        if room < 0:
            raise InputError(
                f"{len(candidates)} candidates need {self.max_length - room} tokens, the model reads {self.max_length}."
                " Give fewer candidates, or lower prompt.max_title_tokens."
            )
        while history and self._length(history, candidates) > self.max_length:
            history = history[1:]
        pieces = self._pieces(history, candidates, closing)
        return pieces, self._soft(history, candidates)

    def _length(self, history: list[int], candidates: list[int]) -> int:
        answer = max((self._lengths[FIRST_TITLE + item] for item in candidates), default=self.config.max_title_tokens)
        return int(self._lengths[self._pieces(history, candidates)].sum() + answer + self._lengths[END])

    def _soft(self, history: list[int], candidates: list[int]) -> list[int]:
        """Whose the soft tokens are, in the order of their places."""
        places, kind = self._user_places(bool(history)), self.config.soft_token
        among = history if kind in IN_HISTORY else []
        listed = candidates if kind in BESIDE_TITLES else []
        behind = history if kind == "last" else []
        first, one_more, last = ([USER] * count for count in places)
        return [*first, *among, *one_more, *listed, *behind, *last]

    def _user_places(self, has_history: bool) -> tuple[int, int, int]:
        """How many soft tokens of the user begin the prompt, follow the history's titles, and end the prompt."""
        place = self.config.user_place if has_history or self.config.user_place == "first" else "last"
        has_user = self.config.has_user
        return (
            int(has_user and place == "first"),
            int(has_user and place == "history"),
            int(has_user and place == "last"),
        )

    def _pieces(self, history: list[int], candidates: list[int], closing: int = CLOSING) -> list[int]:
        first, one_more, last = ([MARKER] * count for count in self._user_places(bool(history)))
        behind = [MARKER] * len(history) if self.config.soft_token == "last" else []
        one_more = [COMMA, *one_more] if one_more else []
        titles = [MARKER - FIRST_TITLE] * len(history) if self.config.soft_token == "instead" else history
        past = [OPENING, *self._listing(titles), *one_more, HISTORY_END] if history else [NEWCOMER]
        listed = [CANDIDATES, *self._listing(candidates)] if candidates else []
        return [BEGIN, *first, *past, *listed, closing, *behind, *last]

    def _listing(self, items: list[int]) -> list[int]:
        return [piece for item in items for piece in (*self._named(FIRST_TITLE + item), COMMA)][:-1]

    def _named(self, title: int) -> tuple[int, ...]:
        places = {"after": (title, MARKER), "before": (MARKER, title)}
        return places.get(self.config.soft_token, (title,))


def wording_pieces(wording: Wording, config: PromptConfig) -> tuple[str, ...]:
    """The wording before a history, after it, in place of an empty one, before candidates, and before the answer."""
    is_told = config.has_user and config.user_place == "first"
    user = " is a user representation." if is_told else ""
    return (
        f"{user} This user has {wording.past}",
        " before",
        f"{user} This user is new",
        f". Recommend one {wording.noun} for this user to {wording.verb} next, out of these {wording.noun} titles:",
        ". The recommendation is",
    )


def genre_question(wording: Wording) -> str:
    """What the genres that a user likes follow."""
    return f". The {wording.noun} genres that this user likes are"


def title_tokens(
    encode: Encode, titles: Sequence[str | None], wording: Wording, config: PromptConfig
) -> list[list[int]]:
    """Token ids of each title between quotes, with the space before it; a long one loses its end, not its quote."""
    spoken = [f"untitled {wording.noun}" if title is None else title.replace('"', "'") for title in titles]
    quote = encode(['"'])[0]
    keep = config.max_title_tokens - len(quote)
    rows = encode([f' "{title}"' for title in spoken])
    return [row if len(row) <= config.max_title_tokens else row[:keep] + quote for row in rows]
