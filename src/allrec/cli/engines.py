"""Which engine an option names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allrec.errors import InputError, nearest

if TYPE_CHECKING:
    from allrec.parallel import Engine
    from allrec.training.distributed import Group

HERE, PROCESSES, RAY = "here", "processes", "ray://"
ADDRESSES = ("local", "auto")
"""What may stand behind ``ray://`` beside HOST:PORT: a Ray of this machine that ends with the program; its cluster."""


def open_engine(name: str, workers: int) -> Engine:
    """The engine of a name: here, processes, ray://local, ray://auto or ray://HOST:PORT.

    Raises:
        InputError: an unknown name, several workers here, or no cluster at the address.
    """
    from allrec.parallel import Processes, ThisProcess

    if name == HERE:
        if workers > 1:
            raise InputError(f"got {workers} workers for the engine here, which is one. Give --engine processes.")
        return ThisProcess()
    if name == PROCESSES:
        return Processes(workers)
    if is_ray(name):
        from allrec.cluster.ray import RayEngine

        return RayEngine(address_of(name), workers)
    raise unknown(name)


def open_group(name: str, workers: int) -> Group | None:
    """The workers that train together, by the name of an engine; None is this process.

    Raises:
        InputError: see ``open_engine``; or the cluster has no place for them all.
    """
    if name == HERE:
        open_engine(name, workers)
        return None
    if name == PROCESSES:
        from allrec.training.distributed import Workers

        return Workers(workers)
    if is_ray(name):
        from allrec.cluster.training import RayWorkers

        return RayWorkers(address_of(name), workers)
    raise unknown(name)


def is_ray(name: str) -> bool:
    """Whether an engine is a Ray cluster."""
    return name.startswith(RAY) and name != RAY


def address_of(name: str) -> str:
    """Where the Ray of an engine is, as ``cluster.ray`` takes it."""
    address = name.removeprefix(RAY)
    return address if address in ADDRESSES else name


def unknown(name: str) -> InputError:
    """The error of an engine that there is not."""
    known = nearest(name, [HERE, PROCESSES, "ray://local", "ray://HOST:PORT"])
    return InputError(f"unknown engine {name!r}: {known}.")
