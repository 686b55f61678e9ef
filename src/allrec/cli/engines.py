"""Which engine an option names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allrec.errors import InputError, nearest

if TYPE_CHECKING:
    from allrec.parallel import Engine

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
    if name.startswith(RAY) and name != RAY:
        from allrec.cluster.ray import RayEngine

        address = name.removeprefix(RAY)
        return RayEngine(address if address in ADDRESSES else name, workers)
    raise InputError(f"unknown engine {name!r}: {nearest(name, [HERE, PROCESSES, 'ray://local', 'ray://HOST:PORT'])}.")
