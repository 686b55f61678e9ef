"""The backbones by name."""

from typing import Annotated

import torch
from pydantic import Field

from allrec.base import Config
from allrec.models.backbones.base import StatesBackbone
from allrec.models.backbones.external import External, ExternalConfig
from allrec.models.backbones.gru4rec import GRU4Rec, GRU4RecConfig
from allrec.models.backbones.ncf import NCF, NCFConfig
from allrec.models.backbones.nextitnet import NextItNet, NextItNetConfig
from allrec.models.backbones.sasrec import SASRec, SASRecConfig

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
