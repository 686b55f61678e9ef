"""Work over shards that tests can watch: importable by workers, harmless to repeat."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allrec.errors import InputError
from allrec.files import sha256_file
from allrec.parallel import Needs
from allrec.shards import Shard, ShardTask


def write_shards(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number in range(count):
        path = folder / f"{number}.txt"
        path.write_text(f"shard {number}")
        shards.append(Shard(str(path), sha256_file(path)))
    return shards


@dataclass(frozen=True)
class Upper(ShardTask):
    """Writes a shard in capitals, and a line of ``log`` for every call: name, process, threads."""

    out: str
    log: str
    kill: str | None = None
    is_fatal: bool = False
    fail: str | None = None
    suffix: str = ".txt"

    @property
    def recipe(self) -> Mapping[str, Any]:
        return {"what": "capitals"}

    def make(self, shard: Shard, path: Path) -> None:
        name = Path(shard.location).name
        first = not any(line.startswith(f"{name} ") for line in lines_of(self.log))
        with open(self.log, "a") as file:
            file.write(f"{name} {os.getpid()} {torch.get_num_threads()}\n")
        path.write_text(Path(shard.location).read_text().upper()[:3])
        if name in (self.kill or "").split(",") and (first or self.is_fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == self.fail:
            raise InputError(f"{name} is bad")
        path.write_text(Path(shard.location).read_text().upper())


@dataclass(frozen=True)
class Accelerator:
    """Tells which accelerator a task sees, and whether it was the only task at work: ``mark`` is there meanwhile."""

    mark: str

    def __call__(self, number: int) -> tuple[str | None, bool]:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return os.environ.get("CUDA_VISIBLE_DEVICES"), False
        time.sleep(0.3)
        os.unlink(self.mark)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), True


def files_of(folder):
    """The bytes of a folder's Parquet files by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".parquet"}


def lines_of(log):
    return Path(log).read_text().splitlines() if Path(log).exists() else []


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


@dataclass(frozen=True)
class KillOnce:
    """An engine whose first worker to begin a part of a kind of work dies of ``kill -9``.

    Attributes:
        engine: that does the work.
        killed: folder with an empty file for each kind of work of which a worker was killed.
    """

    engine: Any
    killed: Path

    def map(self, work, parts, needs=Needs()):
        self.killed.mkdir(exist_ok=True)
        return self.engine.map(DieFirst(work, self.killed / type(work).__name__), parts, needs)


@dataclass(frozen=True)
class DieFirst:
    """Work that kills its worker the first time it is called anywhere."""

    work: Any
    killed: Path

    def __call__(self, part):
        try:
            self.killed.touch(exist_ok=False)
        except FileExistsError:
            return self.work(part)
        os.kill(os.getpid(), signal.SIGKILL)
