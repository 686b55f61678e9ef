"""The interface of a collaborative backbone: histories become user representations, items have embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from allrec.data.dataset import Dataset
from allrec.errors import Config
from allrec.training.batches import budgeted, pad_histories

# Positions encoded at one time outside training, padding included: their states fit in a core's cache.
ENCODED_TOGETHER = 1024

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Backbone(Protocol):
    """Turns a history into a user representation x_u and has an embedding E_i of every item; x_u · E_i scores.

    Attributes:
        num_items: size of the catalogue.
        dim: width of user representations and item embeddings.
        max_length: how many of the latest items of a history count.
    """

    num_items: int
    dim: int
    max_length: int

    def item_embeddings(self) -> Float[Tensor, "items dim"]:
        """E of every item, in the catalogue's order."""
        ...

    def encode(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """x_u of every history.

        Args:
            histories: item ids, oldest first, padded with -1 on the right; of any length, the latest ``max_length``
                count. An empty history gives zeros.

        Raises:
            ValueError: an id outside the catalogue, or padding before an item.
        """
        ...


class StatesBackbone(nn.Module, ABC):
    """A backbone that gives a state at every place of a history, from the items up to it; x_u is the last of them.

    Attributes:
        config: its shape, complete: with it and the tensors it can be built again.
        item_table: E, the embeddings that score.
    """

    config: Config

    def __init__(self, num_items: int, dim: int, max_length: int) -> None:
        super().__init__()
        self.num_items, self.dim, self.max_length = num_items, dim, max_length
        self.item_table = nn.Parameter(torch.zeros(num_items, dim))

    @abstractmethod
    def states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """The state at every place, each a function of the items up to it and of the history's length.

        Args:
            histories: as for ``encode``, at most ``max_length`` wide; places of padding give no meaning.
        """

    def last_states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """The state at each history's latest item; that of an empty one means nothing."""
        places = ((histories >= 0).sum(dim=1) - 1).clamp(min=0)
        return self.states(histories)[torch.arange(len(histories), device=histories.device), places]

    def item_embeddings(self) -> Float[Tensor, "items dim"]:
        """E of every item, in the catalogue's order."""
        return self.item_table

    def encode(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """x_u of every history: the state at its latest item. An empty history gives zeros.

        Raises:
            ValueError: an id outside the catalogue, or padding before an item.
        """
        check_histories(histories, self.num_items)
        histories = latest(histories, self.max_length)
        if histories.shape[1] == 0:
            return self.item_table.new_zeros(len(histories), self.dim)
        return self.last_states(histories) * (histories[:, :1] >= 0)


def undrawn(kind: type[Module], *arguments: Any, **settings: Any) -> Module:
    """A layer without weights yet, so that nothing draws from torch's global generator; its biases are zero."""
    layer = kind(*arguments, device="meta", **settings).to_empty(device="cpu")
    for parameter in layer.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
    return layer


def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draws all matrices and kernels of a module, normal with Glorot's variance, in the order of its parameters."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter, generator=generator)


def freeze(module: Module) -> Module:
    """The module itself, in eval mode and without gradients. Keep it outside whatever is trained."""
    return module.eval().requires_grad_(False)


def check_histories(histories: Int[Tensor, "batch length"], num_items: int) -> None:
    """Refuses histories that are not item ids padded with -1 on the right.

    Raises:
        ValueError: says which row is wrong.
    """
    is_outside = (histories < -1) | (histories >= num_items)
    if is_outside.any():
        row, column = is_outside.nonzero()[0].tolist()
        raise ValueError(
            f"row {row} holds item {histories[row, column].item()}, expected 0 to {num_items - 1}, or -1 for padding"
        )
    is_item = histories >= 0
    is_gap = is_item[:, 1:] & ~is_item[:, :-1]
    if is_gap.any():
        raise ValueError(f"row {is_gap.nonzero()[0, 0].item()} has padding before an item, expected it on the right")


def latest(histories: Int[Tensor, "batch length"], max_length: int) -> Int[Tensor, "batch shorter"]:
    """The latest ``max_length`` items of every history, padded on the right again."""
    lengths = (histories >= 0).sum(dim=1)
    width = min(max_length, histories.shape[1])
    places = (lengths - max_length).clamp(min=0)[:, None] + torch.arange(width, device=histories.device)
    is_item = places < lengths[:, None]
    return histories.gather(1, places.clamp(max=max(0, histories.shape[1] - 1))).masked_fill(~is_item, -1)


@torch.no_grad()
def encode_histories(
    backbone: Backbone,
    items: Int[np.ndarray, "interactions"],
    starts: Int[np.ndarray, "rows"],
    ends: Int[np.ndarray, "rows"],
) -> Float[Tensor, "rows dim"]:
    """x_u of the histories ``items[start:end]``, those of like length together so that little padding is computed."""
    table = backbone.item_embeddings()
    users = table.new_empty(len(starts), backbone.dim)
    lengths = np.clip(ends - starts, 1, backbone.max_length)
    for rows in budgeted(np.argsort(-lengths, kind="stable"), lengths, ENCODED_TOGETHER):
        histories = pad_histories(items, starts[rows], ends[rows], backbone.max_length)
        users[torch.from_numpy(rows).to(table.device)] = backbone.encode(histories.to(table.device))
    return users


def represent_users(
    backbone: Backbone, dataset: Dataset, users: Int[ndarray, "rows"], positions: Int[ndarray, "rows"]
) -> Float[Tensor, "rows dim"]:
    """x_u for each row: the user's history before that place, through the frozen backbone."""
    starts = dataset.offsets[users]
    return encode_histories(backbone, dataset.items, starts, starts + positions)


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
