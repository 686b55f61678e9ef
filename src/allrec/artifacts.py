"""Files that appear whole or not at all, and know when they were damaged. No pickle is written or read here."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from allrec.base import InputError

CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; when the block ends well it is flushed to disk and renamed to ``path``.

    Raises:
        Whatever the block raises; the temporary file is then removed and ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
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
    """Gives a file a second place: the same bytes on disk where the file system can, a copy elsewhere.

    Safe for files of this module: one that is written again takes its name from the old bytes and leaves them be.
    """
    with atomic_path(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> str:
    """Writes named tensors as safetensors, whole or not at all, and returns the file's SHA-256."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)
    return sha256_file(path)


def load_tensors(path: Path | str, sha256: str | None = None) -> dict[str, Tensor]:
    """Reads a safetensors file, and checks it against ``sha256`` where one is given.

    Raises:
        InputError: the file is missing, is no safetensors file, or is not the one that was written.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}. Train again, or give the right folder.")
    if sha256 is not None:
        check_sha256(path, sha256)
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
    """SHA-256 of a file's bytes, in hex, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
