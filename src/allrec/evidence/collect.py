"""Evidence of a data set as the product collects it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec.base import Config
from allrec.data.dataset import Dataset
from allrec.evidence.evidence import Evidence, Scorer
from allrec.evidence.nearest import SearchConfig
from allrec.evidence.similarity import DenseSpace, Neighbours, Space, WordSpace
from allrec.models.backbones.base import Backbone
from allrec.models.backbones.sasrec import SASRec
from allrec.models.content import ContentTower, ItemContent
from allrec.training.content import (
    CatalogueContent,
    ContentBackboneConfig,
    TowerConfig,
    catalogue_content,
    train_content_backbone,
    train_tower,
)
from allrec.training.examples import OnStep

CHECKPOINTS = ("tower-checkpoint.safetensors", "checkpoint.safetensors")
"""Of the tower and of the content backbone."""


class EvidenceConfig(Config):
    """What gives evidence, and how it is trained."""

    tower: TowerConfig = Field(TowerConfig(), description="Content embeddings tuned on what is bought together.")
    content: ContentBackboneConfig = Field(
        ContentBackboneConfig(), description="The second backbone, whose items are content first."
    )
    search: SearchConfig = Field(SearchConfig(), description="How the nearest items are found.")
    depth: int = Field(100, ge=1, description="Items that each scorer and each space retrieves from the catalogue.")
    fitted_candidates: int = Field(40, ge=2, description="Retrieved candidates of a row that fusion is fitted on.")


class TrainingHistories(NamedTuple):
    """What was trained on, frozen with a run: items that come later have no part in it.

    Attributes:
        offsets: where every user's training items begin.
        items: training items, oldest first within a user.
        num_items: size of the catalogue that was trained on.
    """

    offsets: Int[ndarray, "users+1"]
    items: Int[ndarray, "interactions"]
    num_items: int

    @classmethod
    def of(cls, dataset: Dataset) -> "TrainingHistories":
        """Of a data set."""
        return cls(*dataset.train_csr(), dataset.num_items)


class ContentParts(NamedTuple):
    """What was trained on content, frozen.

    Attributes:
        catalogue: texts and words of the items.
        tower: content embeddings tuned on what is bought together.
        model: the second backbone, with a plain item table.
        content: gives a new item its row in that table.
    """

    catalogue: CatalogueContent
    tower: ContentTower
    model: SASRec
    content: ItemContent

    @torch.no_grad()
    def tuned(self) -> Float[Tensor, "items dim"]:
        """The tower's unit vectors of all items."""
        return self.tower.items(self.catalogue.texts, self.catalogue.words)


def train_content_parts(
    dataset: Dataset,
    text_embeddings: Float[Tensor, "items text_dim"],
    config: EvidenceConfig,
    *,
    seed: int,
    checkpoints: Path | None = None,
    on_step: OnStep | None = None,
) -> ContentParts:
    """Trains the tower and the content backbone; test targets are not read.

    Args:
        dataset: its training interactions and validation targets are read.
        text_embeddings: of every item.
        config: of both.
        seed: of both.
        checkpoints: folder of their checkpoints; None keeps none.
        on_step: told of both, one after the other.
    """
    tower_file, backbone_file = (None if checkpoints is None else checkpoints / name for name in CHECKPOINTS)
    catalogue = catalogue_content(dataset, text_embeddings)
    tower = train_tower(dataset, catalogue, config.tower, seed=seed, checkpoint=tower_file, on_step=on_step)
    backbone = train_content_backbone(
        dataset, catalogue, config.content, seed=seed, checkpoint=backbone_file, on_step=on_step
    )
    return ContentParts(catalogue, tower, backbone.model, backbone.content)


def collect(
    train: TrainingHistories,
    backbone: Backbone,
    content: ContentParts,
    joint_embeddings: Float[Tensor, "items dim"] | None = None,
    search: SearchConfig | None = None,
) -> Evidence:
    """All evidence but the language model's.

    Args:
        train: what was trained on.
        backbone: the collaborative one, frozen.
        content: of ``train_content_parts``.
        joint_embeddings: what x_u meets in the joint score; None leaves that evidence out.
        search: how the nearest items are found.
    """
    catalogue, model, num_items = content.catalogue, content.model, len(content.catalogue.texts)
    counts = np.bincount(train.items, minlength=num_items)
    scorers = {"cf": Scorer(backbone, backbone.item_embeddings().detach()), "content": Scorer(model, model.item_table)}
    if joint_embeddings is not None:
        scorers["joint"] = Scorer(backbone, joint_embeddings)
    spaces: dict[str, Space] = {
        "text": DenseSpace.of(catalogue.texts),
        "tuned_text": DenseSpace.of(content.tuned()),
        "cf_items": DenseSpace.of(backbone.item_embeddings()),
        "content_items": DenseSpace.of(model.item_table),
        "words": WordSpace.of(catalogue.words, len(catalogue.vocabulary)),
        "neighbours": Neighbours.of(train.offsets, train.items, num_items),
    }
    return Evidence(counts, scorers, spaces, train.num_items, search)
