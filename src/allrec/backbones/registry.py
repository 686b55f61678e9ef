"""Backbones by name, and a trained backbone extended by further items."""

from copy import deepcopy
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allrec.backbones.base import StatesBackbone, freeze
from allrec.backbones.gru4rec import GRU4Rec, GRU4RecConfig
from allrec.backbones.ncf import NCF, NCFConfig
from allrec.backbones.nextitnet import NextItNet, NextItNetConfig
from allrec.backbones.pretrained import External, ExternalConfig
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.errors import Config

BackboneModel = Annotated[
    SASRecConfig | NCFConfig | NextItNetConfig | GRU4RecConfig | ExternalConfig, Field(discriminator="kind")
]
KINDS: dict[str, type[Config]] = {
    "sasrec": SASRecConfig,
    "ncf": NCFConfig,
    "nextitnet": NextItNetConfig,
    "gru4rec": GRU4RecConfig,
    "external": ExternalConfig,
}


def make_backbone(num_items: int, config: BackboneModel, generator: torch.Generator) -> StatesBackbone:
    """A new backbone of the kind that ``config`` names.

    Args:
        num_items: size of the catalogue.
        config: its shape; of an external one, with the width of its embeddings.
        generator: draws all weights.
    """
    match config:
        case NCFConfig():
            return NCF(num_items, config, generator)
        case NextItNetConfig():
            return NextItNet(num_items, config, generator)
        case GRU4RecConfig():
            return GRU4Rec(num_items, config, generator)
        case ExternalConfig():
            return External(num_items, config)
        case _:
            return SASRec(num_items, config, generator)


def extended(backbone: StatesBackbone, rows: Float[Tensor, "more dim"]) -> StatesBackbone:
    """A frozen backbone over more items: those that it has keep their embeddings, the new ones have the rows."""
    larger = deepcopy(backbone)
    larger.num_items += len(rows)
    larger.item_table = nn.Parameter(torch.cat([backbone.item_table.detach(), rows]))
    return freeze(larger)
