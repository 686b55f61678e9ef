"""Several frozen backbones as one: an ensemble of trainings that differ in their seed."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allrec.models.backbones.base import Backbone


class Ensemble:
    """A backbone whose scores are the mean of its members' scores.

    Their user representations and item embeddings stand side by side, the former divided by how many they are: a dot
    product is then the mean of theirs, and one search over the catalogue serves all.

    Args:
        members: frozen, over the same catalogue; at least one.

    Source: averaging trainings of other seeds as in Lakshminarayanan et al., NeurIPS 2017, here raw scores in place of
        probabilities.
    """

    def __init__(self, members: Sequence[Backbone]) -> None:
        self.members = list(members)
        self.num_items = members[0].num_items
        self.dim = sum(member.dim for member in members)
        self.max_length = max(member.max_length for member in members)
        self.items = torch.cat([member.item_embeddings().detach() for member in members], dim=1)

    def item_embeddings(self) -> Float[Tensor, "items dim"]:
        """E of every item: the members' side by side."""
        return self.items

    def encode(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """x_u of every history; see ``Backbone.encode``."""
        return torch.cat([member.encode(histories) for member in self.members], dim=1) / len(self.members)
