"""Weights that the embedded language models begin with: a rough copy-and-choose circuit instead of noise alone.

Training from noise finds copying after many hundred steps and choosing much later, if at all. Both are compositions of
lookups that can be written down, so attention heads of the first three layers begin as those lookups:

    layer 0   heads 0, 1, 2 read the token before, the one before that, and the third
    layer 1   head 1 copies what followed the latest three tokens when they last stood together (induction)
              head 2 fetches the user's vector: the place behind the latest beginning
              head 3 fetches the first token of the title at hand: the latest place behind an opening quote
              (told in layer 3, where it no longer stands in the way of the vectors)
    layer 2   heads 0, 2, 3 find the item whose vector, behind its title, is the user's, and write that first token

Each lookup writes into directions of its own. Before any training, seven tokens in ten inside a title are copied right
and one first token in eight is the right one among all tokens: enough for training to find the rest.
"""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

BASE = 1e6
"""Base of the rotary positions: slow enough that half of a head's pairs hardly turn within a prompt."""
SHARPNESS = 7.0
NEARNESS = 9.0
GAIN = 4.0
REST = 6.0
WIDTH = 20
COPY_GAIN = 2.0
COPY_WRITE = 6.0
CHOOSE_WRITE = 1.0


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
        sizes = [16, 16, WIDTH, WIDTH, WIDTH, dim - 32 - 3 * WIDTH]
        self.preceding, self.present, self.user, self.first_token, self.next_token, content = directions.split(sizes, 1)
        # Three codes of a token, by how far back it stands.
        self.codes = [self.orthogonal(16, dim) for _ in range(3)]
        self.vector, self.token, self.copied = (self.orthogonal(WIDTH, content.shape[1]) @ content.T for _ in range(3))
        pairs = torch.arange(16)
        self.slow = torch.cat([pairs[8:], pairs[8:] + 16])
        self.steady = torch.cat([pairs[5:14], pairs[5:14] + 16])

    @torch.no_grad()
    def apply(self) -> None:
        self.quieten()
        self.mark_tokens()
        self.read_earlier_tokens()
        self.copy()
        self.fetch(2, self.marks[0], self.vector, self.user * 0.5, near=torch.arange(4, 6), nearness=NEARNESS)
        self.fetch(3, self.marks[1], self.token, self.first_token * 0.6, near=torch.arange(3, 7), nearness=5.0)
        for head in (0, 2, 3):
            self.choose(head)

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
            mark = row @ self.codes[0]
            # Heads that rest on a mark then say nothing.
            mark = mark - mark @ self.token.T @ self.token
            self.table[token] = length * mark / mark.norm()

    def mark_code(self, token: int) -> Tensor:
        return self.codes[0] @ (self.table[token] / self.table[token].square().mean().sqrt())

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
        first, second, third = self.codes
        # What stood before a place is looked for there (preceding) and from the place behind it (present).
        for head, (sought, seeking) in enumerate(((first, second), (second, third))):
            self.look_back(0, head, head + 1)
            self.pass_on(0, head, torch.cat([sought, seeking]), torch.cat([self.preceding, self.present], 1) * 0.3)
        self.look_back(0, 2, 3)
        self.pass_on(0, 2, third, self.preceding * 0.3)
        self.look_back(0, 3, 0)
        self.pass_on(0, 3, first, self.present * 0.3)

    def copy(self) -> None:
        rows = 32 + self.slow
        self.attention[1].q_proj.weight[rows] = self.present.T * COPY_GAIN
        self.attention[1].k_proj.weight[rows] = self.preceding.T * COPY_GAIN
        self.pass_on(1, 1, self.copied, self.next_token)
        # Said only at the end, so that it does not stand in the way of the vectors.
        self.look_back(3, 0, 0)
        self.pass_on(3, 0, self.next_token.T, self.copied.T * COPY_WRITE)

    def fetch(self, head: int, mark: int, read: Tensor, write: Tensor, near: Tensor, nearness: float) -> None:
        attention, rows = self.attention[1], head * 32 + self.slow
        attention.q_proj.weight[head * 32 : head * 32 + 32] *= 0.1
        attention.q_proj.bias[rows] = self.mark_code(mark)
        attention.k_proj.weight[rows] = self.preceding.T * 1.5
        attention.q_proj.bias[head * 32 + near] = nearness
        attention.k_proj.bias[head * 32 + near] = nearness
        self.pass_on(1, head, read, write)

    def choose(self, head: int) -> None:
        attention, rows = self.attention[2], head * 32 + self.steady
        attention.q_proj.weight[rows] = self.user.T[: len(rows)] * GAIN
        attention.k_proj.weight[rows] = self.vector[: len(rows)] * GAIN
        begin, open_quote, close_quote = (self.mark_code(mark) / 11.3 for mark in self.marks)
        own_place, rest, question = head * 32 + torch.tensor([14, 15, 31])
        attention.q_proj.weight[torch.stack([own_place, rest])] = 0
        # The user's vector is nearest to itself; that place is behind a beginning.
        attention.q_proj.bias[own_place] = 12.0
        attention.k_proj.weight[own_place] = -(self.preceding @ begin)
        # Behind an opening quote a vector behind a title is looked at; elsewhere the head rests on a beginning.
        attention.q_proj.bias[rest] = REST
        attention.k_proj.weight[rest] = self.present @ begin
        attention.q_proj.weight[question] = self.present @ open_quote * 2.0
        attention.k_proj.weight[question] = self.preceding @ close_quote
        self.pass_on(2, head, self.first_token.T, self.token.T * CHOOSE_WRITE)
