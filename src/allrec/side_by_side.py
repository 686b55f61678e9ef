"""Parts of a task in threads of their own: many small steps use two cores better apart than each of them together."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, islice
from threading import Barrier, Lock
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

_pools: dict[int, ThreadPoolExecutor] = {}
"""By how many threads they have. They stay: what a thread frees serves it again, where a new one would page in anew."""
_making = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def side_by_side(work: Callable[[Part], Result], parts: Iterable[Part], threads: int | None = None) -> Iterator[Result]:
    """What ``work`` makes of each part, in their order, several at a time.

    Each part has one thread to itself, so that its result does not depend on how many there are. Few parts are done
    before they are asked for, and no gradient is kept. A task of one part is done here, with all threads.

    Args:
        work: may be called from several threads at a time.
        parts: read one by one.
        threads: so many at a time; None is as many as torch may use.

    Raises:
        Exception: what ``work`` raises of the first part that fails.
    """
    threads = torch.get_num_threads() if threads is None else threads
    ahead = iter(parts)
    first = list(islice(ahead, 2))
    if threads == 1 or len(first) < 2:
        yield from map(work, chain(first, ahead))
        return

    @torch.no_grad()
    def alone(part: Part) -> Result:
        return work(part)

    pool = _pool(threads)
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


def _pool(threads: int) -> ThreadPoolExecutor:
    with _making:
        if threads not in _pools:
            pool, before, have_begun = ThreadPoolExecutor(threads), torch.get_num_threads(), Barrier(threads)

            def begin() -> None:
                # Asked first, as a thread that is asked for the first time takes what was set last anywhere.
                torch.get_num_threads()
                torch.set_num_threads(1)
                have_begun.wait()

            wait([pool.submit(begin) for _ in range(threads)])
            # What those threads set for themselves would hold for all that begin later.
            torch.set_num_threads(before)
            _pools[threads] = pool
        return _pools[threads]
