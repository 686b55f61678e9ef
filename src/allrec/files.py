"""Atomic files and folders, with checksums. No pickle is read or written."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import getaddrinfo
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from allrec.errors import FULL, InputError


class FullError(InputError):
    """Something could not be written for lack of space; earlier content is unchanged."""


def lack_of_space(error: BaseException) -> str | None:
    """The system's message where an error, of Python or of a library, comes from a full disk; else None."""
    if isinstance(error, OSError) and error.errno in FULL:
        return os.strerror(error.errno)
    return next((os.strerror(code) for code in FULL if os.strerror(code) in str(error)), None)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Within the block, a lack of space is reported with the path that was to be written.

    Raises:
        FullError: the path, the system's message, and what to do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = lack_of_space(error)
        if reason is None:
            raise
        raise FullError(
            f"{path}: {reason}; nothing half-written is left. Free some space, or give another place, and run the "
            f"command again (train, compare and the like with --resume)."
        ) from None


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; when the block ends well it is flushed to disk and renamed to ``path``.

    Raises:
        Whatever the block raises; the temporary file is then removed and ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of two machines that share a file system may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with naming(path):
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Writes ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes ``value`` as indented JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}. Is this the folder that you meant?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged, expected JSON: {error}. Make the folder anew.") from None


def link_or_copy(source: Path, path: Path) -> None:
    """Gives a file a second path: a hard link where the file system has them, else a copy.

    Safe for files of this module: writing one again replaces the link and leaves the old bytes unchanged.
    """
    with atomic_path(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors as safetensors, whole or not at all."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        InputError: the file is missing, or is no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}. Train again, or give the right folder.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged, expected a safetensors file: {error}. Make it anew.") from None


def check_sha256(path: Path | str, expected: str) -> None:
    """Checks a file against its recorded checksum.

    Raises:
        InputError: the file is missing or differs.
    """
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}. It is named in the manifest; make the folder anew.")
    got = sha256_file(path)
    if got != expected:
        raise InputError(f"{path} is damaged: its sha256 is {got[:12]}…, expected {expected[:12]}…. Make it anew.")


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@contextmanager
def staging(out: Path, is_own: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """Yields a folder next to ``out`` that takes its place when the block ends well, and is removed when not.

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
        with naming(out):
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
    """Flushes every file of a folder to the disk, so that a renamed folder is never incomplete."""
    for path in (*sorted(folder.rglob("*")), folder):
        _flush(path)


def remove_orphans(out: Path) -> None:
    """Removes what killed processes left half-written next to ``out``."""
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


def is_hub_reachable() -> bool:
    """Whether the hub's name resolves. Where it does not, the hub's client would try again for most of a minute."""
    from huggingface_hub.constants import ENDPOINT

    if getproxies():
        return True
    try:
        getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def quiet_loading(is_quiet: bool) -> Iterator[None]:
    """Within the block, no progress bars are drawn over weights that are read from disk."""
    from transformers.utils import logging

    bars: Any = logging
    was_enabled = bars.is_progress_bar_enabled()
    if is_quiet:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if is_quiet and was_enabled:
            bars.enable_progress_bar()
