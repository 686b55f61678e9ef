"""Weights that the embedded language models begin with: a rough copy-and-choose circuit instead of noise alone.

Training from noise finds copying after many hundred steps and choosing much later, if at all. Both are compositions of
lookups that can be written down, so attention heads of the first three layers begin as those lookups:

    layer 0   head 0 reads the token before; head 1 the one before that
    layer 1   head 1 copies what followed the present token earlier (induction)
              head 2 fetches the user's vector: the place behind the latest beginning
              head 3 fetches the first token of the title at hand: the latest place behind an opening quote
    layer 2   head 1 copies as above
              heads 0, 2, 3 find the item whose vector is the user's, and write its title's first token

Each lookup writes into directions of its own. The circuit is right often enough before any training for training to
find the rest.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

BASE = 1e6
"""Base of the rotary positions: slow enough that half of a head's pairs hardly turn within a prompt."""
SHARPNESS = 7.0
NEARNESS = 9.0
GAIN = 2.2


def wire(model: LlamaForCausalLM, begin: int, open_quote: int, close_quote: int, generator: torch.Generator) -> None:
    """Overwrites a fresh model's weights with the circuit; heads must be 32 wide and at least four.

    Args:
        model: a Llama with attention biases and tied embeddings.
        begin: id of the token that begins a prompt.
        open_quote: id of the token before a title.
        close_quote: id of the token after a title.
        generator: draws the directions.
    """
    _Wiring(model, begin, open_quote, close_quote, generator).apply()


class _Wiring:
    def __init__(
        self, model: LlamaForCausalLM, begin: int, open_quote: int, close_quote: int, generator: torch.Generator
    ) -> None:
        self.generator, self.marks = generator, (begin, open_quote, close_quote)
        self.attention = [layer.self_attn for layer in model.model.layers]
        self.layers = model.model.layers
        self.table = model.get_input_embeddings().weight
        dim = self.table.shape[1]
        directions = self.orthogonal(dim, dim)
        self.before, self.second_before, self.user, self.first_token, content = directions.split(
            [16, 24, 24, 24, dim - 88], dim=1
        )
        self.code = self.orthogonal(16, dim)
        self.vector = self.orthogonal(24, dim - 88) @ content.T
        self.token = self.orthogonal(24, dim - 88) @ content.T
        self.copied = self.orthogonal(32, dim - 88) @ content.T
        pairs = torch.arange(16)
        self.slow = torch.cat([pairs[8:], pairs[8:] + 16])
        self.steady = torch.cat([pairs[5:15], pairs[5:15] + 16])

    @torch.no_grad()
    def apply(self) -> None:
        self.quieten()
        self.mark_tokens()
        self.read_earlier_tokens()
        for layer in (1, 2):
            self.copy(layer)
        self.fetch(2, self.marks[0], self.vector, self.user * 0.5, near=torch.arange(4, 6), nearness=NEARNESS)
        self.fetch(3, self.marks[1], self.token, self.first_token * 0.6, near=torch.arange(3, 7), nearness=5.0)
        thirds = (torch.arange(20), torch.arange(4, 24), torch.cat([torch.arange(10), torch.arange(14, 24)]))
        for head, part in zip((0, 2, 3), thirds, strict=True):
            self.choose(head, part)

    def orthogonal(self, rows: int, columns: int) -> Tensor:
        drawn = torch.randn(max(rows, columns), min(rows, columns), generator=self.generator)
        basis = torch.linalg.qr(drawn)[0]
        return basis.T if rows < columns else basis

    def quieten(self) -> None:
        # What the layers write must not drown the circuit before training has shaped it.
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear, deviation in (
                (attention.q_proj, 0.03), (attention.k_proj, 0.03), (attention.v_proj, 0.03), (attention.o_proj, 0.005),
                (mlp.gate_proj, 0.05), (mlp.up_proj, 0.05), (mlp.down_proj, 0.01),
            ):  # fmt: skip
                linear.weight.normal_(0.0, deviation, generator=self.generator)
                if linear.bias is not None:
                    linear.bias.zero_()
        self.table.normal_(0.0, 0.1, generator=self.generator)

    def mark_tokens(self) -> None:
        length = self.table.norm(dim=1).mean()
        for token, row in zip(self.marks, self.orthogonal(len(self.marks), 16), strict=True):
            self.table[token] = length * (row @ self.code)

    def mark_code(self, token: int) -> Tensor:
        return self.code @ (self.table[token] / self.table[token].square().mean().sqrt())

    def look_back(self, layer: int, head: int, distance: int) -> None:
        angles = BASE ** (-torch.arange(16) / 16) * -distance
        rows = slice(head * 32, head * 32 + 32)
        attention = self.attention[layer]
        attention.q_proj.weight[rows] = 0
        attention.k_proj.weight[rows] = 0
        attention.k_proj.bias[rows] = torch.cat([torch.full((16,), SHARPNESS), torch.zeros(16)])
        attention.q_proj.bias[rows] = SHARPNESS * torch.cat([angles.cos(), angles.sin()])

    def pass_on(self, layer: int, head: int, read: Tensor, write: Tensor) -> None:
        rows = slice(head * 32, head * 32 + len(read))
        self.attention[layer].v_proj.weight[rows] = read
        self.attention[layer].o_proj.weight[:, rows] = write

    def read_earlier_tokens(self) -> None:
        self.look_back(0, 0, 1)
        self.look_back(0, 1, 2)
        self.look_back(1, 0, 1)
        self.pass_on(0, 0, self.code, self.before * 0.3)
        self.pass_on(0, 1, self.vector, self.second_before * 0.25)

    def copy(self, layer: int) -> None:
        rows = 32 + self.slow
        self.attention[layer].q_proj.weight[rows] = self.code * GAIN
        self.attention[layer].k_proj.weight[rows] = self.before.T * GAIN
        self.pass_on(layer, 1, self.copied, self.copied.T * 0.2)

    def fetch(self, head: int, mark: int, read: Tensor, write: Tensor, near: Tensor, nearness: float) -> None:
        attention, rows = self.attention[1], head * 32 + self.slow
        attention.q_proj.weight[head * 32 : head * 32 + 32] *= 0.1
        attention.q_proj.bias[rows] = self.mark_code(mark)
        attention.k_proj.weight[rows] = self.before.T * 1.5
        attention.q_proj.bias[head * 32 + near] = nearness
        attention.k_proj.bias[head * 32 + near] = nearness
        self.pass_on(1, head, read, write)

    def choose(self, head: int, part: Tensor) -> None:
        attention, rows = self.attention[2], head * 32 + self.steady
        attention.q_proj.weight[rows] = self.user.T[part] * GAIN
        # The vector stands at the item's own place (after a title) or two before the title's first token.
        attention.k_proj.weight[rows] = (self.vector + self.second_before.T)[part] * GAIN
        against, towards = head * 32 + 15, head * 32 + 31
        for row in (against, towards):
            attention.q_proj.weight[row] = 0
            attention.q_proj.bias[row] = 12.0
        begin, open_quote, close_quote = (self.before @ self.mark_code(mark) / 11.3 for mark in self.marks)
        attention.k_proj.weight[against] = -begin
        attention.k_proj.weight[towards] = open_quote + close_quote
        self.pass_on(2, head, self.first_token.T, self.token.T)
