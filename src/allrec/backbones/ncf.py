"""NCF: generalised matrix factorisation and a network, over a user pooled from the history."""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from allrec.backbones.base import StatesBackbone, draw_weights, undrawn
from allrec.errors import Config
from allrec.training.layers import Dropout, look_up


class NCFConfig(Config):
    """Shape of an NCF."""

    kind: Literal["ncf"] = Field("ncf", description="Names this backbone.")
    dim: int = Field(
        50,
        ge=2,
        description="Width of item embeddings and user representations; half is the product's, half the network's.",
    )
    hidden: tuple[int, ...] = Field(
        (100, 50), min_length=1, description="Widths of the network: of the items pooled for it, then of its layers."
    )
    pooling_power: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A history's embeddings are summed and divided by length to this power; 1 is a mean.",
    )
    max_length: int = Field(50, ge=1, description="Latest items of a history that count.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of activations dropped while training.")


class NCF(StatesBackbone):
    """Neural collaborative filtering, of generalised matrix factorisation (GMF) and a network.

    x_u = [h ⊙ p_u ; MLP(r_u)], where p_u and r_u pool two embeddings of every item of the history, in which order has
    no part; x_u · E_i is the score.

    Source:
        He et al., arXiv:1708.05031, equations 8 to 12 (NeuMF). Two things differ. A user has no embedding of their own
        but is pooled from the history, so that new users are served, as in FISM (Kabbur et al., KDD 2013). And the
        network reads the user alone, not user and item together; its last layer yields what is multiplied with the
        item's half of E_i, so that a dot product scores.
    """

    config: NCFConfig

    def __init__(self, num_items: int, config: NCFConfig, generator: torch.Generator) -> None:
        """Draws all weights from ``generator``, normal with Glorot's variance; biases start at zero, h at one."""
        super().__init__(num_items, config.dim, config.max_length)
        self.config = config
        self.product_dim = config.dim // 2
        self.history_table = nn.Parameter(torch.empty(num_items, self.product_dim + config.hidden[0]))
        self.product_weight = nn.Parameter(torch.ones(self.product_dim))
        self.network = nn.Sequential(*_layers((*config.hidden, config.dim - self.product_dim), config.dropout))
        self.dropout = Dropout(config.dropout)
        draw_weights(self, generator)

    def states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """The state at every place, see ``StatesBackbone``."""
        counts = torch.arange(1, histories.shape[1] + 1, device=histories.device, dtype=self.item_table.dtype)
        items = look_up(histories.clamp(min=0), self.history_table)
        pooled = self.dropout(items.cumsum(dim=1) / counts[:, None] ** self.config.pooling_power)
        product, network = pooled.tensor_split((self.product_dim,), dim=2)
        return torch.cat([product * self.product_weight, self.network(network)], dim=2)


def _layers(widths: tuple[int, ...], dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [undrawn(nn.Linear, inputs, outputs), nn.ReLU(), Dropout(dropout)]
    return layers[:-2]
