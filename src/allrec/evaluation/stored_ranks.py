"""Ranks on disk, a value a user: what paired tests between runs and curves over popularity are made from."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from allrec.artifacts import load_tensors, save_tensors
from allrec.data import Dataset
from allrec.evaluation.protocols import Ranking

RANKS = "ranks.safetensors"


class StoredRanks(NamedTuple):
    """What an evaluation found.

    Attributes:
        rankings: by (split, protocol, scorer).
        targets: the target item of every row of a split.
    """

    rankings: dict[tuple[str, str, str], Ranking]
    targets: dict[str, Int[ndarray, "rows"]]


def save_ranks(folder: Path, rankings: list[Ranking], dataset: Dataset) -> None:
    """Writes ``ranks.safetensors``: ``split/protocol/scorer/rows`` and ``.../ranks``, and ``split/targets``.

    Where retrieval chose the candidates, ``.../found`` says where it found the target.
    """
    arrays: dict[str, ndarray] = {}
    for ranking in rankings:
        key = f"{ranking.split}/{ranking.protocol}/{ranking.scorer}"
        arrays |= {f"{key}/rows": ranking.rows, f"{key}/ranks": ranking.ranks}
        if ranking.is_retrieved is not None:
            arrays[f"{key}/found"] = ranking.is_retrieved
        arrays[f"{ranking.split}/targets"] = dataset.targets[ranking.split].items
    tensors = {key: torch.from_numpy(np.array(values, np.int64)) for key, values in arrays.items()}
    save_tensors(folder / RANKS, tensors)


def with_earlier(folder: Path, rankings: list[Ranking]) -> list[Ranking]:
    """What earlier evaluations of the run found and this one did not ask for, then what this one found."""
    if not (folder / RANKS).is_file():
        return rankings
    found = {(ranking.split, ranking.protocol, ranking.scorer) for ranking in rankings}
    return [ranking for key, ranking in load_ranks(folder).rankings.items() if key not in found] + rankings


def load_ranks(folder: Path) -> StoredRanks:
    """Reads what ``save_ranks`` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    arrays = {key: tensor.numpy() for key, tensor in load_tensors(folder / RANKS).items()}
    rankings, targets = {}, {}
    for key, values in arrays.items():
        match key.split("/"):
            case [split, protocol, scorer, "ranks"]:
                start = f"{split}/{protocol}/{scorer}"
                rows, found = arrays[f"{start}/rows"], arrays.get(f"{start}/found")
                is_retrieved = None if found is None else found > 0
                rankings[split, protocol, scorer] = Ranking(split, protocol, scorer, rows, values, 0.0, is_retrieved)
            case [split, "targets"]:
                targets[split] = values
    return StoredRanks(rankings, targets)
