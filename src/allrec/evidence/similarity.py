"""How near candidates lie to the items of a history: by embeddings, by rare words, by users in common."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from allrec.models.content import Words

DAMPING = 3.0
"""Added to an item's count, so that two items that were bought once, together, are not the surest neighbours."""
NEAR = 50
"""Places in a history between two items that count as bought together, at most."""


class Space(Protocol):
    """Compares items with items."""

    def similarity(
        self, items: Int[Tensor, "rows length"], candidates: Int[Tensor, "rows candidates"]
    ) -> Float[Tensor, "rows length candidates"]:
        """Of every item of a row with every candidate of the row; padding gives a number without meaning."""
        ...


class DenseSpace(NamedTuple):
    """Cosine of embeddings. Items without one (zeros) are similar to none.

    Attributes:
        unit: normalised embeddings.
    """

    unit: Float[Tensor, "items dim"]

    @classmethod
    def of(cls, *embeddings: Float[Tensor, "items dim"]) -> "DenseSpace":
        """From embeddings of any length; the cosine of several is the mean of theirs."""
        units = [functional.normalize(one.detach().float(), dim=1) for one in embeddings]
        return cls(torch.cat(units, dim=1) / len(units) ** 0.5)

    def similarity(
        self, items: Int[Tensor, "rows length"], candidates: Int[Tensor, "rows candidates"]
    ) -> Float[Tensor, "rows length candidates"]:
        """See ``Space``."""
        told, asked = (functional.embedding(one.clamp(min=0), self.unit) for one in (items, candidates))
        return told @ asked.transpose(1, 2)


class WordSpace(NamedTuple):
    """Cosine of weighed title words.

    Attributes:
        ids: every item's words, padded with ``vocabulary_size``.
        weights: 0 for padding.
        vocabulary_size: how many words there are.
    """

    ids: Int[Tensor, "items words"]
    weights: Float[Tensor, "items words"]
    vocabulary_size: int

    @classmethod
    def of(cls, words: Words, vocabulary_size: int) -> "WordSpace":
        """From words one item after the other."""
        lengths = torch.diff(words.offsets, append=torch.tensor([len(words.ids)])).tolist()
        ids = pad_sequence(list(torch.split(words.ids, lengths)), True, vocabulary_size)
        return cls(ids, pad_sequence(list(torch.split(words.weights, lengths)), True), vocabulary_size)

    def similarity(
        self, items: Int[Tensor, "rows length"], candidates: Int[Tensor, "rows candidates"]
    ) -> Float[Tensor, "rows length candidates"]:
        """See ``Space``."""
        words, asked = self.ids[items.clamp(min=0)], candidates.clamp(min=0)
        known = torch.unique(words)
        slots = torch.zeros(self.vocabulary_size + 1, dtype=torch.int64)
        slots[known] = torch.arange(1, len(known) + 1)
        # A row's table has a line for each word of any history here, and a column for each item of its own.
        starts, length = torch.arange(len(items))[:, None, None] * (len(known) + 1), items.shape[1]
        tables = torch.zeros(len(items) * (len(known) + 1), length)
        columns = torch.arange(length)[:, None].expand_as(words)
        tables[(starts + slots[words]).flatten(), columns.flatten()] = self.weights[items.clamp(min=0)].flatten()
        wanted = (starts + slots[self.ids[asked]]).flatten(0, 1)
        weights = self.weights[asked].flatten(0, 1)
        found = functional.embedding_bag(wanted, tables, mode="sum", per_sample_weights=weights)
        return found.view(*candidates.shape, length).transpose(1, 2)


class Neighbours(NamedTuple):
    """Item-kNN: how often two items stand near each other in training histories, over the root of their counts.

    Attributes:
        keys: first item · items + second item, ascending.
        weights: similarity of each pair.
        num_items: size of the catalogue.

    Source: Sarwar et al., WWW 2001, cosine, damped and within a window.
    """

    keys: Int[Tensor, "pairs"]
    weights: Float[Tensor, "pairs"]
    num_items: int

    @classmethod
    def of(cls, offsets: Int[ndarray, "offsets"], items: Int[ndarray, "interactions"], num_items: int) -> "Neighbours":
        """Counts pairs in training histories; an item that a user had twice is its own neighbour."""
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        pairs = [np.zeros(0, np.int64)]
        for gap in range(1, min(NEAR, np.diff(offsets).max(initial=0)) + 1):
            is_same = users[gap:] == users[:-gap]
            before, after = items[:-gap][is_same].astype(np.int64), items[gap:][is_same]
            pairs.extend([before * num_items + after, after * np.int64(num_items) + before])
        keys, together = np.unique(np.concatenate(pairs), return_counts=True)
        damped = np.sqrt(np.bincount(items, minlength=num_items) + DAMPING)
        weights = together / (damped[keys // num_items] * damped[keys % num_items])
        return cls(torch.from_numpy(keys), torch.from_numpy(weights).float(), num_items)

    def similarity(
        self, items: Int[Tensor, "rows length"], candidates: Int[Tensor, "rows candidates"]
    ) -> Float[Tensor, "rows length candidates"]:
        """See ``Space``."""
        wanted = items[:, :, None] * self.num_items + candidates[:, None]
        if len(self.keys) == 0:
            return torch.zeros(wanted.shape)
        places = torch.searchsorted(self.keys, wanted.contiguous()).clamp(max=len(self.keys) - 1)
        return self.weights[places] * (self.keys[places] == wanted)
