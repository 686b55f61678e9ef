"""One training in one process or in several: each has a share of every batch, and gradients are as of one process.

The batches are those of one process, whatever the number of workers, so that any number goes on with the checkpoint of
another. Workers are started by ``Workers`` on one machine, by Ray (``cluster.training``) or by ``torchrun``.
"""

import multiprocessing.connection
import multiprocessing.queues
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from allrec.errors import InputError
from allrec.files import read_json, write_json
from allrec.parallel import Observer

Batch = TypeVar("Batch")

FAILED = 1
"""Exit code of a worker that has said what it failed of."""
TOLD_EVERY = 0.5
"""Seconds between two reports of a worker."""
TIMEOUT = timedelta(minutes=30)
"""After which a worker gives up the others: rank 0 validates while they wait."""


class Place(NamedTuple):
    """Which worker this process is.

    Attributes:
        rank: from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, num_rows: int) -> slice:
        """This worker's rows of a batch: as many as the others', but for one."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)


def place() -> Place:
    """Which worker this process is: the only one where no group was joined."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Place()
    return Place(distributed.get_rank(), distributed.get_world_size())


Share = Callable[[Batch, Place], tuple[Batch, float]]
"""(a batch, a worker) -> the worker's part of it, with one row at least, and that part's weight in the batch's loss.

The weights of all workers sum to 1; a worker that has no row takes any, with weight 0."""


def share_rows(num_rows: int, here: Place) -> tuple[slice, float]:
    """A worker's rows of a batch whose loss is a mean over rows, and their weight; see ``Share``."""
    rows = here.share(num_rows)
    if rows.start == rows.stop:
        return slice(0, 1), 0.0
    return rows, (rows.stop - rows.start) / num_rows


def whole_batch(own: Tensor, num_rows: int) -> Tensor:
    """The rows of a whole batch, in its order, where this worker has made those of its share alone.

    For a loss over pairs of rows, which is no sum over shares: every worker computes all of it, with a gradient
    through its own rows. That gradient is over the share's weight, which the loop multiplies the loss by.

    Args:
        own: a row each of ``share_rows``.
        num_rows: of the whole batch.
    """
    here = place()
    if here.size == 1:
        return own
    parts = [Place(rank, here.size).share(num_rows) for rank in range(here.size)]
    counts = [part.stop - part.start for part in parts]
    mine, (_, weight) = own.detach()[: counts[here.rank]], share_rows(num_rows, here)
    # All are equally long on the way, as collectives need it.
    sent = own.new_zeros(max(counts), *own.shape[1:])
    sent[: len(mine)] = mine
    received = [torch.empty_like(sent) for _ in counts]
    distributed.all_gather(received, sent)
    rows = [one[:count] for one, count in zip(received, counts, strict=True)]
    if weight:
        rows[here.rank] = mine + (own - mine) / weight
    return torch.cat(rows)


class Loss(nn.Module):
    """What learns, with its loss as ``forward``: gradients are averaged after one backward pass through it."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor | Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: object) -> dict[str, Tensor]:
        """Named losses of a batch, ``total`` among them."""
        values = self.loss(batch)
        return dict(values) if isinstance(values, Mapping) else {"total": values}


def together(module: nn.Module, loss: Callable[[Batch], Tensor | Mapping[str, Tensor]], here: Place) -> nn.Module:
    """The loss of a module; in a group of workers that share batches with gradients that are means over them."""
    own = Loss(module, loss)
    return own if here.size == 1 else DistributedDataParallel(own, find_unused_parameters=True)


def summed(values: Mapping[str, Tensor], weight: float, here: Place) -> dict[str, float]:
    """Named losses of the whole batch: the workers' own, weighed. Every worker gets the same, a nan as well."""
    if here.size == 1:
        return {name: value.item() for name, value in values.items()}
    names = sorted(values)
    # A weight of 0 takes out a row that only fills in, even where its loss were no number.
    own = torch.stack([values[name].detach().double() * weight if weight else values[name].new_zeros(()).double()
                       for name in names])  # fmt: skip
    distributed.all_reduce(own)
    return dict(zip(names, own.tolist(), strict=True))


def of_first(compute: Callable[[], float], is_computed_by_all: bool = False) -> float:
    """A number of rank 0 that all workers get; the others compute it too where it takes what all hold together."""
    here = place()
    if here.size == 1:
        return compute()
    value = [compute() if here.rank == 0 or is_computed_by_all else None]
    distributed.broadcast_object_list(value, src=0)
    return float(value[0] or 0.0)


class Group(Protocol):
    """Workers that train together."""

    def run(self, work: Callable[[], None]) -> None:
        """Calls ``work`` in every worker, and returns when all are done.

        Args:
            work: can be pickled; reads and writes files that all workers reach, and writes as rank 0 alone.

        Raises:
            Exception: what ``work`` raised in one of them.
        """
        ...


class Workers:
    """A group of processes of this machine.

    Args:
        workers: how many.
        threads: torch threads of each.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        if workers < 1:
            raise InputError(f"got {workers} workers, expected at least 1.")
        self.workers, self.threads = workers, threads

    def run(self, work: Callable[[], None]) -> None:
        """See ``Group``."""
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory(prefix="allrec-") as folder:
            failures = context.SimpleQueue()
            arguments = (work, self.workers, self.threads, Path(folder) / "store", failures)
            processes = [context.Process(target=_work, args=(rank, *arguments)) for rank in range(self.workers)]
            for process in processes:
                process.start()
            try:
                codes = _wait_for_all(processes)
            finally:
                for process in processes:
                    process.terminate()
                    process.join()
            # Those that a death has left alone fail as well, so that it is said first.
            if any(code not in (None, 0, FAILED) for code in codes):
                raise InputError(
                    f"a training worker died (exit codes {codes}), killed from outside or for want of memory. Give "
                    "fewer --workers, and go on with --resume."
                )
            if any(codes):
                raise failures.get()


class Teller:
    """An observer in a worker that tells of its progress by a file, a few times a second at most.

    Args:
        path: of the file, which ``following`` reads.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.told = path, -TOLD_EVERY

    def __call__(self, stage: str, share: float, values: dict[str, float]) -> None:
        now = time.monotonic()
        if share >= 1 or now - self.told >= TOLD_EVERY:
            self.told = now
            write_json(self.path, [stage, share, values])


@contextmanager
def following(path: Path, observer: Observer) -> Iterator[None]:
    """While the block lasts, gives an observer what a ``Teller`` tells by the file, which is removed at the end."""
    ended, seen = Event(), None

    def look() -> None:
        nonlocal seen
        # Not there yet, or on a store of files that does not answer: the next look finds it.
        with suppress(OSError, InputError):
            told = read_json(path)
            if told != seen:
                seen = told
                observer(*told)

    def look_again_and_again() -> None:
        while not ended.wait(TOLD_EVERY):
            look()

    path.unlink(missing_ok=True)
    thread = Thread(target=look_again_and_again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
        path.unlink(missing_ok=True)


def _wait_for_all(processes: list[multiprocessing.context.SpawnProcess]) -> list[int | None]:
    """Waits until all have ended or one has failed, for which the others would wait; their exit codes by then."""
    running = list(processes)
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
        if any(process.exitcode for process in processes):
            break
    return [process.exitcode for process in processes]


def _work(
    rank: int,
    work: Callable[[], None],
    size: int,
    threads: int,
    store: Path,
    failures: "multiprocessing.queues.SimpleQueue[Exception]",
) -> None:
    torch.set_num_threads(threads)
    with joined(f"file://{store}", rank, size):
        try:
            work()
        except Exception as error:
            # Said before the group is left, which fails the others.
            failures.put(error)
            raise SystemExit(FAILED) from None


@contextmanager
def joined(address: str = "env://", rank: int = -1, size: int = -1) -> Iterator[Place]:
    """Inside, this process is a worker of a group; ``torchrun`` says of which in the environment.

    Args:
        address: where the workers meet.
        rank: of this worker; -1 is as the environment says.
        size: how many there are; -1 is as the environment says.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", max(rank, 0))) % torch.cuda.device_count())
    distributed.init_process_group(backend, init_method=address, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield place()
        # Nobody leaves before all are done: a store that is gone fails those that still ask it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
