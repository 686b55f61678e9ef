"""An ordered parallel map over threads, and the one shape of progress callbacks.

One torch thread a part beats intra-op parallelism on a CPU when operations are small.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, islice
from threading import Barrier, Lock, local
from typing import TypeVar

import torch

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
