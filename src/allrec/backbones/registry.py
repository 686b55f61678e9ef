"""Backbones by name, and a trained backbone extended by further items."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import SerializeAsAny, SkipValidation
from torch import Tensor, nn

from allrec.backbones.base import StatesBackbone, freeze
from allrec.backbones.gru4rec import GRU4Rec, GRU4RecConfig
from allrec.backbones.ncf import NCF, NCFConfig
from allrec.backbones.nextitnet import NextItNet, NextItNetConfig
from allrec.backbones.pretrained import External, ExternalConfig
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.errors import Config, InputError, nearest

BackboneModel = SerializeAsAny[
    SkipValidation[SASRecConfig | NCFConfig | NextItNetConfig | GRU4RecConfig | ExternalConfig]
]
"""The configuration of a backbone; ``config_of`` checks it, so that it may also be of a kind that joined ``KINDS``."""


class Kind(NamedTuple):
    """A kind of backbone.

    Attributes:
        config: its configuration class, which has its name as ``kind`` and the longest history as ``max_length``.
        make: of (number of items, configuration, generator of all weights): a new backbone.
    """

    config: type[Config]
    make: Callable[[int, Any, torch.Generator], StatesBackbone]


KINDS: dict[str, Kind] = {
    "sasrec": Kind(SASRecConfig, SASRec),
    "ncf": Kind(NCFConfig, NCF),
    "nextitnet": Kind(NextItNetConfig, NextItNet),
    "gru4rec": Kind(GRU4RecConfig, GRU4Rec),
    "external": Kind(ExternalConfig, lambda num_items, config, generator: External(num_items, config)),
}
"""Every backbone by its name in a recipe."""


def config_of(model: Any) -> Any:
    """A backbone's configuration, out of a table of a recipe that may name its kind.

    Raises:
        InputError: an unknown kind or key, or a value of the wrong sort.
    """
    is_table = isinstance(model, dict)
    kind = str(model.get("kind", "sasrec") if is_table else getattr(model, "kind", type(model).__name__))
    if kind not in KINDS:
        raise InputError(f"unknown backbone {kind!r}: {nearest(kind, list(KINDS))}")
    return KINDS[kind].config(**model) if is_table else model


def make_backbone(num_items: int, config: BackboneModel, generator: torch.Generator) -> StatesBackbone:
    """A new backbone of the kind that ``config`` names.

    Args:
        num_items: size of the catalogue.
        config: its shape; of an external one, with the width of its embeddings.
        generator: draws all weights.
    """
    return KINDS[config.kind].make(num_items, config, generator)


def extended(backbone: StatesBackbone, rows: Float[Tensor, "more dim"]) -> StatesBackbone:
    """A frozen backbone over more items: those that it has keep their embeddings, the new ones have the rows."""
    larger = deepcopy(backbone)
    larger.num_items += len(rows)
    larger.item_table = nn.Parameter(torch.cat([backbone.item_table.detach(), rows]))
    return freeze(larger)
