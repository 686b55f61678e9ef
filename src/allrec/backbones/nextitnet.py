"""NextItNet: dilated causal convolutions over a history."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec.backbones.base import StatesBackbone, draw_weights, undrawn
from allrec.errors import Config
from allrec.training.layers import Dropout, look_up


class NextItNetConfig(Config):
    """Shape of a NextItNet."""

    kind: Literal["nextitnet"] = Field("nextitnet", description="Names this backbone.")
    dim: int = Field(50, ge=1, description="Width of item embeddings and user representations.")
    dilations: tuple[int, ...] = Field(
        (1, 4), min_length=1, description="A residual block each: its two convolutions skip so far, and twice as far."
    )
    kernel: int = Field(3, ge=2, description="Items that a convolution sees.")
    max_length: int = Field(50, ge=1, description="Latest items of a history that count.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of activations dropped while training.")


class NextItNet(StatesBackbone):
    """Residual blocks of dilated causal convolutions, and a linear layer that makes the state.

    Source:
        Yuan et al., arXiv:1808.05163, sections 3.2 to 3.4, block (b) of figure 3. One item table both enters and
        scores where the original has two; dropout on the items and after every convolution is added.
    """

    config: NextItNetConfig

    def __init__(self, num_items: int, config: NextItNetConfig, generator: torch.Generator) -> None:
        """Draws all weights from ``generator``, normal with Glorot's variance; biases start at zero."""
        super().__init__(num_items, config.dim, config.max_length)
        self.config = config
        self.blocks = nn.ModuleList(Block(config, dilation) for dilation in config.dilations)
        self.output = undrawn(nn.Linear, config.dim, config.dim)
        self.dropout = Dropout(config.dropout)
        draw_weights(self, generator)

    def states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """The state at every place, see ``StatesBackbone``."""
        x = self.dropout(look_up(histories.clamp(min=0), self.item_table) * math.sqrt(self.dim))
        for block in self.blocks:
            x = block(x)
        return self.output(x)


class Block(nn.Module):
    """Two causal convolutions, the second of twice the dilation, each with a layer norm and ReLU; and the input."""

    def __init__(self, config: NextItNetConfig, dilation: int) -> None:
        super().__init__()
        self.reaches = [step * (config.kernel - 1) for step in (dilation, 2 * dilation)]
        self.convolutions = nn.ModuleList(
            undrawn(nn.Conv1d, config.dim, config.dim, config.kernel, dilation=step)
            for step in (dilation, 2 * dilation)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in self.reaches)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """One block. Zero padding on the left keeps the convolution causal."""
        inner = x
        for reach, convolution, norm in zip(self.reaches, self.convolutions, self.norms, strict=True):
            seen = functional.pad(inner, (0, 0, reach, 0))
            inner = self.dropout(norm(convolution(seen.mT).mT).relu())
        return x + inner
