"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from allrec.base import InputError


@contextmanager
def staging(out: Path, is_own: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """Yields a folder beside ``out`` that takes its place when the block ends well, and is removed when not.

    Args:
        out: the folder to make; an older one of the same sort is replaced.
        is_own: whether a folder is of that sort.
        what: the sort's name, for the message.

    Raises:
        InputError: ``out`` is something else than such a folder or an empty one.
    """
    out = out.absolute()
    if out.exists() and not is_own(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is there already and is no {what}; it is left as it is. Give another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_orphans(out)
    folder, former = (out.with_name(f".{out.name}.{os.getpid()}.{ending}") for ending in ("part", "old"))
    try:
        folder.mkdir()
        yield folder
        flush(folder)
        if out.exists():
            out.rename(former)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def flush(folder: Path) -> None:
    """Brings every file of a folder to the disk, so that its new name never stands for less than its content."""
    for path in (*sorted(folder.rglob("*")), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_orphans(out: Path) -> None:
    """Removes what killed processes left half-written beside ``out``."""
    for path in out.parent.glob(f".{out.name}.*.part"):
        process = path.name.rsplit(".", 2)[1]
        if process.isdigit() and (int(process) == os.getpid() or not is_running(int(process))):
            shutil.rmtree(path, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether a process of that number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
