"""A group of workers that train together on a Ray cluster, by Ray Train."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from allrec.cluster.checks import check_room_for_data, check_workers
from allrec.cluster.ray import LOCAL, connect, nodes
from allrec.errors import InputError
from allrec.parallel import ATTEMPTS, Needs


class RayWorkers:
    """Workers of a Ray cluster; where one dies, or its node, all begin again from the last checkpoint, a few times.

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
        from ray.exceptions import RayActorError
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources: dict[str, float] = {"CPU": self.needs.cpus, "GPU": self.needs.gpus, "memory": self.needs.memory}
        scaling = ScalingConfig(
            num_workers=self.workers,
            use_gpu=self.needs.gpus > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        )
        given: dict[str, Any] = {
            "scaling_config": scaling,
            "torch_config": TorchConfig(backend="nccl" if self.needs.gpus else "gloo"),
        }
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with tempfile.TemporaryDirectory(prefix="allrec-") as folder:
                    given["run_config"] = RunConfig(storage_path=folder)
                    TorchTrainer(_Loop(work, self.needs.cpus), **given).fit()
                return
            except Exception as error:
                behind = _behind(error)
                mistake = next((one for one in behind if isinstance(one, InputError)), None)
                if mistake is not None or not any(isinstance(one, RayActorError) for one in behind):
                    raise (mistake or error) from None
                if attempt == ATTEMPTS:
                    raise InputError(
                        f"training workers of Ray died {ATTEMPTS} times, killed from outside or for want of memory. "
                        "Give fewer --workers or larger nodes, and go on with --resume."
                    ) from None
                # Of the nodes that are left.
                check_workers(self.workers, self.needs, nodes())


class _Loop:
    """What Ray Train calls in every worker, which has joined the group."""

    def __init__(self, work: Callable[[], None], threads: int) -> None:
        self.work, self.threads = work, threads

    def __call__(self) -> None:
        torch.set_num_threads(self.threads)
        self.work()


def _behind(error: BaseException) -> list[BaseException]:
    """The failure that Ray tells, what workers raised, and what is behind either."""
    failures = getattr(error, "worker_failures", {}).values()
    causes = [getattr(one, name, None) for one in failures for name in ("cause", "health_check_failure")]
    return [one for one in (error, *failures, error.__cause__, *causes) if one is not None]
