"""GRU4Rec: a gated recurrent network that reads a history item by item."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from allrec.backbones.base import StatesBackbone, draw_weights, undrawn
from allrec.errors import Config
from allrec.training.layers import Dropout, look_up


class GRU4RecConfig(Config):
    """Shape of a GRU4Rec."""

    kind: Literal["gru4rec"] = Field("gru4rec", description="Names this backbone.")
    dim: int = Field(50, ge=1, description="Width of item embeddings and user representations.")
    hidden: int = Field(100, ge=1, description="Width of the recurrent state.")
    layers: int = Field(1, ge=1, description="Recurrent layers.")
    max_length: int = Field(50, ge=1, description="Latest items of a history that count.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of activations dropped while training.")


class GRU4Rec(StatesBackbone):
    """A GRU over item embeddings, and a linear layer from its state to the width of the items.

    Source:
        Hidasi et al., arXiv:1511.06939, section 3. One item table both enters and scores; histories are trained on
        whole, not in parallel sessions, with the losses that all backbones share in place of BPR and TOP1.
    """

    config: GRU4RecConfig

    def __init__(self, num_items: int, config: GRU4RecConfig, generator: torch.Generator) -> None:
        """Draws all weights from ``generator``, normal with Glorot's variance; biases start at zero."""
        super().__init__(num_items, config.dim, config.max_length)
        self.config = config
        between = config.dropout if config.layers > 1 else 0.0
        self.recurrent = undrawn(
            nn.GRU, config.dim, config.hidden, num_layers=config.layers, dropout=between, batch_first=True
        )
        self.output = undrawn(nn.Linear, config.hidden, config.dim)
        self.dropout = Dropout(config.dropout)
        draw_weights(self, generator)

    def states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """The state at every place, see ``StatesBackbone``; padding is read after the items, too late to matter."""
        items = look_up(histories.clamp(min=0), self.item_table) * math.sqrt(self.dim)
        hidden, _ = self.recurrent(self.dropout(items))
        return self.output(self.dropout(hidden))
