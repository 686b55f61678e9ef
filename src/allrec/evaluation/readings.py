"""Scorer ``readout``: users read by the language model once, kept for every protocol, and ranked by a dot product."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.dataset import Dataset
from allrec.evaluation.evaluate import Plan, Ranked, Ranker, Task
from allrec.evaluation.llm_scores import histories_before, stored
from allrec.evaluation.ranks import dot_product_ranks
from allrec.parallel import OnProgress

READ_A_CHUNK = 2048
"""Users read between two writes: at most so many are read again after a kill."""


class Readers(Protocol):
    """What a reading asks of a system."""

    @property
    def readout_items(self) -> Float[Tensor, "items readout_dim"]:
        """Every item as the head scores it."""
        ...

    def represent(self, histories: list[Int[ndarray, "length"]]) -> Float[Tensor, "users dim"]:
        """x_u of each history."""
        ...

    def read(
        self, users: Float[Tensor, "users dim"], histories: list[Int[ndarray, "length"]]
    ) -> Float[Tensor, "users readout_dim"]:
        """What the head makes of each user."""
        ...


def readout_ranker(system: Readers) -> Ranker:
    """Ranks by the read-out head under any protocol; as many users as the language model scores."""

    def rank(dataset: Dataset, task: Task, plan: Plan, on_progress: OnProgress) -> Ranked:
        targets = dataset.targets[task.split]
        rows = plan.rows(task, len(targets))
        # Read once for all protocols, of which some may rank fewer of them.
        read = plan.rows(task._replace(protocol="paper"), len(targets))
        users = stored_readings(system, dataset, task.split, read, plan.folders, on_progress)
        users = users[torch.from_numpy(np.searchsorted(read, rows))]
        return Ranked(rows, dot_product_ranks(users, system.readout_items, dataset, targets.take(rows), task.protocol))

    return rank


def stored_readings(
    system: Readers,
    dataset: Dataset,
    split: str,
    rows: Int[ndarray, "rows"],
    folders: Sequence[Path],
    on_progress: OnProgress,
) -> Float[Tensor, "rows readout_dim"]:
    """The head's vector of each user, read where one of the folders has it, else computed and written to the first.

    Args:
        system: reads.
        dataset: whose histories are told.
        split: "valid" or "test".
        rows: of the split's targets.
        folders: may be none, then nothing is kept.
        on_progress: called after each chunk.
    """
    chunks = []
    for start in range(0, len(rows), READ_A_CHUNK):
        part = rows[start : start + READ_A_CHUNK]
        name = f"{split}-readout-{start}-{hashlib.sha256(part.tobytes()).hexdigest()[:12]}.safetensors"

        def compute(part: Int[ndarray, "part"] = part) -> Tensor:
            histories = histories_before(dataset, dataset.targets[split], part)
            return system.read(system.represent(histories), histories)

        chunks.append(stored(folders, name, "vectors", compute))
        done = start + len(part)
        on_progress(done / len(rows), {"users": float(done)})
    return torch.cat(chunks)
