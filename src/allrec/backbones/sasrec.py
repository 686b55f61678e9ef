"""SASRec: a causal transformer over the items of a history."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from allrec.backbones.base import StatesBackbone, draw_weights, undrawn
from allrec.errors import Config
from allrec.training.layers import Dropout, attention_with_dropout, look_up

# As in the original code; nn.LayerNorm's own 1e-5 would change what an imported checkpoint gives.
NORM_EPSILON = 1e-8


class SASRecConfig(Config):
    """Shape of a SASRec."""

    kind: Literal["sasrec"] = Field("sasrec", description="Names this backbone.")
    dim: int = Field(50, ge=1, description="Width of item embeddings and user representations.")
    blocks: int = Field(2, ge=1, description="Number of attention blocks.")
    heads: int = Field(1, ge=1, description="Attention heads; a divisor of dim.")
    max_length: int = Field(50, ge=1, description="Latest items of a history that count.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of activations dropped while training.")
    norm: Literal["query", "pre", "post"] = Field(
        "query", description="Layer norm on the attention's query alone (the original), before or after each layer."
    )
    padding: Literal["unseen", "zeroed", "carried"] = Field(
        "unseen",
        description="Places before a short history: not attended to; attended to as in the public code, as zeros in "
        "every block (zeroed, the original) or as what the blocks make of zeros (carried, its later versions).",
    )

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "SASRecConfig":
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got {self.dim} and {self.heads}")
        return self


class SASRec(StatesBackbone):
    """Self-attentive sequential recommendation.

    The latest item is always at the last position, as if histories were padded on the left; tensors are padded on
    the right, so that causal attention alone keeps padding out. The public code does attend to its padding on the left:
    with ``padding`` it takes part as one place that counts as often as there are such places, which gives equal
    attention.

    Source:
        Kang and McAuley, arXiv:1808.09781, section III. Dropout, scaling and norms as in its PyTorch writing, on which
        A-LLMRec builds; attention heads share no weights with it, ``pretrained`` translates.
    """

    config: SASRecConfig

    def __init__(self, num_items: int, config: SASRecConfig, generator: torch.Generator) -> None:
        """Draws all weights from ``generator``, normal with Glorot's variance; biases start at zero."""
        super().__init__(num_items, config.dim, config.max_length)
        self.config = config
        self.position_table = nn.Parameter(torch.empty(config.max_length, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.last_norm = nn.LayerNorm(config.dim, eps=NORM_EPSILON)
        self.dropout = Dropout(config.dropout)
        draw_weights(self, generator)

    def states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """The state at every place, see ``StatesBackbone``; the latest item has the last position."""
        return self._states(histories, is_last_alone=False)

    def last_states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """See ``StatesBackbone``; the last block is worked out at the latest item alone."""
        return self._states(histories, is_last_alone=True)[:, 0]

    def _states(
        self, histories: Int[Tensor, "batch length"], *, is_last_alone: bool
    ) -> Float[Tensor, "batch places dim"]:
        lengths = (histories >= 0).sum(dim=1)
        places = torch.arange(histories.shape[1], device=histories.device)
        positions = (self.max_length - lengths[:, None] + places).clamp(max=self.max_length - 1)
        items = look_up(histories.clamp(min=0), self.item_table)
        x = self.dropout(items * math.sqrt(self.dim) + functional.embedding(positions, self.position_table))
        *blocks, last_block = self.blocks
        places, bias = (lengths - 1).clamp(min=0), None
        if self.config.padding != "unseen":
            bias = padding_bias(self.max_length - lengths, x.shape[1]).to(x.dtype)
            x, places = functional.pad(x, (0, 0, 1, 0)), places + 1
        for block in blocks:
            x = block(x, bias)
            if self.config.padding == "zeroed":
                x = x * (torch.arange(x.shape[1], device=x.device)[:, None] > 0)
        x = last_block(x, bias, places if is_last_alone else None)
        return self.last_norm(x if bias is None or is_last_alone else x[:, 1:])


class Block(nn.Module):
    """Attention and a pointwise network of two layers, each with dropout, a residual connection and a layer norm."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.norm = config.norm
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, eps=NORM_EPSILON)
        self.network = nn.Sequential(
            undrawn(nn.Linear, config.dim, config.dim),
            Dropout(config.dropout),
            nn.ReLU(),
            undrawn(nn.Linear, config.dim, config.dim),
            Dropout(config.dropout),
        )
        self.network_norm = nn.LayerNorm(config.dim, eps=NORM_EPSILON)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        bias: Float[Tensor, "batch 1 length length"] | None = None,
        place: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch places dim"]:
        """One block. Without ``bias`` attention is causal; with it, it says alone who sees whom.

        With ``place`` it is worked out there alone, one place a row.
        """
        seen = self.attention_norm(x) if self.norm == "pre" else x
        if place is not None:
            rows = torch.arange(len(x), device=x.device)
            is_behind = torch.arange(x.shape[1], device=x.device) > place[:, None]
            hidden = x.new_zeros(is_behind.shape).masked_fill_(is_behind, -torch.inf)
            bias = hidden[:, None, None] if bias is None else bias[rows, :, place][:, :, None]
            x = x[rows, place][:, None]
        if self.norm == "query":
            query = self.attention_norm(x)
            x = self.network_norm(query + self.attention(query, seen, bias))
            return x + self.network(x)
        if self.norm == "pre":
            query = seen if place is None else self.attention_norm(x)
            x = x + self.attention(query, seen, bias)
            return x + self.network(self.network_norm(x))
        x = self.attention_norm(x + self.attention(x, seen, bias))
        return self.network_norm(x + self.network(x))


class Attention(nn.Module):
    """Multi-head attention; queries may come from another tensor than keys and values."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query, self.key, self.value, self.output = (undrawn(nn.Linear, config.dim, config.dim) for _ in range(4))

    def forward(
        self,
        query: Float[Tensor, "batch length dim"],
        x: Float[Tensor, "batch length dim"],
        bias: Float[Tensor, "batch 1 length length"] | None,
    ) -> Float[Tensor, "batch length dim"]:
        """Each place of ``query`` looks at the places of ``x`` up to its own."""
        query, key, value = self._split(self.query(query)), self._split(self.key(x)), self._split(self.value(x))
        if self.training and self.dropout > 0:
            attended = attention_with_dropout(query, key, value, bias, self.dropout)
        else:
            attended = functional.scaled_dot_product_attention(query, key, value, bias, is_causal=bias is None)
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch heads length head_dim"]:
        return x.view(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)


def padding_bias(
    num_padding: Int[Tensor, "batch"], length: int
) -> Float[Tensor, "batch 1 length_and_one length_and_one"]:
    """What is added to attention logits so that place 0 counts ``num_padding`` times and the rest is causal.

    The logarithm of a count in the logits is the count in the softmax; zero such places are minus infinity. Place 0
    sees itself alone, and any number of equal places give what one gives.
    """
    causal = torch.full((length + 1, length + 1), -torch.inf, device=num_padding.device).triu(1)
    bias = causal.repeat(len(num_padding), 1, 1, 1)
    bias[:, 0, 1:, 0] = num_padding.float().log()[:, None]
    return bias
