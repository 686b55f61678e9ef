"""Similarity of candidates to the items of a history: by embeddings, title words and co-occurrence."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from allrec.files import load_tensors, save_tensors
from allrec.hybrid.content import TrainingHistories, Words

DAMPING = 3.0
"""Added to an item's count, so that two items that were bought once, together, are not the nearest neighbours."""
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
        history, candidate = (functional.embedding(one.clamp(min=0), self.unit) for one in (items, candidates))
        return history @ candidate.transpose(1, 2)


class WordSpace(NamedTuple):
    """Cosine of weighed title words.

    Attributes:
        ids: every item's words, concatenated.
        weights: of the words.
        bounds: where every item's words begin, and the last one's end.
        vocabulary_size: how many words there are.
    """

    ids: Int[Tensor, "words"]
    weights: Float[Tensor, "words"]
    bounds: Int[Tensor, "items_and_one"]
    vocabulary_size: int

    @classmethod
    def of(cls, words: Words, vocabulary_size: int) -> "WordSpace":
        """From the words of all items."""
        return cls(
            words.ids, words.weights, functional.pad(words.offsets, (0, 1), value=len(words.ids)), vocabulary_size
        )

    def similarity(
        self, items: Int[Tensor, "rows length"], candidates: Int[Tensor, "rows candidates"]
    ) -> Float[Tensor, "rows length candidates"]:
        """See ``Space``."""
        (num_rows, length), num_candidates = items.shape, candidates.shape[1]
        owners, words, _ = self._words(items)
        known = self.ids[words]
        slots = torch.zeros(self.vocabulary_size, dtype=torch.int64)
        slots[known] = 1
        # A row's table has a line for each word of any history here, and a column for each item of its own.
        num_lines = int(slots.sum()) + 1
        slots *= slots.cumsum(dim=0)
        tables = torch.zeros(num_rows * num_lines, length)
        tables[owners // length * num_lines + slots[known], owners % length] = self.weights[words]
        places, words, begins = self._words(candidates)
        wanted = places // num_candidates * num_lines + slots[self.ids[words]]
        sums = functional.embedding_bag(wanted, tables, begins, mode="sum", per_sample_weights=self.weights[words])
        return sums.view(*candidates.shape, length).transpose(1, 2)

    def _words(
        self, items: Int[Tensor, "rows items"]
    ) -> tuple[Int[Tensor, "words"], Int[Tensor, "words"], Int[Tensor, "all_items"]]:
        """The words of items (padding: of item 0): the item of each word, its position, and where each item's begin."""
        wanted = items.clamp(min=0).flatten()
        starts = self.bounds[wanted]
        lengths = self.bounds[wanted + 1] - starts
        begins = lengths.cumsum(dim=0) - lengths
        whose = torch.repeat_interleave(lengths)
        return whose, torch.arange(len(whose)) + (starts - begins)[whose], begins


class Neighbours(NamedTuple):
    """Item-kNN: how often two items occur near each other in training histories, over the root of their counts.

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


class Occurrences(NamedTuple):
    """How often items occur in training histories, alone and near each other: all that evidence needs of them.

    Attributes:
        counts: of every item.
        neighbours: of pairs.
        num_trained: size of the catalogue that was trained on.
    """

    counts: Int[ndarray, "items"]
    neighbours: Neighbours
    num_trained: int

    @classmethod
    def of(cls, train: TrainingHistories, num_items: int) -> "Occurrences":
        """Counted in training histories, for a catalogue that may have more items than they do."""
        counts = np.bincount(train.items, minlength=num_items)
        return cls(counts, Neighbours.of(train.offsets, train.items, num_items), train.num_items)

    def save(self, path: Path) -> None:
        """Writes one file of tensors."""
        neighbours = {"keys": self.neighbours.keys, "weights": self.neighbours.weights}
        save_tensors(
            path,
            {**neighbours, "counts": torch.from_numpy(self.counts), "num_trained": torch.tensor([self.num_trained])},
        )

    @classmethod
    def load(cls, path: Path) -> "Occurrences":
        """Reads what ``save`` wrote; pairs stay in the file, of which the system keeps in memory what is looked up."""
        tensors = load_tensors(path)
        counts = tensors["counts"].numpy()
        neighbours = Neighbours(tensors["keys"], tensors["weights"], len(counts))
        return cls(counts, neighbours, int(tensors["num_trained"]))
