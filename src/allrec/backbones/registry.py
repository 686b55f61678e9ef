"""Backbones by name, how one is configured, and a trained backbone extended by further items."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, SerializeAsAny, SkipValidation, field_validator, model_validator
from torch import Tensor, nn

from allrec.backbones.base import StatesBackbone, freeze
from allrec.backbones.gru4rec import GRU4Rec, GRU4RecConfig
from allrec.backbones.ncf import NCF, NCFConfig
from allrec.backbones.nextitnet import NextItNet, NextItNetConfig
from allrec.backbones.pretrained import External, ExternalConfig
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import Config, InputError, nearest
from allrec.training.loop import LoopConfig

BackboneModel = SerializeAsAny[
    SkipValidation[SASRecConfig | NCFConfig | NextItNetConfig | GRU4RecConfig | ExternalConfig]
]
"""The configuration of a backbone; ``config_of`` checks it, so it may be of a kind added to ``KINDS``."""


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


class BackboneConfig(Config):
    """The backbone and how it is trained; the defaults are the paper's backbone."""

    model: BackboneModel = Field(SASRecConfig(), description="Kind and shape; a table without a kind is a SASRec.")
    checkpoint: str | None = Field(
        None, description="A checkpoint of the public SASRec, taken in place of training; it decides on sizes."
    )
    loss: Literal["bce", "softmax", "sampled-softmax"] = Field(
        "bce", description="One negative and yes-or-no (the paper), the whole catalogue, or a sample of it."
    )
    sampled_softmax_above: int = Field(
        100_000, ge=1, description="Catalogue size above which loss softmax becomes sampled-softmax."
    )
    num_negatives: int = Field(4096, ge=1, description="Shared negatives of a step with sampled-softmax.")
    split_table_above: int = Field(
        10_000_000,
        ge=1,
        description="Catalogue size above which workers that train together hold a part of the item embeddings each, "
        "and take whole batches.",
    )
    tokens_per_batch: int = Field(640, ge=1, description="Positions of a batch at most, padding included.")
    validation_protocol: EvaluationProtocol = Field(
        EvaluationProtocol.PAPER, description="Candidates of the validation that decides when to stop."
    )
    validation_users: int = Field(10_000, ge=1, description="Users of that validation at most, drawn once.")
    loop: LoopConfig = Field(
        LoopConfig(epochs=100, betas=(0.9, 0.98), patience_steps=500, least_steps=1000),
        description="Optimizer, epochs and patience.",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _of_its_kind(cls, model: Any) -> Any:
        return config_of(model)

    @model_validator(mode="after")
    def _checkpoints_are_of_sasrec(self) -> "BackboneConfig":
        if self.checkpoint is not None and self.model.kind != "sasrec":
            raise ValueError(f"a checkpoint is read for the kind sasrec alone, got {self.model.kind}")
        return self


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
