"""Shards are files, and a task is a pure function from a shard to a file that is named by what decides its content.

So retry, kill and resume are one thing: a file that is there is whole, and is not made again.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allrec import storage
from allrec.files import sha256_text


@dataclass(frozen=True)
class Shard:
    """A file of a task's input.

    Attributes:
        location: a path or a URL that every worker reaches.
        sha256: of its bytes.
    """

    location: str
    sha256: str


class ShardTask(ABC):
    """Makes one file of a shard.

    Attributes:
        out: folder or URL of the files.
        suffix: of their names.
    """

    out: str
    suffix: str = ".parquet"

    @property
    @abstractmethod
    def recipe(self) -> Mapping[str, Any]:
        """All that decides what a shard becomes, as plain values; nothing of where and by whom it is done."""

    @abstractmethod
    def make(self, shard: Shard, path: Path) -> None:
        """Writes what the shard becomes to a local path."""

    def location_of(self, shard: Shard) -> str:
        """Where the file of a shard is written."""
        named = sha256_text(json.dumps([shard.sha256, self.recipe], sort_keys=True))[: storage.NAME_LENGTH]
        return storage.join(self.out, named + self.suffix)

    def __call__(self, shard: Shard) -> str:
        """The file of a shard, made where it is not there yet."""
        location = self.location_of(shard)
        if not storage.exists(location):
            with storage.whole_file(location) as path:
                self.make(shard, path)
        return location
