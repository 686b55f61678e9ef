"""Folders behind URLs that change at once: the files under a name of their own, and then one small file that names it.

An object store has no folder that appears or is replaced whole. What is killed on the way leaves what was there before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread

from allrec import storage
from allrec.errors import InputError
from allrec.files import sha256_file, sha256_text
from allrec.storage import CURRENT, NAME_LENGTH

BEGUN = "begun"
"""Folder behind a URL of what is not done yet, so that another machine can go on with it."""
PUSH_EVERY = 30.0
"""Seconds between two looks at what is new in a folder that is being written."""


@contextmanager
def put_at_end(
    location: str, cache: Path, *, is_replaced: bool = False, resumed_by: str | None = None
) -> Iterator[Path]:
    """Yields a local folder to write; when the block ends well it is put behind the URL, or is that path itself.

    What a killed block has written stays in the cache, so that the same machine can go on with it.

    Args:
        location: a path or a URL.
        cache: folder of what is being written.
        is_replaced: whether what was put there before may be replaced.
        resumed_by: name of the file by which a folder that was begun is gone on with. What is written is then also kept
            behind the URL on the way, and another machine begins with it. None keeps nothing there before the end.

    Raises:
        InputError: there is something behind the URL that is not replaced.
    """
    if not storage.is_url(location):
        yield Path(location)
        return
    _check_free(location, is_replaced)
    folder, begun = cache / sha256_text(location)[:NAME_LENGTH], storage.join(location, BEGUN)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if resumed_by is not None and not folder.exists() and storage.exists(storage.join(begun, resumed_by)):
        storage.copy_folder(begun, folder)
    with nullcontext() if resumed_by is None else _kept(folder, begun, resumed_by):
        yield folder
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    hashes = [f"{name} {sha256_file(path)}" for name, path in zip(names, paths, strict=True)]
    version = sha256_text("\n".join(hashes))[:NAME_LENGTH]
    for name, path in zip(names, paths, strict=True):
        storage.put_file(path, storage.join(storage.join(location, version), name))
    storage.write_json(storage.join(location, CURRENT), {"folder": version})
    for name in storage.names_in(location):
        if name not in (CURRENT, version):
            storage.remove(storage.join(location, name))
    shutil.rmtree(folder)


@contextmanager
def changed_at_end(location: str, cache: Path) -> Iterator[Path]:
    """Yields a local folder to change: the path itself, or a copy that replaces what is behind the URL at the end.

    Args:
        location: a path, or a URL behind which ``put_at_end`` has put a folder.
        cache: folder of the copies; that of a killed block is made anew.

    Raises:
        InputError: nothing is behind the URL, or another program has put it there, or is still writing it.
    """
    if not storage.is_url(location):
        yield Path(location)
        return
    if not storage.exists(storage.join(location, CURRENT)):
        raise InputError(f"{location} is no whole folder that allrec has put there. Copy it here, and give that path.")
    copy = cache / sha256_text(location)[:NAME_LENGTH]
    shutil.rmtree(copy, ignore_errors=True)
    storage.copy_folder(storage.current(location), copy)
    with put_at_end(location, cache, is_replaced=True) as folder:
        yield folder


def _check_free(location: str, is_replaced: bool) -> None:
    names = storage.names_in(location)
    is_own = all(name in (CURRENT, BEGUN) or storage.is_version(name) for name in names)
    if not is_own or (CURRENT in names and not is_replaced):
        raise InputError(f"{location} is in use, expected nothing there. Give another URL.")


@contextmanager
def _kept(folder: Path, location: str, last: str) -> Iterator[None]:
    """While the block lasts, puts behind a URL what is new in a folder; once more when the block fails."""
    pushed: dict[str, tuple[int, int]] = {}
    ended = Event()

    def push_again_and_again() -> None:
        while not ended.wait(PUSH_EVERY):
            # A store that does not answer stops no training: the next push, or the end, puts what is missing.
            with suppress(Exception):
                _push(folder, location, last, pushed)

    thread = Thread(target=push_again_and_again, daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            ended.set()
            thread.join()
    except BaseException:
        with suppress(Exception):
            _push(folder, location, last, pushed)
        raise


def _push(folder: Path, location: str, last: str, pushed: dict[str, tuple[int, int]]) -> None:
    """Puts the files that changed. The one that names the others is read before them and put after them."""
    try:
        named = (folder / last).read_bytes()
    except FileNotFoundError:
        return
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # Files of a stage come and go while it runs; each is whole, and half-written ones have names of their own.
        with suppress(FileNotFoundError):
            status = path.stat()
            version = (status.st_mtime_ns, status.st_size)
            if path.is_file() and name != last and path.suffix != ".part" and pushed.get(name) != version:
                storage.put_file(path, storage.join(location, name))
                pushed[name] = version
    with storage.whole_file(storage.join(location, last)) as path:
        path.write_bytes(named)
