"""What the scripts share: both sides in one run, turn about; medians over repeats; tables with the ratio first."""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from allrec.data import Dataset, SimulationConfig, load_dataset, prepare, simulate
from allrec.parallel import OnProgress

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Side = Callable[[int], float]
"""Does the work of a repeat and says how much that was, in units such as users."""


def options(text: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all scripts have; ``defaults`` exchanges what they are where nobody says."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="each side runs so often; the medians are shown")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu counts this process alone, where others share the machine"
    )
    parser.add_argument("--dataset", type=Path, help="a prepared data set; none means a simulated marketplace")
    parser.set_defaults(**defaults)
    return parser


def start(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options and sets the number of threads."""
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    return given


def dataset_of(given: argparse.Namespace, users: int = 2000, items: int = 2000) -> Dataset:
    """The data set that was asked for, or a simulated one."""
    if given.dataset is not None:
        return load_dataset(given.dataset)
    with TemporaryDirectory() as folder:
        source = simulate(Path(folder) / "source", SimulationConfig(num_users=users, num_items=items, seed=given.seed))
        return prepare(source, Path(folder) / "dataset")


def rates(sides: Mapping[str, Side], given: argparse.Namespace) -> dict[str, list[float]]:
    """Units a second of each side in each repeat; the sides take turns, so that what else runs disturbs all alike."""
    clock = CLOCKS[given.clock]
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(given.repeats):
        for name, side in sides.items():
            begun = clock()
            amount = side(repeat)
            found[name].append(amount / (clock() - begun))
    return found


def ratio(found: Mapping[str, Sequence[float]], ours: str, other: str) -> float:
    """Median over the repeats of our rate over the other's."""
    return statistics.median(mine / its for mine, its in zip(found[ours], found[other], strict=True))


def show(claim: str, given: argparse.Namespace, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; a float is shown with three digits that count."""
    print(
        f"\n{claim}\n{given.clock} clock, {given.threads} threads, {given.repeats} repeats, torch {torch.__version__}\n"
    )
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


def compared(
    claim: str,
    unit: str,
    found: Mapping[str, Sequence[float]],
    given: argparse.Namespace,
    asked: Mapping[str, tuple[float, float]],
) -> dict[str, float]:
    """Prints our rate, that of ``allrec``, against every other's.

    Args:
        claim: what the table is about.
        unit: of the rates, such as users.
        found: of ``rates``.
        given: the options.
        asked: by the other's name, the ratio that is asked for at least, and the aim.

    Returns:
        The ratios by the other's name.
    """
    ours = statistics.median(found["allrec"])
    ratios = {name: ratio(found, "allrec", name) for name in found if name != "allrec"}
    rows = [[ratios[name], name, *asked[name], ours, statistics.median(found[name])] for name in ratios]
    show(claim, given, ["ratio", "against", "at least", "aim", f"allrec, {unit}/s", f"the other, {unit}/s"], rows)
    return ratios


class _Enough(Exception):
    """So many steps were measured as were asked for."""


def seconds_a_step(train: Callable[[OnProgress], object], steps: int, clock: str) -> float:
    """Median seconds of so many steps after the first of a training that is then broken off."""
    times: list[float] = []

    def on_progress(share: float, values: dict[str, float]) -> None:
        times.append(CLOCKS[clock]())
        if values["step"] > steps:
            raise _Enough

    with suppress(_Enough):
        train(on_progress)
    return statistics.median(after - before for before, after in pairwise(times))


def in_own_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and the most memory, in GiB, of a new process that runs it alone and imports anew."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, arguments))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def _run(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = function(*arguments)
    sender.send((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
