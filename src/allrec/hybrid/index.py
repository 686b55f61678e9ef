"""An index of the nearest items built in shards, by any engine, and merged: as if built whole.

The partition is trained once; shards of items are sorted into it apart, and their lists are put one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allrec import storage
from allrec.files import load_tensors, save_tensors, sha256_file, sha256_text
from allrec.hybrid.retrieval import stored_index, trained_index, write_index
from allrec.parallel import Engine, Needs, ThisProcess
from allrec.shards import Shard, ShardTask

SUFFIX = ".faiss"
ITEMS_A_SHARD = 1 << 20


@dataclass(frozen=True)
class IndexShard(ShardTask):
    """Sorts the items of a shard into a trained partition.

    Attributes:
        out: folder or URL of the files.
        trained: path or URL of the index that holds the partition and no item.
        trained_sha256: of its bytes.
    """

    out: str
    trained: str
    trained_sha256: str
    suffix: str = SUFFIX

    @property
    def recipe(self) -> Mapping[str, Any]:
        """See ``ShardTask``."""
        return {"trained": self.trained_sha256}

    def make(self, shard: Shard, path: Path) -> None:
        """See ``ShardTask``."""
        with storage.local_file(shard.location) as file:
            tensors = load_tensors(file)
        index = read_index(self.trained)
        index.add_with_ids(tensors["vectors"].numpy(), tensors["ids"].numpy())
        write_index(index, path)


def build_index(
    items: Float[Tensor, "items dim"],
    out: Path | str,
    *,
    engine: Engine | None = None,
    needs: Needs = Needs(),
    items_a_shard: int = ITEMS_A_SHARD,
) -> str:
    """Builds the index of ``FaissSearch`` in shards; what was stopped goes on, and what is there is not built again.

    Args:
        items: embeddings.
        out: folder or URL that every worker reaches.
        engine: where shards are sorted in; this process where None. The bytes do not depend on it.
        needs: of one worker.
        items_a_shard: items of one shard; the bytes do not depend on it.

    Returns:
        Where the index is: a file that is named by the items' hash, for ``read_index``.
    """
    out = str(out)
    known = sha256_text(f"{tuple(items.shape)} {sha256_of(items)}")[: storage.NAME_LENGTH]
    location = storage.join(out, known + SUFFIX)
    if storage.exists(location):
        return location
    parts = storage.join(out, known)
    trained = storage.join(parts, "trained" + SUFFIX)
    if not storage.exists(trained):
        with storage.whole_file(trained) as path:
            write_index(trained_index(items), path)
    with storage.local_file(trained) as path:
        task = IndexShard(parts, trained, sha256_file(path))
    merged = read_index(trained)
    shards = _shards(items, parts, items_a_shard)
    for part in (engine or ThisProcess()).map(task, shards, needs):
        # Shards come in the items' order, so that lists are as they would be in one pass.
        merged.merge_from(read_index(part), 0)
    with storage.whole_file(location) as path:
        write_index(merged, path)
    storage.remove(parts)
    return location


def read_index(location: str) -> Any:
    """An index of FAISS behind a path or a URL."""
    with storage.local_file(location) as path:
        return stored_index(path)


def sha256_of(items: Float[Tensor, "items dim"]) -> str:
    """Of the bytes of embeddings."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(items.numpy(), np.float32).data).hexdigest()


def _shards(items: Float[Tensor, "items dim"], folder: str, size: int) -> Any:
    for number, start in enumerate(range(0, len(items), size)):
        location = storage.join(folder, f"{number:06d}.safetensors")
        if not storage.exists(location):
            with storage.whole_file(location) as path:
                rows = items[start : start + size].float().contiguous()
                save_tensors(path, {"vectors": rows, "ids": torch.arange(start, start + len(rows))})
        with storage.local_file(location) as path:
            yield Shard(location, sha256_file(path))
