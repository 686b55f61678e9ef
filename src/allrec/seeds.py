"""Named streams of random numbers: a seed and the names of what draws give a stream, and no two names share one.

Example:
    >>> bool(rng(0, "fusion", "folds").random() == rng(0, "fusion", "folds").random())
    True
    >>> derived(0, "fusion") == derived(0, "fusion", 0)
    False
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for what the names say, such as ``rng(seed, "backbone", "order", epoch)``."""
    return np.random.default_rng(np.frombuffer(_digest(seed, names), np.uint32))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """The same for torch, on a CPU."""
    import torch

    return torch.Generator().manual_seed(derived(seed, *names))


def derived(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for what takes seeds alone: a library, or a further training."""
    return int.from_bytes(_digest(seed, names)[:8], "little") >> 1


def _digest(seed: int, names: tuple[str | int, ...]) -> bytes:
    # A list as JSON keeps apart what a join would not: "a", "bc" and "ab", "c", or 1 and "1".
    return hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
