"""The language model's scores of lists of candidates, kept as they come, so that a kill costs one chunk at most."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.dataset import Dataset, Targets
from allrec.files import load_tensors, save_tensors
from allrec.parallel import OnProgress

USERS_A_CHUNK = 512
"""Users scored by the language model between two writes: at most so many are scored again after a kill."""


class LlmScorers(Protocol):
    """What scoring with the language model asks of a system."""

    def represent(self, histories: list[Int[ndarray, "length"]]) -> Float[Tensor, "users dim"]:
        """x_u of each history."""
        ...

    def score_with_llm(
        self, users: Tensor, histories: list[ndarray], candidates: ndarray, scorer: Any
    ) -> Float[ndarray, "users candidates"]:
        """log P(title | prompt) of every candidate."""
        ...


class Asked(NamedTuple):
    """Lists that the language model is asked to score.

    Attributes:
        split: "valid" or "test".
        name: of the lists, such as their protocol.
        scorer: such as "llm".
        rows: rows of the split's targets.
        candidates: a list for each of these rows, in the order in which the prompt lists it.
    """

    split: str
    name: str
    scorer: str
    rows: Int[ndarray, "rows"]
    candidates: Int[ndarray, "rows candidates"]


def stored_llm_scores(
    system: LlmScorers, dataset: Dataset, asked: Asked, folders: Sequence[Path], on_progress: OnProgress
) -> Float[ndarray, "rows candidates"]:
    """Scores, read where one of the folders has them, else computed and written to the first.

    Args:
        system: scores.
        dataset: whose histories are told.
        asked: the lists.
        folders: may be none, then nothing is kept.
        on_progress: called after each chunk.
    """
    targets = dataset.targets[asked.split]
    scores = np.empty(asked.candidates.shape, np.float32)
    for start in range(0, len(asked.rows), USERS_A_CHUNK):
        part = slice(start, start + USERS_A_CHUNK)
        rows, candidates = asked.rows[part], asked.candidates[part]
        digest = hashlib.sha256(rows.tobytes() + candidates.tobytes()).hexdigest()[:12]

        def compute(rows: ndarray = rows, candidates: ndarray = candidates) -> Tensor:
            histories = histories_before(dataset, targets, rows)
            found = system.score_with_llm(system.represent(histories), histories, candidates, asked.scorer)
            return torch.from_numpy(found)

        name = f"{asked.split}-{asked.name}-{asked.scorer}-{start}-{digest}.safetensors"
        scores[part] = stored(folders, name, "scores", compute).numpy()
        done = min(len(asked.rows), start + USERS_A_CHUNK)
        on_progress(done / len(asked.rows), {"users": float(done)})
    return scores


def stored(folders: Sequence[Path], name: str, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """A tensor as one of the folders has it, else computed and written to the first; with no folder nothing is kept."""
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is not None:
        return load_tensors(path)[key]
    values = compute()
    if folders:
        save_tensors(folders[0] / name, {key: values})
    return values


def histories_before(dataset: Dataset, targets: Targets, rows: Int[ndarray, "rows"]) -> list[Int[ndarray, "length"]]:
    """Each row's history before its target, oldest first."""
    starts = dataset.offsets[targets.users[rows]]
    return [
        dataset.items[start : start + length] for start, length in zip(starts, targets.positions[rows], strict=True)
    ]
