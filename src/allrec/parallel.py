"""Ordered parallel maps: over threads, and over shards by an engine; and the one shape of progress callbacks.

One torch thread a part beats intra-op parallelism on a CPU when operations are small. An engine maps work over shards
that are files: in this process, in processes of this machine, or (``cluster.ray``) on a cluster.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import wait as wait_for_end
from multiprocessing.context import BaseContext
from threading import Barrier, Lock, Thread, local
from typing import Generic, Protocol, TypeVar

import torch

from allrec.errors import InputError

Part = TypeVar("Part")
Result = TypeVar("Result")

OnProgress = Callable[[float, dict[str, float]], None]
"""Called with the share of a task that is done, 0 to 1, and named values such as losses or counts."""
Observer = Callable[[str, float, dict[str, float]], None]
"""The same for several tasks: called with the name of a stage before."""

MOST = 4
"""Parts at one time; where there are more threads than that, a part has several."""


class _Pools:
    """Pools by torch's threads. They stay: what a thread frees serves it again, where a new one would page in anew."""

    def __init__(self) -> None:
        self.pools: dict[int, ThreadPoolExecutor] = {}
        self.lock, self.here = Lock(), local()

    def get(self, threads: int) -> ThreadPoolExecutor:
        """The pool for a number of torch threads in all."""
        with self.lock:
            if threads not in self.pools:
                self.pools[threads] = self._made(threads)
            return self.pools[threads]

    def _made(self, threads: int) -> ThreadPoolExecutor:
        workers, before = min(threads, MOST), torch.get_num_threads()
        pool, have_begun = ThreadPoolExecutor(workers), Barrier(workers)

        def begin() -> None:
            self.here.is_worker = True
            # Asked first, as a thread that is asked for the first time takes what was set last anywhere.
            torch.get_num_threads()
            torch.set_num_threads(threads // workers)
            have_begun.wait()

        wait([pool.submit(begin) for _ in range(workers)])
        # What those threads set for themselves would hold for all that begin later.
        torch.set_num_threads(before)
        return pool


_pools = _Pools()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.__init__)  # type: ignore[misc]


def ignore(stage: str, share: float, values: dict[str, float]) -> None:
    """An observer that ignores the progress."""


def no_progress(share: float, values: dict[str, float]) -> None:
    """Ignores the progress."""


def ordered_map(work: Callable[[Part], Result], parts: Iterable[Part], threads: int | None = None) -> Iterator[Result]:
    """What ``work`` makes of each part, in their order, several at a time.

    Each part has a thread to itself, or where there are more than four an equal share of them. Few parts are done
    before they are asked for. A task of one part is done here, with all threads, and so is one of which one part at a
    time may be done, or that is part of another.

    Args:
        work: may be called from several threads at a time; whether it keeps gradients is its own business.
        parts: read one by one.
        threads: parts at one time; None is as many as torch may use.

    Raises:
        Exception: what ``work`` raises of the first part that fails.
    """
    threads = torch.get_num_threads() if threads is None else threads
    ahead = iter(parts)
    first = list(islice(ahead, 2))
    if threads == 1 or len(first) < 2 or getattr(_pools.here, "is_worker", False):
        yield from map(work, chain(first, ahead))
        return

    @torch.no_grad()
    def alone(part: Part) -> Result:
        return work(part)

    pool = _pools.get(threads)
    running: deque[Future[Result]] = deque()
    try:
        running.extend(pool.submit(alone, part) for part in chain(first, islice(ahead, threads)))
        while running:
            done = running.popleft().result()
            running.extend(pool.submit(alone, part) for part in islice(ahead, 1))
            yield done
    finally:
        for future in running:
            future.cancel()
        wait(running)


@dataclass(frozen=True)
class Needs:
    """What one task takes of a machine.

    Attributes:
        cpus: torch threads of a task, the same in every engine, since a sum may depend on them.
        gpus: accelerators, or a share of one; engines of one machine leave it to the tasks to share theirs.
        memory: bytes; 0 asks for none in particular.
    """

    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0


class Engine(Protocol):
    """Maps work over shards, somewhere."""

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part], needs: Needs = ...) -> Iterator[Result]:
        """What ``work`` makes of each part, in their order; few parts are begun ahead of the consumer.

        Args:
            work: can be pickled, and may be called again for a part that it has done: its outcome is a file whose name
                follows from the part, so that a retry finds it done.
            parts: read one by one; small, such as the path and hash of a file.
            needs: of one call of ``work``.

        Returns:
            Results, small as well: paths.

        Raises:
            InputError: the machine can never meet the needs, or workers died again and again.
            Exception: what ``work`` raises of the first part that fails.
        """
        ...


class ThisProcess:
    """One part after the other, here."""

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part], needs: Needs = Needs()) -> Iterator[Result]:
        """See ``Engine``."""
        for part in parts:
            with torch_threads(needs.cpus):
                done = work(part)
            yield done


ATTEMPTS = 3
"""Deaths of workers while one part is waited for, after which it is given up."""
AHEAD = 2
"""Parts begun or waiting, a worker."""


@dataclass
class _Begun(Generic[Part, Result]):
    part: Part
    future: Future[Result] | None = None

    def result(self) -> Result:
        """What came of it."""
        if self.future is None:
            raise ValueError("this part was not handed over to a worker yet")
        return self.future.result()

    def forget_lost(self) -> None:
        """Makes it a part that is to be done, unless it is done."""
        lost = self.future is None or not self.future.done() or self.future.cancelled()
        if lost or (self.future is not None and isinstance(self.future.exception(), BrokenProcessPool)):
            self.future = None


class Processes:
    """Processes of this machine, each with torch threads of its own; a killed one is replaced and its part done again.

    A program that uses it begins its own work under ``if __name__ == "__main__":``, as workers import it anew.

    Args:
        workers: how many processes.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise InputError(f"got {workers} workers, expected at least 1.")
        self.workers = workers

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part], needs: Needs = Needs()) -> Iterator[Result]:
        """See ``Engine``."""
        ahead, deaths = iter(parts), 0
        pool, begun = self._pool(needs), deque[_Begun[Part, Result]]()
        try:
            while True:
                # Taken before any is handed over, so that none is lost where the pool breaks meanwhile.
                begun.extend(map(_Begun, islice(ahead, AHEAD * self.workers - len(begun))))
                if not begun:
                    return
                try:
                    for one in begun:
                        one.future = one.future or pool.submit(work, one.part)
                    done = begun[0].result()
                except BrokenProcessPool:
                    deaths += 1
                    pool = self._replaced(pool, needs, deaths)
                    for one in begun:
                        one.forget_lost()
                    continue
                deaths = 0
                begun.popleft()
                yield done
        finally:
            pool.shutdown(cancel_futures=True)

    def _pool(self, needs: Needs) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.workers, _context(), _begin_worker, (needs.cpus, dict(os.environ)))

    def _replaced(self, pool: ProcessPoolExecutor, needs: Needs, deaths: int) -> ProcessPoolExecutor:
        pool.shutdown(cancel_futures=True)
        if deaths < ATTEMPTS:
            return self._pool(needs)
        raise InputError(
            f"workers died {deaths} times at the same part, killed from outside or for want of memory. Give fewer "
            "--workers; what is done is kept, so run the command again. (A program of your own begins under "
            'if __name__ == "__main__":.)'
        )


def _context() -> BaseContext:
    # Torch survives a fork as long as it has not computed: workers come of a server that has only imported it.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    return context


def _begin_worker(threads: int, environment: dict[str, str]) -> None:
    # The server that workers come of has the environment of its own beginning.
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    # Ended at the keyboard, a worker would else say where it was.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Within the block, torch computes with ``threads`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
