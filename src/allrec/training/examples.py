"""Training targets with their users and positions, and seeded initialisation: what stages 1 and 2 share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from allrec import seeds
from allrec.data.dataset import Dataset
from allrec.errors import InputError

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class Examples:
    """Training targets: row r is the item at ``positions[r]`` of the sequence of ``users[r]``."""

    users: Int[ndarray, "rows"]
    positions: Int[ndarray, "rows"]
    items: Int[ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: Int[ndarray, "chosen"]) -> "Examples":
        """The chosen ones, in their order."""
        return Examples(self.users[rows], self.positions[rows], self.items[rows])


def training_examples(dataset: Dataset, positions: Literal["last", "every"]) -> Examples:
    """Training items with at least one item before them: each user's last, or every one.

    Raises:
        InputError: there is none.
    """
    last = dataset.train_lengths - 1
    if positions == "last":
        users = np.flatnonzero(last >= 1)
        places = last[users]
    else:
        numbers = np.maximum(last, 0)
        users = np.repeat(np.arange(len(last)), numbers)
        places = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers) + 1
    if len(users) == 0:
        raise InputError(f"{dataset.name} has no user with two training interactions, so there is no training target.")
    return Examples(users, places, dataset.items[dataset.offsets[users] + places].astype(np.int64))


def sampled(examples: Examples, sample: int | None, rng: np.random.Generator) -> Examples:
    """A random sample of the examples, in their order; all of them where ``sample`` is None or not smaller."""
    if sample is None or sample >= len(examples):
        return examples
    return examples.take(np.sort(rng.choice(len(examples), sample, replace=False)))


def sampled_groups(
    examples: Examples, groups: Int[ndarray, "rows"], sample: int | None, rng: np.random.Generator
) -> Examples:
    """The same, whole groups where they can be: groups come in random order until the number is reached."""
    if sample is None or len(np.unique(groups)) == len(examples):
        return sampled(examples, sample, rng)
    place = rng.permutation(groups.max() + 1)[groups]
    return examples.take(np.sort(np.argsort(place, kind="stable")[:sample]))


def initialized(make: Callable[[], Module], seed: int, stream: str) -> Module:
    """Makes a module whose initial weights depend on the seed and the stream alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derived(seed, stream, "weights"))
        return make()
