"""Evidence of a data set as the product collects it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec.backbones.base import Backbone
from allrec.backbones.ensemble import together
from allrec.backbones.sasrec import SASRec
from allrec.data.dataset import Dataset
from allrec.errors import Config
from allrec.hybrid.content import (
    CatalogueContent,
    ContentBackboneConfig,
    ContentTower,
    ItemContent,
    TowerConfig,
    catalogue_content,
    train_content_backbone,
    train_tower,
)
from allrec.hybrid.features import Evidence, Scorer
from allrec.hybrid.retrieval import SearchConfig
from allrec.hybrid.similarity import DenseSpace, Neighbours, Space, WordSpace
from allrec.parallel import OnProgress

CHECKPOINTS = ("tower-checkpoint.safetensors", "checkpoint.safetensors")
"""Of the tower and of the content backbone."""
RETRIEVING = ("text", "tuned_text")
"""Spaces that retrieve beside the scorers; what those of the backbones' items would add is hardly ever ranked first."""


class EvidenceConfig(Config):
    """What gives evidence, and how it is trained."""

    tower: TowerConfig = Field(TowerConfig(), description="Content embeddings tuned on what is bought together.")
    content: ContentBackboneConfig = Field(
        ContentBackboneConfig(), description="The second backbone, whose items are content first."
    )
    ensemble: int = Field(
        1,
        ge=1,
        description="Trainings whose evidence is averaged: the run's own, and the rest with other seeds.",
    )
    search: SearchConfig = Field(SearchConfig(), description="How the nearest items are found.")
    depth: int = Field(100, ge=1, description="Items that each scorer and each retrieving space finds.")
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
    prefix: str = "",
    on_progress: OnProgress | None = None,
) -> ContentParts:
    """Trains the tower and the content backbone; test targets are not read.

    Args:
        dataset: its training interactions and validation targets are read.
        text_embeddings: of every item.
        config: of both.
        seed: of both.
        checkpoints: folder of their checkpoints; None keeps none.
        prefix: of the checkpoints' names.
        on_progress: told of both, one after the other.
    """
    files = [None if checkpoints is None else checkpoints / f"{prefix}{name}" for name in CHECKPOINTS]
    told = [None if on_progress is None else _half(on_progress, half) for half in range(2)]
    catalogue = catalogue_content(dataset, text_embeddings)
    tower = train_tower(dataset, catalogue, config.tower, seed=seed, checkpoint=files[0], on_progress=told[0])
    backbone = train_content_backbone(
        dataset, catalogue, config.content, seed=seed, checkpoint=files[1], on_progress=told[1]
    )
    return ContentParts(catalogue, tower, backbone.model, backbone.content)


def _half(on_progress: OnProgress, half: int) -> OnProgress:
    return lambda share, values: on_progress((half + share) / 2, values)


class Learned(NamedTuple):
    """What one training learned that gives evidence, frozen.

    Attributes:
        backbone: the collaborative one.
        content: of ``train_content_parts``.
        joint_embeddings: what x_u meets in the joint score; None leaves that evidence out.
    """

    backbone: Backbone
    content: ContentParts
    joint_embeddings: Float[Tensor, "items dim"] | None = None


def collect(train: TrainingHistories, ensemble: Sequence[Learned], search: SearchConfig | None = None) -> Evidence:
    """All evidence but the language model's.

    Of several trainings a score is the mean of theirs, and so is a similarity of embeddings that were trained. What is
    not trained (texts, words, neighbours, counts) is the first one's.

    Args:
        train: what was trained on.
        ensemble: of the same data, one a seed; one at least.
        search: how the nearest items are found.
    """
    content, parts = ensemble[0].content, [learned.content for learned in ensemble]
    catalogue, num_items = content.catalogue, len(content.catalogue.texts)
    backbone = together([learned.backbone for learned in ensemble])
    model = together([part.model for part in parts])
    counts = np.bincount(train.items, minlength=num_items)
    scorers = {"cf": Scorer(backbone, backbone.item_embeddings().detach())}
    scorers["content"] = Scorer(model, model.item_embeddings().detach())
    joint = [learned.joint_embeddings for learned in ensemble if learned.joint_embeddings is not None]
    if joint:
        scorers["joint"] = Scorer(backbone, torch.cat(joint, dim=1))
    spaces: dict[str, Space] = {
        "text": DenseSpace.of(catalogue.texts),
        "tuned_text": DenseSpace.of(*(part.tuned() for part in parts)),
        "cf_items": DenseSpace.of(*(learned.backbone.item_embeddings() for learned in ensemble)),
        "content_items": DenseSpace.of(*(part.model.item_table for part in parts)),
        "words": WordSpace.of(catalogue.words, len(catalogue.vocabulary)),
        "neighbours": Neighbours.of(train.offsets, train.items, num_items),
    }
    return Evidence(counts, scorers, spaces, train.num_items, search, RETRIEVING)
