"""Traps of a cluster that end in waiting without an error, each said at once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from allrec.errors import InputError
from allrec.parallel import Needs

SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED = 512 << 20
"""Bytes of shared memory; a container has 64 MiB by default, and Ray then swaps to a disk."""

Nodes = Sequence[Mapping[str, float]]


def check_needs(needs: Needs, nodes: Nodes) -> None:
    """Refuses a task that no node could ever take, for which Ray would wait without an end.

    Raises:
        InputError: what a task needs and what the largest node has.
    """
    if not any(_bundles(needs, node) for node in nodes):
        raise InputError(
            f"a task needs {_described(needs)}, and no node has as much at once: {_largest(nodes)}. Ask for less, or "
            "start larger nodes."
        )


def check_workers(workers: int, needs: Needs, nodes: Nodes) -> None:
    """Refuses a group of workers that start together and could never all have a place.

    Raises:
        InputError: how many have one.
    """
    places = sum(_bundles(needs, node) for node in nodes)
    if places < workers:
        raise InputError(
            f"{workers} workers need {_described(needs)} each, and the nodes have places for {places}: "
            f"{_largest(nodes)}. Give fewer --workers, ask for less, or start more nodes."
        )


def check_room_for_data(workers: int, needs: Needs, nodes: Nodes) -> None:
    """Refuses training that takes every CPU of the cluster, so that tasks that read its data would never begin.

    Raises:
        InputError: how many CPUs there are and how many are taken.
    """
    have, taken = sum(node.get("CPU", 0.0) for node in nodes), workers * needs.cpus
    if have - taken < 1:
        raise InputError(
            f"{workers} workers take {taken} of the cluster's {have:g} CPUs, and none is left for the tasks that read "
            "their data, so that both would wait for ever. Give fewer --workers, or leave a CPU."
        )


def check_shared_memory(folder: Path = SHARED_MEMORY, least: int = LEAST_SHARED) -> None:
    """Refuses a machine whose shared memory is too small for Ray's object store or for workers that exchange tensors.

    Raises:
        InputError: how much there is and how to have more.
    """
    if not folder.is_dir():
        return
    total = shutil.disk_usage(folder).total
    if total < least:
        raise InputError(
            f"{folder} has {total >> 20} MiB, expected at least {least >> 20} MiB. Start the container with more: "
            "docker run --shm-size=8g; on Kubernetes an emptyDir of medium Memory at /dev/shm."
        )


def _bundles(needs: Needs, node: Mapping[str, float]) -> int:
    """How many tasks of a kind a node has room for."""
    wanted = {"CPU": float(needs.cpus), "GPU": needs.gpus, "memory": float(needs.memory)}
    return min((int(node.get(name, 0.0) // amount) for name, amount in wanted.items() if amount), default=1)


def _described(needs: Needs) -> str:
    parts = [f"{needs.cpus} CPUs"]
    parts += [f"{needs.gpus:g} GPUs"] if needs.gpus else []
    parts += [f"{needs.memory >> 20} MiB"] if needs.memory else []
    return " and ".join(parts)


def _largest(nodes: Nodes) -> str:
    if not nodes:
        return "there is none"
    most = {name: max(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return f"of {len(nodes)} nodes the largest has {most['CPU']:g} CPUs and {most['GPU']:g} GPUs"
