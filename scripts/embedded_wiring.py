"""The weights of the embedded language models: a circuit that chooses a title by a vector and copies it.

Training from noise finds copying after many hundred steps and choosing much later, if at all. Both are compositions of
lookups that can be written down, so attention heads are those lookups:

    layer 0   two heads read the tokens one and two places before, and marks such as: behind an opening quote
              one reads a tag, the vector nearest before, which all tokens of a title share and no other title has
    layer 1   one head fetches the user's vector, the place behind the latest beginning, to every token
              one fetches a title's first token and its tag to the place of its vector, behind the closing quote
              one tells the vectors behind the word that announces the candidates that they are theirs
    layer 2   two heads find the candidate whose vector is the user's: one says its first token where a quote has just
              been opened, and that is the answer; one brings its tag to every token of the answer
              one reads the token three places before
    layer 3   one head copies the token that followed the last three tokens earlier, under that tag (induction)

Every lookup reads and writes coordinates of its own, so that none drowns another. A head that should find nothing looks
at the beginning, whose content is zero. Gains are in units of attention score; all else is faint noise. ``SIZES`` are
the circuits that ship: one wiring, longer or shorter codes.
"""

from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

BASE = 1e24
"""Base of the rotary positions: a head's first pairs tell places apart, all others hardly turn within a prompt."""
NEAR_PAIRS = 32
"""Strengths by pair are told for a head of so many pairs; a wider head takes every second one."""
STEADY_FROM = 5
"""Of ``NEAR_PAIRS`` the first that a lookup by content may use."""
NORM_DIM = 210
"""Gains are meant for places whose squared length is this after normalisation, whatever the width."""


@dataclass(frozen=True)
class Size:
    """How wide a circuit is. Longer codes tell more tokens apart, and more of a vector tells items apart.

    Attributes:
        width: coordinates of the residual stream.
        head_dim: coordinates of each of the three heads.
        code: length of a token's code, and of the part of a vector by which an item is chosen.
        short: length of what the next two places remember of a token.
        brief: length of what the third one remembers, and of a tag.
    """

    width: int
    head_dim: int
    code: int
    short: int
    brief: int


SIZES = {"embedded-small": Size(210, 64, 42, 13, 12), "embedded-large": Size(420, 128, 93, 26, 25)}


class Places:
    """Which coordinates of the residual stream hold what.

    A place holds a token's code, or a vector; parts of it are what other places remember of it.
    """

    def __init__(self, size: Size) -> None:
        self._end = 0
        self.content = self._next(size.code)
        self.short = slice(0, size.short)
        marks = self._next(6)
        self.is_token, self.is_begin, self.is_open, self.is_close, self.behind_begin, self.behind_open = _each(marks)
        self.one_before, self.two_before = self._next(size.short), self._next(size.short)
        self.tag = self._next(size.brief)
        # A vector's place needs the first token, all others the user.
        self.user = self.first_token = self._next(size.code)
        self.title_tag = self._next(size.brief)
        self.is_listing, self.is_listed = _each(self._next(2))
        self.output = self._next(size.code)
        self.behind_close, self.is_plain, self.is_last, self.behind_token = _each(self._next(4))
        self._next(1)
        self.three_before = self._next(size.brief)
        if self._end > size.width:
            raise ValueError(f"the circuit takes {self._end} coordinates, and the model has {size.width}")

    def _next(self, count: int) -> slice:
        self._end += count
        return slice(self._end - count, self._end)


CODE, MARK, BEGIN_MARK = 1.6, 3.0, 10.0
"""Lengths of a token's code and of its marks."""
CODE_SHARES = (13 / 42, 29 / 42)
"""How much of a code's squared length is in what other places remember of a token, and in the rest of it."""
HEAD_GAIN, MARKED_GAIN = 2.0, 3.0
"""Logits a unit of the normalised output, and of the marks that say which token must come next."""

CHOICE = 8.0
"""How sharply an item is chosen by its vector."""
LISTING_GAIN, BEGIN_GAIN, LISTED, LISTED_GAIN = 0.25, 0.7, 0.25, 5.0
"""Of the announcement of candidates and of the beginning in attention, of the note behind it, and of that note."""


def wire(
    model: LlamaForCausalLM,
    generator: torch.Generator,
    size: Size,
    *,
    begin: int,
    end: int,
    open_quote: int,
    close_quote: int,
    listing: int,
    last: int,
) -> None:
    """Overwrites a fresh model's weights with the circuit.

    Args:
        model: a Llama of four layers with three heads, as wide as ``size`` says, with attention biases and an output
            table of its own.
        generator: draws the tokens' codes and the noise that training begins from.
        size: lengths of codes and vectors.
        begin: id of the token that begins a prompt.
        end: id of the token that ends an answer.
        open_quote: id of the token before a title.
        close_quote: id of the token after a title.
        listing: id of a token of the wording that stands between the history and the candidates, and nowhere else.
        last: id of the last token before an answer's opening quote.
    """
    with torch.no_grad():
        wiring = _Wiring(model, generator, size)
        wiring.quieten()
        wiring.write_codes(begin, end, open_quote, close_quote, listing, last)
        wiring.look_back()
        wiring.fetch()
        wiring.note_list()
        wiring.choose()
        wiring.recall_tag()
        wiring.look_further_back()
        wiring.copy()


class _Wiring:
    def __init__(self, model: LlamaForCausalLM, generator: torch.Generator, size: Size) -> None:
        self.generator, self.model, self.size, self.at = generator, model, size, Places(size)
        self.attention = [layer.self_attn for layer in model.model.layers]
        self.head_dim, self.pairs = size.head_dim, size.head_dim // 2
        self.stride = self.pairs // NEAR_PAIRS
        steady = torch.arange(STEADY_FROM * self.stride, self.pairs)
        self.steady = torch.cat([steady, steady + self.pairs])

    def quieten(self) -> None:
        """Heads that are not wired, and all MLPs, begin as faint noise."""
        for layer in self.model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear, deviation in (
                (attention.q_proj, 0.03), (attention.k_proj, 0.03), (attention.v_proj, 0.03), (attention.o_proj, 0.002),
                (mlp.gate_proj, 0.05), (mlp.up_proj, 0.05), (mlp.down_proj, 0.003),
            ):  # fmt: skip
                linear.weight.normal_(0.0, deviation, generator=self.generator)
                if linear.bias is not None:
                    linear.bias.zero_()
        for name, weight in self.model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_((NORM_DIM / self.size.width) ** 0.5)

    def write_codes(self, begin: int, end: int, open_quote: int, close_quote: int, listing: int, last: int) -> None:
        """A random code a token, the same where it is read and where it is written; and marks on a few tokens."""
        at = self.at
        table, head = self.model.get_input_embeddings().weight, self.model.lm_head.weight
        table.zero_()
        head.zero_()
        codes = torch.randn(len(table), self.size.code, generator=self.generator)
        parts = codes.split([self.size.short, self.size.code - self.size.short], dim=1)
        for part, share in zip(parts, CODE_SHARES, strict=True):
            part *= share**0.5 / part.norm(dim=1, keepdim=True)
        table[:, at.content] = codes * CODE
        table[:, [at.is_token, at.is_plain]] = MARK
        head[:, at.output] = codes * HEAD_GAIN
        table[begin, at.content] = 0
        table[begin, at.is_token] = 0
        marked = ((begin, at.is_begin), (open_quote, at.is_open), (close_quote, at.is_close), (last, at.is_last))
        for token, place in marked:
            table[token, place] = BEGIN_MARK if token == begin else MARK
            table[token, at.is_plain] = 0
        table[listing, at.is_listing] = MARK
        head[end, at.is_close] = MARKED_GAIN
        head[open_quote, at.is_last] = MARKED_GAIN

    def look_back(self) -> None:
        at = self.at
        for head, (distance, part) in enumerate(((1, at.one_before), (2, at.two_before))):
            self.clear(0, head)
            self.near(0, head, distance, {0: 30.0, 1: 20.0, 2: 10.0, 3: 10.0})
            self.pass_on(0, head, slice(0, _size(part)), part, 0.35)
        self.clear(0, 2)
        self.near(0, 2, 0, {1: 3.0, 2: 60.0, 3: 110.0})
        self.prefer(0, 2, 0, {at.is_token: -12.0, at.is_begin: -12.0})
        self.pass_on(0, 2, slice(0, _size(at.tag)), at.tag, 0.4)
        marks = (
            (at.is_begin, at.behind_begin), (at.is_open, at.behind_open), (at.is_close, at.behind_close),
            (at.is_token, at.behind_token),
        )  # fmt: skip
        for row, (mark, behind) in enumerate(marks, start=_size(at.one_before)):
            self.mark(0, row, mark, behind, 0.1 if behind == at.behind_token else 0.4)

    def mark(self, head: int, row: int, mark: int, behind: int, gain: float) -> None:
        self.attention[0].v_proj.weight[head * self.head_dim + row, mark] = 1.0
        self.attention[0].o_proj.weight[behind, head * self.head_dim + row] = gain

    def fetch(self) -> None:
        """The user's vector comes to tokens, a title's first token and tag to its vector's place."""
        at = self.at
        self.clear(1, 0)
        self.near(1, 0, 0, {2: 60.0, 3: 60.0})
        self.prefer(1, 0, 0, {at.behind_begin: 28.0})
        self.prefer(1, 0, 1, {at.is_begin: 8.0}, query={at.behind_close: 1.0}, bias=-5.0)
        self.pass_on(1, 0, at.content, at.user, 0.2)
        self.clear(1, 1)
        self.near(1, 1, 0, {1: 3.0, 2: 60.0, 3: 110.0})
        self.prefer(1, 1, 0, {at.behind_open: 14.0})
        self.prefer(1, 1, 1, {at.is_begin: 9.0}, query={at.behind_close: -1.0}, bias=5.0)
        self.pass_on(1, 1, at.content, at.first_token, 0.35)
        rows = slice(self.head_dim + _size(at.content), self.head_dim + _size(at.content) + _size(at.tag))
        self.attention[1].v_proj.weight[rows, at.tag] = torch.eye(_size(at.tag))
        self.attention[1].o_proj.weight[at.title_tag, rows] = torch.eye(_size(at.tag)) * 0.6

    def note_list(self) -> None:
        """Tells a title's vector that it is a candidate's; other places look at the beginning, which says nothing."""
        at = self.at
        self.clear(1, 2)
        self.prefer(1, 2, 0, {at.is_listing: LISTING_GAIN}, query={at.behind_close: 1.0}, bias=0.0)
        self.prefer(1, 2, 1, {at.is_begin: BEGIN_GAIN})
        self.attention[1].v_proj.weight[2 * self.head_dim, at.is_listing] = 1.0
        self.attention[1].o_proj.weight[at.is_listed, 2 * self.head_dim] = LISTED

    def choose(self) -> None:
        """Where a quote has just been opened, finds the item whose vector is the user's and says its first token."""
        at = self.at
        self.clear(2, 0)
        free = self.match(2, 0, 0, at.user, at.content, CHOICE)
        self.prefer(2, 0, free, {at.behind_close: 4.0, at.is_listed: LISTED_GAIN})
        self.prefer(2, 0, free + 1, {at.is_begin: 1.5}, query={at.is_open: -1.0}, bias=8.0)
        self.pass_on(2, 0, at.first_token, at.output, 2.0)

    def recall_tag(self) -> None:
        """Brings the chosen title's tag to every token of the answer."""
        at = self.at
        self.clear(2, 1)
        free = self.match(2, 1, 0, at.user, at.content, CHOICE)
        self.prefer(2, 1, free, {at.behind_close: 4.0, at.is_listed: LISTED_GAIN})
        self.pass_on(2, 1, at.title_tag, at.title_tag, 0.1)

    def look_further_back(self) -> None:
        at = self.at
        self.clear(2, 2)
        self.near(2, 2, 1, {0: 30.0, 1: 20.0, 2: 10.0, 3: 10.0})
        self.pass_on(2, 2, self.beginning(at.two_before), at.three_before, 0.9)

    def copy(self) -> None:
        at = self.at
        self.clear(3, 0)
        never = {at.is_close: 1.0, at.is_open: 1.0, at.is_last: 1.0}
        free = self.match(3, 0, 0, at.short, at.one_before, 3.2)
        free = self.match(3, 0, free, at.one_before, at.two_before, 3.04)
        free = self.match(3, 0, free, self.beginning(at.two_before), at.three_before, 1.5)
        free = self.match(3, 0, free, at.title_tag, at.tag, 2.0)
        self.prefer(3, 0, free, {at.is_begin: 0.3}, query=never, bias=0.0)
        self.prefer(3, 0, free + 1, {at.is_token: 3.0, at.behind_token: 6.0, at.is_begin: 5.4, at.behind_close: -6.0})
        self.pass_on(3, 0, at.content, at.output, 2.0)

    def beginning(self, part: slice) -> slice:
        return slice(part.start, part.start + self.size.brief)

    def clear(self, layer: int, head: int) -> None:
        rows, attention = slice(head * self.head_dim, (head + 1) * self.head_dim), self.attention[layer]
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight[rows] = 0
            linear.bias[rows] = 0
        attention.o_proj.weight[:, rows] = 0

    def pass_on(self, layer: int, head: int, read: slice, write: slice, gain: float) -> None:
        rows = slice(head * self.head_dim, head * self.head_dim + _size(write))
        self.attention[layer].v_proj.weight[rows, read] = torch.eye(_size(write))
        self.attention[layer].o_proj.weight[write, rows] = torch.eye(_size(write)) * gain

    def near(self, layer: int, head: int, distance: float, strengths: dict[int, float]) -> None:
        """Adds to a place's score the sum over pairs of strength · cos(angle from ``distance`` places back)."""
        attention = self.attention[layer]
        for pair, strength in strengths.items():
            length = self.length(strength)
            angle = torch.tensor(BASE ** (-pair / NEAR_PAIRS) * -distance)
            first = head * self.head_dim + pair * self.stride
            second = first + self.pairs
            attention.k_proj.bias[first] = length
            attention.q_proj.bias[first] = length * angle.cos()
            attention.q_proj.bias[second] = length * angle.sin()

    def match(self, layer: int, head: int, start: int, query: slice, key: slice, gain: float) -> int:
        """Adds gain · x[query] · y[key] to the score; returns the head's next free steady coordinate."""
        rows = head * self.head_dim + self.steady[start : start + _size(query)]
        attention, length = self.attention[layer], self.length(gain)
        attention.q_proj.weight[rows, query] = torch.eye(_size(query)) * length
        attention.k_proj.weight[rows, key] = torch.eye(_size(query)) * length
        return start + _size(query)

    def length(self, gain: float) -> float:
        # Scores are divided by the root of the head's width, and a gain is the product of a query's and a key's weight.
        return (gain * self.head_dim**0.5) ** 0.5

    def prefer(
        self,
        layer: int,
        head: int,
        place: int,
        keys: dict[int, float],
        query: dict[int, float] | None = None,
        bias: float = 1.0,
    ) -> None:
        """Adds (bias + query · x) · (keys · y) to the score, through one steady coordinate."""
        row, attention, length = head * self.head_dim + int(self.steady[place]), self.attention[layer], self.length(1.0)
        attention.q_proj.bias[row] = bias * length
        for coordinate, weight in (query or {}).items():
            attention.q_proj.weight[row, coordinate] = weight * length
        for coordinate, weight in keys.items():
            attention.k_proj.weight[row, coordinate] = weight * length


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def _each(part: slice) -> range:
    return range(part.start, part.stop)
