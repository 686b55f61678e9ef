"""The weights of the embedded language models: a circuit that chooses a title by a vector and copies it.

Training from noise finds copying after many hundred steps and choosing much later, if at all. Both are compositions of
lookups that can be written down, so attention heads are those lookups:

    layer 0   two heads read the tokens one and two places before, and marks such as: behind an opening quote
              one reads a tag, the vector nearest before, which all tokens of a title share and no other title has
    layer 1   one head fetches the user's vector, the place behind the latest beginning, to every token
              one fetches a title's first token and its tag to the place of its vector, behind the closing quote
              one reads the token three places before
    layer 2   two heads find the item whose vector is the user's: one says its first token where a quote has just been
              opened, and that is the answer; one brings its tag to every token of the answer
    layer 3   one head copies the token that followed the last three tokens earlier, under that tag (induction)

Every lookup reads and writes coordinates of its own, so that none drowns another. A head that should find nothing looks
at the beginning, whose content is zero. Gains are in units of attention score; all else is faint noise.
"""

import torch
from transformers import LlamaForCausalLM

BASE = 1e24
"""Base of the rotary positions: a head's first pairs tell places apart, all others hardly turn within a prompt."""
HEAD_DIM = 64
PAIRS = HEAD_DIM // 2
FIRST_STEADY = 5
STEADY = torch.cat([torch.arange(FIRST_STEADY, PAIRS), torch.arange(FIRST_STEADY, PAIRS) + PAIRS])
"""Coordinates of a head that a lookup by content may use."""

# Coordinates of the residual stream. A place holds a token's code; parts of it are what other places remember of it.
CONTENT = slice(0, 42)
SHORT = slice(0, 13)
IS_TOKEN, IS_BEGIN, IS_OPEN, IS_CLOSE, BEHIND_BEGIN, BEHIND_OPEN = range(42, 48)
ONE_BEFORE, TWO_BEFORE, THREE_BEFORE = slice(48, 61), slice(61, 74), slice(189, 201)
TAG, TITLE_TAG = slice(74, 86), slice(128, 140)
# A vector's place needs the first token, all others the user.
USER = FIRST_TOKEN = slice(86, 128)
OUTPUT = slice(142, 184)
BEHIND_CLOSE, IS_PLAIN, IS_LAST, BEHIND_TOKEN = range(184, 188)

CODE, MARK, BEGIN_MARK = 1.6, 3.0, 10.0
"""Lengths of a token's code and of its marks."""
HEAD_GAIN, MARKED_GAIN = 2.0, 3.0
"""Logits a unit of the normalised output, and of the marks that say which token must come next."""


def wire(
    model: LlamaForCausalLM,
    generator: torch.Generator,
    *,
    begin: int,
    end: int,
    open_quote: int,
    close_quote: int,
    last: int,
) -> None:
    """Overwrites a fresh model's weights with the circuit.

    Args:
        model: a Llama of four layers, at least 201 wide, with three heads of 64, attention biases and an output table
            of its own.
        generator: draws the tokens' codes and the noise that training begins from.
        begin: id of the token that begins a prompt.
        end: id of the token that ends an answer.
        open_quote: id of the token before a title.
        close_quote: id of the token after a title.
        last: id of the last token before an answer's opening quote.
    """
    with torch.no_grad():
        wiring = _Wiring(model, generator)
        wiring.quieten()
        wiring.write_codes(begin, end, open_quote, close_quote, last)
        wiring.look_back()
        wiring.fetch()
        wiring.choose()
        wiring.recall_tag()
        wiring.copy()


class _Wiring:
    def __init__(self, model: LlamaForCausalLM, generator: torch.Generator) -> None:
        self.generator, self.model = generator, model
        self.attention = [layer.self_attn for layer in model.model.layers]
        self.dim = model.config.hidden_size

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

    def write_codes(self, begin: int, end: int, open_quote: int, close_quote: int, last: int) -> None:
        """A random code a token, the same where it is read and where it is written; and marks on a few tokens."""
        table, head = self.model.get_input_embeddings().weight, self.model.lm_head.weight
        table.zero_()
        head.zero_()
        codes = torch.randn(len(table), 42, generator=self.generator)
        for part in codes.split([13, 29], dim=1):
            part *= (part.shape[1] / 42) ** 0.5 / part.norm(dim=1, keepdim=True)
        table[:, CONTENT] = codes * CODE
        table[:, [IS_TOKEN, IS_PLAIN]] = MARK
        head[:, OUTPUT] = codes * HEAD_GAIN
        table[begin, CONTENT] = 0
        table[begin, IS_TOKEN] = 0
        marked = ((begin, IS_BEGIN), (open_quote, IS_OPEN), (close_quote, IS_CLOSE), (last, IS_LAST))
        for token, place in marked:
            table[token, place] = BEGIN_MARK if token == begin else MARK
            table[token, IS_PLAIN] = 0
        head[end, IS_CLOSE] = MARKED_GAIN
        head[open_quote, IS_LAST] = MARKED_GAIN

    def look_back(self) -> None:
        for head, (distance, part) in enumerate(((1, ONE_BEFORE), (2, TWO_BEFORE))):
            self.clear(0, head)
            self.near(0, head, distance, {0: 30.0, 1: 20.0, 2: 10.0, 3: 10.0})
            self.pass_on(0, head, slice(0, _size(part)), part, 0.35)
        self.clear(0, 2)
        self.near(0, 2, 0, {1: 3.0, 2: 60.0, 3: 110.0})
        self.prefer(0, 2, 0, {IS_TOKEN: -12.0, IS_BEGIN: -12.0})
        self.pass_on(0, 2, slice(0, _size(TAG)), TAG, 0.4)
        marks = ((IS_BEGIN, BEHIND_BEGIN), (IS_OPEN, BEHIND_OPEN), (IS_CLOSE, BEHIND_CLOSE), (IS_TOKEN, BEHIND_TOKEN))
        for row, (mark, behind) in enumerate(marks, start=_size(ONE_BEFORE)):
            self.mark(0, row, mark, behind, 0.1 if behind == BEHIND_TOKEN else 0.4)

    def mark(self, head: int, row: int, mark: int, behind: int, gain: float) -> None:
        self.attention[0].v_proj.weight[head * HEAD_DIM + row, mark] = 1.0
        self.attention[0].o_proj.weight[behind, head * HEAD_DIM + row] = gain

    def fetch(self) -> None:
        """The user's vector comes to tokens, a title's first token and tag to its vector's place."""
        self.clear(1, 0)
        self.near(1, 0, 0, {2: 60.0, 3: 60.0})
        self.prefer(1, 0, 0, {BEHIND_BEGIN: 28.0})
        self.prefer(1, 0, 1, {IS_BEGIN: 8.0}, query={BEHIND_CLOSE: 1.0}, bias=-5.0)
        self.pass_on(1, 0, CONTENT, USER, 0.2)
        self.clear(1, 1)
        self.near(1, 1, 0, {1: 3.0, 2: 60.0, 3: 110.0})
        self.prefer(1, 1, 0, {BEHIND_OPEN: 14.0})
        self.prefer(1, 1, 1, {IS_BEGIN: 9.0}, query={BEHIND_CLOSE: -1.0}, bias=5.0)
        self.pass_on(1, 1, CONTENT, FIRST_TOKEN, 0.35)
        rows = slice(HEAD_DIM + _size(CONTENT), HEAD_DIM + _size(CONTENT) + _size(TAG))
        self.attention[1].v_proj.weight[rows, TAG] = torch.eye(_size(TAG))
        self.attention[1].o_proj.weight[TITLE_TAG, rows] = torch.eye(_size(TAG)) * 0.6
        self.clear(1, 2)
        self.near(1, 2, 1, {0: 30.0, 1: 20.0, 2: 10.0, 3: 10.0})
        self.pass_on(1, 2, slice(TWO_BEFORE.start, TWO_BEFORE.start + 12), THREE_BEFORE, 0.9)

    def choose(self) -> None:
        """Where a quote has just been opened, finds the item whose vector is the user's and says its first token."""
        self.clear(2, 0)
        free = self.match(2, 0, 0, USER, CONTENT, 4.0)
        self.prefer(2, 0, free, {BEHIND_CLOSE: 4.0})
        self.prefer(2, 0, free + 1, {IS_BEGIN: 1.5}, query={IS_OPEN: -1.0}, bias=8.0)
        self.pass_on(2, 0, FIRST_TOKEN, OUTPUT, 2.0)

    def recall_tag(self) -> None:
        """Brings the chosen title's tag to every token of the answer."""
        self.clear(2, 1)
        free = self.match(2, 1, 0, USER, CONTENT, 4.0)
        self.prefer(2, 1, free, {BEHIND_CLOSE: 4.0})
        self.pass_on(2, 1, TITLE_TAG, TITLE_TAG, 0.1)

    def copy(self) -> None:
        self.clear(3, 0)
        never = {IS_CLOSE: 1.0, IS_OPEN: 1.0, IS_LAST: 1.0}
        free = self.match(3, 0, 0, SHORT, ONE_BEFORE, 3.2)
        free = self.match(3, 0, free, ONE_BEFORE, TWO_BEFORE, 3.04)
        shorter = slice(TWO_BEFORE.start, TWO_BEFORE.start + 12)
        free = self.match(3, 0, free, shorter, THREE_BEFORE, 1.5)
        free = self.match(3, 0, free, TITLE_TAG, TAG, 2.0)
        self.prefer(3, 0, free, {IS_BEGIN: 0.3}, query=never, bias=0.0)
        self.prefer(3, 0, free + 1, {IS_TOKEN: 3.0, BEHIND_TOKEN: 6.0, IS_BEGIN: 5.4, BEHIND_CLOSE: -6.0})
        self.pass_on(3, 0, CONTENT, OUTPUT, 2.0)

    def clear(self, layer: int, head: int) -> None:
        rows, attention = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM), self.attention[layer]
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight[rows] = 0
            linear.bias[rows] = 0
        attention.o_proj.weight[:, rows] = 0

    def pass_on(self, layer: int, head: int, read: slice, write: slice, gain: float) -> None:
        rows = slice(head * HEAD_DIM, head * HEAD_DIM + _size(write))
        self.attention[layer].v_proj.weight[rows, read] = torch.eye(_size(write))
        self.attention[layer].o_proj.weight[write, rows] = torch.eye(_size(write)) * gain

    def near(self, layer: int, head: int, distance: float, strengths: dict[int, float]) -> None:
        """Adds to a place's score the sum over pairs of strength · cos(angle from ``distance`` places back)."""
        attention = self.attention[layer]
        for pair, strength in strengths.items():
            length = _length(strength)
            angle = torch.tensor(BASE ** (-pair / PAIRS) * -distance)
            first, second = head * HEAD_DIM + pair, head * HEAD_DIM + pair + PAIRS
            attention.k_proj.bias[first] = length
            attention.q_proj.bias[first] = length * angle.cos()
            attention.q_proj.bias[second] = length * angle.sin()

    def match(self, layer: int, head: int, start: int, query: slice, key: slice, gain: float) -> int:
        """Adds gain · x[query] · y[key] to the score; returns the head's next free steady coordinate."""
        rows = head * HEAD_DIM + STEADY[start : start + _size(query)]
        attention, length = self.attention[layer], _length(gain)
        attention.q_proj.weight[rows, query] = torch.eye(_size(query)) * length
        attention.k_proj.weight[rows, key] = torch.eye(_size(query)) * length
        return start + _size(query)

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
        row, attention, length = head * HEAD_DIM + int(STEADY[place]), self.attention[layer], _length(1.0)
        attention.q_proj.bias[row] = bias * length
        for coordinate, weight in (query or {}).items():
            attention.q_proj.weight[row, coordinate] = weight * length
        for coordinate, weight in keys.items():
            attention.k_proj.weight[row, coordinate] = weight * length


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def _length(gain: float) -> float:
    # Scores are divided by the root of the head's width, and a gain is the product of a query's and a key's weight.
    return (gain * HEAD_DIM**0.5) ** 0.5
