"""What Ray costs over processes, and what training by two workers comes to beside one.

python bench/engines.py overhead --tasks 200 --seconds 1
python bench/engines.py loss --users 5000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allrec.backbones.training import train_backbone
from allrec.config import load_recipe
from allrec.data import PrepareConfig, SimulationConfig, load_dataset, prepare, simulate
from allrec.parallel import Engine, Needs, Processes
from allrec.training.distributed import Workers, place

WORKERS = 2
SEED = 3


def slept(seconds: float) -> float:
    """A task that only takes time."""
    time.sleep(seconds)
    return seconds


def seconds_of(engine: Engine, tasks: int, seconds: float) -> float:
    """How long an engine takes for tasks, its workers begun before."""
    list(engine.map(slept, [0.0] * 2 * WORKERS, Needs()))
    start = time.perf_counter()
    list(engine.map(slept, [seconds] * tasks, Needs()))
    return time.perf_counter() - start


def overhead(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the same tasks by processes and by Ray, whose workers a map begins anew and keeps, respectively."""
    from allrec.cluster.ray import RayEngine

    by_processes = seconds_of(Processes(WORKERS), given.tasks, given.seconds)
    by_ray = seconds_of(RayEngine(workers=WORKERS), given.tasks, given.seconds)
    return {"processes": by_processes, "ray": by_ray, "overhead": by_ray / by_processes - 1}


@dataclass(frozen=True)
class Epoch:
    """One epoch of a backbone without dropout; rank 0 notes its loss."""

    dataset: Path
    out: Path

    def __call__(self) -> None:
        sets = ("backbone.model.dropout=0", "backbone.loop.epochs=1")
        trained = train_backbone(load_dataset(self.dataset), load_recipe("a-llmrec", sets).backbone, seed=SEED)
        if place().rank == 0:
            report = trained.report
            noted = {"loss": report.losses[-1], "validation": report.validations[-1], "steps": report.steps}
            self.out.write_text(json.dumps(noted))


def loss(given: argparse.Namespace) -> dict[str, Any]:
    """The loss of an epoch by one worker and by two, over the same batches."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        simulate(
            folder / "source", SimulationConfig(num_users=given.users, num_items=given.users, mean_interactions=10)
        )
        prepare(folder / "source", folder / "dataset", config=PrepareConfig(name="simulated"))
        for workers in (1, WORKERS):
            out = folder / f"{workers}.json"
            Workers(workers).run(Epoch(folder / "dataset", out))
            found[str(workers)] = json.loads(out.read_text())
    return found | {"apart": abs(found["1"]["loss"] - found[str(WORKERS)]["loss"])}


MODES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"overhead": overhead, "loss": loss}


def main() -> None:
    """Measures one of them and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--users", type=int, default=5000)
    given = parser.parse_args()
    print(json.dumps(MODES[given.mode](given), indent=1))


if __name__ == "__main__":
    main()
