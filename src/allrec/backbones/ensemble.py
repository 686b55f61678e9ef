"""Several frozen backbones as one: an ensemble of trainings that differ in their seed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allrec.backbones.base import Backbone


class Ensemble:
    """A backbone whose scores are the mean of those of several trainings.

    User representations and item embeddings are concatenated, the former divided by how many they are: a dot
    product is then the mean of theirs, and one search over the catalogue serves all.

    Args:
        trainings: frozen, over the same catalogue; at least one.

    Source: averaging trainings of other seeds as in Lakshminarayanan et al., NeurIPS 2017, here raw scores in place of
        probabilities.
    """

    def __init__(self, trainings: Sequence[Backbone]) -> None:
        self.trainings = list(trainings)
        self.num_items = trainings[0].num_items
        self.dim = sum(one.dim for one in trainings)
        self.max_length = max(one.max_length for one in trainings)
        self.items = torch.cat([one.item_embeddings().detach() for one in trainings], dim=1)

    def item_embeddings(self) -> Float[Tensor, "items dim"]:
        """E of every item: theirs side by side."""
        return self.items

    def encode(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """x_u of every history; see ``Backbone.encode``."""
        return torch.cat([one.encode(histories) for one in self.trainings], dim=1) / len(self.trainings)


def together(trainings: Sequence[Backbone]) -> Backbone:
    """The one training itself, or the ensemble of several."""
    return trainings[0] if len(trainings) == 1 else Ensemble(trainings)
