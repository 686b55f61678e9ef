"""The engine of a Ray cluster, or of a Ray of this machine: a bounded number of tasks at a time, paths in and out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch

from allrec.cluster.checks import check_needs, check_shared_memory
from allrec.errors import InputError
from allrec.parallel import AHEAD, ATTEMPTS, Needs

Part = TypeVar("Part")
Result = TypeVar("Result")

LOCAL = "local"
"""The address of a Ray that begins and ends with the program."""


class RayEngine:
    """Tasks of a Ray cluster. Models travel as paths that every node reads, and stay in the process that loaded them.

    Args:
        address: ``local``; ``auto`` for the cluster of this machine; ``HOST:PORT``, or ``ray://HOST:PORT`` for a client
            outside the cluster.
        workers: tasks at a time, on all nodes together.

    Raises:
        InputError: Ray is not installed, or no cluster answers there.
    """

    def __init__(self, address: str = LOCAL, workers: int = 1) -> None:
        if workers < 1:
            raise InputError(f"got {workers} workers, expected at least 1.")
        self.workers = workers
        connect(address, workers)

    def map(self, work: Callable[[Part], Result], parts: Iterable[Part], needs: Needs = Needs()) -> Iterator[Result]:
        """See ``Engine``."""
        import ray

        check_needs(needs, nodes())
        resources: dict[str, Any] = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus or None,
            "memory": needs.memory or None,
        }
        task: Any = ray.remote(_done).options(
            **resources, max_retries=ATTEMPTS - 1, retry_exceptions=False, scheduling_strategy="SPREAD"
        )
        shared = ray.put(work)
        ahead, running = iter(parts), deque[Any]()
        try:
            while True:
                at_work = _unfinished(running)
                room = min(self.workers - len(at_work), AHEAD * self.workers - len(running))
                begun = [task.remote(shared, part, needs.cpus) for part in islice(ahead, room)]
                running.extend(begun)
                if not running:
                    return
                if running[0] in (*at_work, *begun):
                    ray.wait([*at_work, *begun], num_returns=1)
                    continue
                with said_plainly():
                    done = ray.get(running[0])
                running.popleft()
                yield done
        finally:
            for one in running:
                ray.cancel(one)


def _unfinished(tasks: Iterable[Any]) -> list[Any]:
    """The tasks that wait or are at work."""
    import ray

    asked = list(tasks)
    return list(ray.wait(asked, num_returns=len(asked), timeout=0)[1]) if asked else []


def _done(work: Callable[[Part], Result], part: Part, threads: int) -> Result:
    # Ray sets OMP_NUM_THREADS by the CPUs of the first task of a process; a later one may need others.
    torch.set_num_threads(threads)
    return work(part)


def connect(address: str, cpus: int | None = None) -> None:
    """Connects to a cluster, or starts a Ray of this machine with ``cpus`` CPUs; a second time it does nothing.

    Raises:
        InputError: see ``RayEngine``.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("Ray is not installed. Install it: pip install 'allrec[cluster]'") from None
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address in (LOCAL, "auto"):
        check_shared_memory()
    if address == LOCAL:
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address, **quiet)
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address}: {error}. Begin one: ray start --head; or run here: --engine "
            "processes, --engine ray://local"
        ) from None


def nodes() -> list[dict[str, float]]:
    """What each node that is alive has: ``CPU``, ``GPU``, ``memory`` and what else Ray counts."""
    import ray

    found: Any = ray.nodes()  # type: ignore[no-untyped-call]
    return [dict(node["Resources"]) for node in found if node["Alive"]]


@contextmanager
def said_plainly() -> Iterator[None]:
    """Inside, what a task raised is raised as it was, and a worker that died too often is said in a sentence.

    Raises:
        InputError: workers died at the same part again and again.
    """
    from ray import exceptions

    try:
        yield
    except exceptions.RayTaskError as error:
        raise error.cause from None
    except (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"workers died {ATTEMPTS} times at the same part: {reason} Give fewer --workers or larger nodes; what is "
            "done is kept, so run the command again."
        ) from None
