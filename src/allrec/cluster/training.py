"""A group of workers that train together on a Ray cluster, by Ray Train."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from allrec.cluster.checks import check_room_for_data, check_workers
from allrec.cluster.ray import LOCAL, connect, nodes
from allrec.errors import InputError
from allrec.parallel import Needs


class RayWorkers:
    """Workers of a Ray cluster.

    Args:
        address: see ``RayEngine``.
        workers: how many.
        needs: of each.

    Raises:
        InputError: see ``RayEngine``; or the cluster never has a place for all of them at once and a CPU to spare.
    """

    def __init__(self, address: str = LOCAL, workers: int = 1, needs: Needs = Needs()) -> None:
        self.workers, self.needs = workers, needs
        connect(address, workers * needs.cpus + 1)
        check_workers(workers, needs, nodes())
        check_room_for_data(workers, needs, nodes())

    def run(self, work: Callable[[], None]) -> None:
        """See ``training.distributed.Group``."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources: dict[str, float] = {"CPU": self.needs.cpus, "GPU": self.needs.gpus, "memory": self.needs.memory}
        scaling = ScalingConfig(
            num_workers=self.workers,
            use_gpu=self.needs.gpus > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        )
        backend = TorchConfig(backend="nccl" if self.needs.gpus else "gloo")
        with tempfile.TemporaryDirectory(prefix="allrec-") as folder:
            storage = RunConfig(storage_path=folder)
            given: dict[str, Any] = {"scaling_config": scaling, "run_config": storage, "torch_config": backend}
            try:
                TorchTrainer(_Loop(work, self.needs.cpus), **given).fit()
            except Exception as error:
                raise _cause(error) from None


class _Loop:
    """What Ray Train calls in every worker, which has joined the group."""

    def __init__(self, work: Callable[[], None], threads: int) -> None:
        self.work, self.threads = work, threads

    def __call__(self) -> None:
        torch.set_num_threads(self.threads)
        self.work()


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, where a mistake of the user is behind the failure that Ray says; or that one died."""
    from ray.exceptions import RayActorError

    failures = getattr(error, "worker_failures", {})
    behind = [getattr(one, name, None) for one in failures.values() for name in ("cause", "health_check_failure")]
    known = [error, *failures.values(), error.__cause__, *behind]
    mistake = next((one for one in known if isinstance(one, InputError)), None)
    if mistake is None and any(isinstance(one, RayActorError) for one in known):
        return InputError(
            f"a training worker of Ray died (of ranks {sorted(failures)}), killed from outside or for want of memory. "
            "Give fewer --workers or larger nodes, and go on with --resume."
        )
    return mistake or error
