"""What recommend-all takes by the number of users: users a second, and memory of a worker that no file backs.

One run is trained, an epoch of each part, on few users of a simulated marketplace, its items' texts embedded at random.
Then it is given the histories of more and more users; what it learned stays.

    python bench/everyone.py --users 10000 30000 100000 --items 100000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from allrec.alignment.text_cache import cached_embeddings
from allrec.alignment.text_encoder import fingerprint
from allrec.config import load_recipe
from allrec.data import Dataset, PrepareConfig, SimulationConfig, load_dataset, prepare, simulate
from allrec.data.catalogue import Catalogue
from allrec.files import read_json, sha256_file, write_json
from allrec.hybrid.content import TrainingHistories, save_training_histories
from allrec.parallel import Processes
from allrec.recommender import AllRec

TEXT_DIM = 384
RECIPE = (
    "llm.enabled=false",
    "fusion.evidence.ensemble=1",
    "backbone.loss=sampled-softmax",
    "backbone.loop.epochs=1",
    "alignment.loop.epochs=1",
    "fusion.evidence.tower.loop.epochs=1",
    "fusion.evidence.content.backbone.loss=sampled-softmax",
    "fusion.evidence.content.backbone.loop.epochs=1",
    "fusion.training.loop.epochs=2",
)
EVERY = 0.05
"""Seconds between two looks at the workers' memory."""


def anonymous(process: int) -> int:
    """Bytes of a process that no file backs; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def processor_seconds(process: int) -> float:
    """Processor time of a process so far; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Workers:
    """Watches the largest memory and the processor time of every process below one, while the block lasts."""

    def __init__(self, program: int) -> None:
        self.program, self.memory, self.seconds = program, dict[int, int](), dict[int, float]()
        self.ended, self.thread = Event(), Thread(target=self._watch)

    def __enter__(self) -> Workers:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        import psutil

        while not self.ended.wait(EVERY):
            # The program ends before the block does.
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.program).children(recursive=True):
                    self.memory[child.pid] = max(self.memory.get(child.pid, 0), anonymous(child.pid))
                    self.seconds[child.pid] = max(self.seconds.get(child.pid, 0.0), processor_seconds(child.pid))


def prepared(folder: Path, users: int, items: int) -> Dataset:
    """A marketplace of as many users over the same items, prepared where it is not there yet."""
    if not (folder / "dataset").exists():
        simulate(folder / "source", SimulationConfig(num_users=users, num_items=items, mean_interactions=10))
        prepare(folder / "source", folder / "dataset", config=PrepareConfig(name="simulated"))
    return load_dataset(folder / "dataset")


def embed_at_random(dataset: Dataset, cache: Path, recipe: Any) -> None:
    """Fills the cache of text embeddings, so that no encoder has to be run."""
    generator = torch.Generator().manual_seed(0)

    def encode(texts: list[str]) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(len(texts), TEXT_DIM, generator=generator), dim=1)

    cached_embeddings(dataset.texts, fingerprint(recipe.text), lambda: encode, cache)


def trained(dataset: Dataset, folder: Path) -> Path:
    """A run on a data set, trained where it is not there yet."""
    run, recipe = folder / "run", load_recipe("allround", RECIPE)
    if not run.exists():
        embed_at_random(dataset, folder / "texts", recipe)
        AllRec.train(dataset, run=run, recipe=recipe, cache=folder / "texts", is_evaluated=False)
    return run


def with_users(run: Path, dataset: Dataset, folder: Path) -> Path:
    """The same run with the users of another data set over the same items."""
    copy = folder / "run"
    if not copy.exists():
        shutil.copytree(run, copy)
        Catalogue.of(dataset).save(copy / "catalogue")
        save_training_histories(copy / "content", TrainingHistories.of(dataset))
        manifest = read_json(copy / "manifest.json")
        for stage in ("catalogue", "content"):
            manifest["stages"][stage]["sha256"] = {
                path.name: sha256_file(path) for path in sorted((copy / stage).iterdir())
            }
        write_json(copy / "manifest.json", manifest)
    return copy


def job(run: Path, out: Path, workers: int, part: int) -> None:
    """Recommends to everybody, in a program of its own."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    system = AllRec.from_pretrained(run)
    loaded = time.perf_counter()
    done = system.recommend_all(out, engine=Processes(workers), users_a_part=part)
    write_json(out / "seconds.json", {
        "users": done["users"], "load": loaded - begun, "recommend": time.perf_counter() - loaded,
        "program_mib": anonymous(os.getpid()) >> 20,
    })  # fmt: skip


def measured(run: Path, out: Path, workers: int, part: int) -> dict[str, Any]:
    """Users a second, processor time, and the most memory of each worker."""
    shutil.rmtree(out, ignore_errors=True)
    process = multiprocessing.get_context("spawn").Process(target=job, args=(run, out, workers, part))
    process.start()
    with Workers(process.pid or 0) as seen:
        process.join()
    found = read_json(out / "seconds.json")
    # The largest: others are the server that workers come of and what counts shared objects.
    largest = sorted(seen.memory, key=seen.memory.__getitem__)[-workers:]
    found["worker_mib"] = [seen.memory[one] >> 20 for one in largest]
    found["worker_cpu_seconds"] = [round(seen.seconds[one], 1) for one in largest]
    found["users_a_second"] = found["users"] / found["recommend"]
    found["users_a_cpu_second"] = found["users"] / sum(seen.seconds[one] for one in largest)
    return found


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures every number of users and prints a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 30_000])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--trained-users", type=int, default=1_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="each of these, one after the other")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--part", type=int, default=8_192, help="users of a file; from 8,192 on an index is used")
    parser.add_argument("--folder", type=Path, help="where runs are kept; a temporary one where none is given")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        first = trained(prepared(folder / "trained", given.trained_users, given.items), folder / "trained")
        for users in given.users:
            own = folder / str(users)
            dataset = prepared(own, users, given.items)
            run = with_users(first, dataset, own)
            for _ in range(given.repeats):
                for workers in given.workers:
                    line = {"items": dataset.num_items, "part": given.part, "workers": workers}
                    found.append(line | measured(run, own / "out", workers, given.part))
                    print(json.dumps(found[-1]), flush=True)
    return found


if __name__ == "__main__":
    main()
