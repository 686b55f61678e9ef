"""Files in folders or behind URLs (``s3://...``, by fsspec): whole or not at all in both.

A path is anything without ``scheme://``. A file behind a URL is written on this machine and put there in one piece: an
object store shows an object once it is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from allrec import files
from allrec.errors import FULL, InputError
from allrec.files import atomic_path

NAME_LENGTH = 32
"""Hexadecimal digits of a hash that name a file: 128 bits."""
CURRENT = "current.json"
"""Behind a URL, names the folder of what is there now; without it all that is there counts. See ``uploads``."""
CHECK = "Check that it exists, the store's endpoint, and the credentials."
SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")


def is_url(location: str | Path) -> bool:
    """Whether it is a URL and no path of this machine.

    Example:
        >>> is_url("s3://bucket/run"), is_url("/runs/a")
        (True, False)
    """
    return SCHEME.match(str(location)) is not None


def join(folder: str, name: str) -> str:
    """A file or folder in another.

    Example:
        >>> join("s3://bucket/run/", "users.parquet")
        's3://bucket/run/users.parquet'
    """
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def exists(location: str) -> bool:
    """Whether there is such a file."""
    if not is_url(location):
        return Path(location).exists()
    system, path = _system(location)
    # Others write there too.
    system.invalidate_cache()
    return bool(system.exists(path))


def size(location: str) -> int | None:
    """Bytes of a file; None where there is none."""
    if not is_url(location):
        return Path(location).stat().st_size if Path(location).is_file() else None
    system, path = _system(location)
    system.invalidate_cache()
    return int(system.size(path)) if system.exists(path) else None


@contextmanager
def whole_file(location: str) -> Iterator[Path]:
    """Yields a local path; when the block ends well its file is at ``location``, whole.

    Raises:
        Whatever the block raises; nothing is then there.
    """
    if not is_url(location):
        with atomic_path(location) as path:
            yield path
        return
    with tempfile.TemporaryDirectory(prefix="allrec-") as folder:
        path = Path(folder) / location.rsplit("/", 1)[1]
        yield path
        system, target = _system(location)
        system.put_file(str(path), target)


@contextmanager
def local_file(location: str) -> Iterator[Path]:
    """Yields a local path of a file: its own, or that of a copy that is removed at the end."""
    if not is_url(location):
        yield Path(location)
        return
    with tempfile.TemporaryDirectory(prefix="allrec-") as folder:
        path = Path(folder) / location.rsplit("/", 1)[1]
        system, source = _system(location)
        system.get_file(source, str(path))
        yield path


def local_folder(location: str, cache: Path) -> Path:
    """A folder on this machine: itself, or a copy of what is behind a URL, made once for what is there now.

    It may have been put there by ``uploads`` or by any other program.

    Args:
        location: a path or a URL.
        cache: folder of the copies.

    Raises:
        InputError: there is nothing behind the URL.
    """
    if not is_url(location):
        return Path(location)
    location = current(location)
    system, root = _system(location)
    system.invalidate_cache()
    found: dict[str, Any] = system.find(root, detail=True)
    if not found:
        raise InputError(f"{location} holds no file. Is this the URL that you meant?")
    known = [[name, one["size"], str(one.get("ETag") or one.get("mtime"))] for name, one in sorted(found.items())]
    copy = cache / files.sha256_text(json.dumps([location, known]))[:NAME_LENGTH]
    if not copy.is_dir():
        _copy_folder(system, root, sorted(found), copy)
    return copy


def current(location: str) -> str:
    """The URL of the folder that is there now: of the version that ``uploads`` has put last, or the URL itself."""
    named = join(location, CURRENT)
    return join(location, read_json(named)["folder"]) if exists(named) else location


def local_copy(location: str, cache: Path) -> Path:
    """A file, under its own name, or a folder on this machine; see ``local_folder``."""
    if not is_url(location):
        return Path(location)
    system, source = _system(location)
    system.invalidate_cache()
    if not system.isfile(source):
        return local_folder(location, cache)
    one = system.info(source)
    known = json.dumps([location, one["size"], str(one.get("ETag") or one.get("mtime"))])
    copy = cache / files.sha256_text(known)[:NAME_LENGTH] / location.rsplit("/", 1)[1]
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(copy) as path:
            system.get_file(source, str(path))
    return copy


def copy_folder(location: str, copy: Path) -> None:
    """Copies all that is behind a URL to a local folder, which appears whole."""
    system, root = _system(location)
    system.invalidate_cache()
    _copy_folder(system, root, sorted(system.find(root)), copy)


def put_file(path: Path, location: str) -> None:
    """Puts a local file behind a URL, whole."""
    system, target = _system(location)
    system.put_file(str(path), target)


def names_in(location: str) -> list[str]:
    """Names of the files and folders behind a URL; none where there is nothing."""
    system, root = _system(location)
    system.invalidate_cache()
    found: list[str] = system.ls(root, detail=False) if system.exists(root) else []
    return sorted({path.rstrip("/").rsplit("/", 1)[1] for path in found})


def is_version(name: str) -> bool:
    """Whether it is the name of a folder that ``uploads`` put: the hash of what is in it."""
    return re.fullmatch(f"[0-9a-f]{{{NAME_LENGTH}}}", name) is not None


def _copy_folder(system: _Store, root: str, names: list[str], copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=copy.parent))
    try:
        for name in names:
            path = temporary / Path(name).relative_to(root)
            path.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(path))
        # Of two processes that copy at once the first wins, and the second finds the same there.
        with suppress(OSError):
            temporary.rename(copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not copy.is_dir():
        raise InputError(f"{copy} could not be written. Make its folder usable, or set ALLREC_CACHE to another.")


def read_json(location: str) -> Any:
    """Reads a JSON file; see ``files.read_json``."""
    with local_file(location) as path:
        return files.read_json(path)


def write_json(location: str, value: Any) -> None:
    """Writes a JSON file whole or not at all; NaN is refused."""
    with whole_file(location) as path:
        files.write_json(path, value)


def is_used(folder: str) -> bool:
    """Whether there is a file of that name, or anything in the folder."""
    if not is_url(folder):
        local = Path(folder)
        return local.exists() and (not local.is_dir() or any(local.iterdir()))
    system, path = _system(folder)
    system.invalidate_cache()
    return bool(system.exists(path) and system.ls(path))


def remove(folder: str) -> None:
    """Removes a file, or a folder with all that is in it; none is no error."""
    if not is_url(folder):
        if Path(folder).is_file():
            Path(folder).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        return
    system, path = _system(folder)
    if system.exists(path):
        system.rm(path, recursive=True)


def remove_leftovers(folder: str) -> None:
    """Removes what killed writers left half-written in a folder that nobody writes to any more; a URL has none."""
    for path in [] if is_url(folder) else Path(folder).glob(".*.part"):
        path.unlink(missing_ok=True)


class _Store:
    """A file system of fsspec; what it raises, of any class, is told by the URL."""

    def __init__(self, system: Any, location: str) -> None:
        self._system, self._location = system, location

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._system, name)

        def told(*args: Any, **options: Any) -> Any:
            try:
                return method(*args, **options)
            except Exception as error:
                if isinstance(error, OSError) and _is_of_this_machine(error):
                    raise
                raise InputError(f"{self._location}: {_reason(error)} {CHECK}") from error

        return told


def _is_of_this_machine(error: OSError) -> bool:
    """Whether a disk here is full or a file here is gone, which is not the store's business."""
    return error.errno in FULL or os.path.isabs(str(error.filename or ""))


def _reason(error: Exception) -> str:
    """An error's class and first line, as a sentence."""
    first = str(error).strip().split("\n", 1)[0].rstrip(".")
    return f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."


def _system(location: str) -> tuple[_Store, str]:
    try:
        made = {"auto_mkdir": True} if location.startswith("file://") else {}
        system, path = fsspec.core.url_to_fs(location, **made)
    except (ImportError, ValueError) as error:
        raise InputError(f"{location}: {error} Give a path, or install what reads such URLs.") from None
    return _Store(system, location), path
