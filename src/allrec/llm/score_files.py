"""What the language model made of users, kept on disk as it comes, so that a kill costs one chunk at most."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from allrec.alignment.text_cache import default_cache
from allrec.files import load_tensors, save_tensors

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel
    from allrec.llm.prompt import Packed, Prompts

USERS_A_CHUNK = 64
"""Users scored between two writes: a kill costs at most these."""
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


def score_cache() -> Path:
    """Where scores of bare prompts are cached for all runs: beside the cached text embeddings."""
    return default_cache().with_name("llm-scores")


def content_name(
    llm: LanguageModel, prompts: Prompts, answers: Packed, is_candidate: Bool[ndarray, "users candidates"]
) -> str:
    """The file of scores of bare prompts, by all that they depend on: weights, precision, prompts and answers."""
    said = json.dumps(llm.identity, sort_keys=True).encode()
    arrays = (prompts.tokens.values, prompts.tokens.offsets, answers.values, answers.offsets, is_candidate)
    digest = hashlib.sha256(b"".join([said, *(array.tobytes() for array in arrays)])).hexdigest()
    return f"{digest[:2]}/{digest}.safetensors"
