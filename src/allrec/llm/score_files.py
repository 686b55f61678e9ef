"""What the language model made of users, kept on disk as it comes, so that a kill costs one chunk at most."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from allrec.files import load_tensors, save_tensors

USERS_A_CHUNK = 512
"""Users scored between two writes: at most so many are scored again after a kill."""
SCORES = "scores"


def stored(folders: Sequence[Path], name: str, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """A tensor as one of the folders has it, else computed and written to the first; with no folder nothing is kept."""
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is not None:
        return load_tensors(path)[key]
    values = compute()
    if folders:
        save_tensors(folders[0] / name, {key: values})
    return values


def chunk_name(start: str, first: int, *arrays: Int[ndarray, "..."]) -> str:
    """The file of a chunk: what it is of, the place of its first row, and a digest of all that it depends on."""
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:12]
    return f"{start}-{first}-{digest}.safetensors"
