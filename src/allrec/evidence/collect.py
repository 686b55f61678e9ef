"""Evidence of a data set as the product collects it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allrec.base import Config
from allrec.data.dataset import Dataset
from allrec.evidence.evidence import Evidence, Scorer
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


class EvidenceConfig(Config):
    """What gives evidence, and how it is trained."""

    tower: TowerConfig = Field(TowerConfig(), description="Content embeddings tuned on what is bought together.")
    content: ContentBackboneConfig = Field(
        ContentBackboneConfig(), description="The second backbone, whose items are content first."
    )
    depth: int = Field(100, ge=1, description="Items that each scorer and each space retrieves from the catalogue.")
    fitted_candidates: int = Field(100, ge=2, description="Retrieved candidates of a row that fusion is fitted on.")


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
    dataset: Dataset, text_embeddings: Float[Tensor, "items text_dim"], config: EvidenceConfig, *, seed: int
) -> ContentParts:
    """Trains the tower and the content backbone; test targets are not read."""
    catalogue = catalogue_content(dataset, text_embeddings)
    tower = train_tower(dataset, catalogue, config.tower, seed=seed)
    backbone = train_content_backbone(dataset, catalogue, config.content, seed=seed)
    return ContentParts(catalogue, tower, backbone.model, backbone.content)


def collect(
    dataset: Dataset,
    backbone: Backbone,
    content: ContentParts,
    joint_embeddings: Float[Tensor, "items dim"] | None = None,
) -> Evidence:
    """All evidence but the language model's.

    Args:
        dataset: its training interactions are read.
        backbone: the collaborative one, frozen.
        content: of ``train_content_parts``.
        joint_embeddings: what x_u meets in the joint score; None leaves that evidence out.
    """
    catalogue, model = content.catalogue, content.model
    scorers = {"cf": Scorer(backbone, backbone.item_embeddings().detach()), "content": Scorer(model, model.item_table)}
    if joint_embeddings is not None:
        scorers["joint"] = Scorer(backbone, joint_embeddings)
    spaces: dict[str, Space] = {
        "text": DenseSpace.of(catalogue.texts),
        "tuned_text": DenseSpace.of(content.tuned()),
        "cf_items": DenseSpace.of(backbone.item_embeddings()),
        "content_items": DenseSpace.of(model.item_table),
        "words": WordSpace.of(catalogue.words, len(catalogue.vocabulary)),
        "neighbours": Neighbours.of(*dataset.train_csr(), dataset.num_items),
    }
    return Evidence(dataset.train_counts(), scorers, spaces)
