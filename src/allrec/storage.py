"""Files in folders or behind URLs (``s3://...``, by fsspec): whole or not at all in both.

A path is anything without ``scheme://``. A file behind a URL is written on this machine and put there in one piece: an
object store shows an object once it is whole.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from allrec import files
from allrec.errors import InputError
from allrec.files import atomic_path

NAME_LENGTH = 32
"""Hexadecimal digits of a hash that name a file: 128 bits."""
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

    Args:
        location: a path or a URL.
        cache: folder of the copies.

    Raises:
        InputError: there is nothing behind the URL.
    """
    if not is_url(location):
        return Path(location)
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


@contextmanager
def put_at_end(location: str, cache: Path, last: str, *, is_replaced: bool = False) -> Iterator[Path]:
    """Yields a local folder to write; when the block ends well it is put behind the URL, or is that path itself.

    An object store has no folder that appears at once: the file without which a folder is none is put last. What a
    killed block has written stays in the cache, so that the same machine can go on with it, and put the rest of what it
    had begun to put.

    Args:
        location: a path or a URL.
        cache: folder of what is being written.
        last: name of that file.
        is_replaced: whether what was put there before may be replaced.

    Raises:
        InputError: there is something behind the URL that is not replaced.
    """
    if not is_url(location):
        yield Path(location)
        return
    folder = cache / files.sha256_text(location)[:NAME_LENGTH]
    is_whole = exists(join(location, last))
    is_begun = (folder / last).is_file() and not is_whole
    if is_used(location) and not (is_begun or (is_replaced and is_whole)):
        raise InputError(f"{location} is in use, expected nothing there. Give another URL.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    yield folder
    if is_whole:
        remove(location)
    system, root = _system(location)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / last]
    for path in [*paths, folder / last]:
        system.put_file(str(path), f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}")
    shutil.rmtree(folder)


def _copy_folder(system: Any, root: str, names: list[str], copy: Path) -> None:
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
    """Removes a folder with all that is in it; none is no error."""
    if not is_url(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    system, path = _system(folder)
    if system.exists(path):
        system.rm(path, recursive=True)


def remove_leftovers(folder: str) -> None:
    """Removes what killed writers left half-written in a folder that nobody writes to any more; a URL has none."""
    for path in [] if is_url(folder) else Path(folder).glob(".*.part"):
        path.unlink(missing_ok=True)


def _system(location: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(f"{location}: {error} Give a path, or install what reads such URLs.") from None
