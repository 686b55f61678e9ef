"""Downloads published files over https, resuming broken downloads, with checksums; and unpacks zip files safely."""

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from zipfile import BadZipFile, ZipFile, ZipInfo

from allrec.data.published import PublishedFile, PublishedSet
from allrec.errors import InputError
from allrec.files import FullError, atomic_path, lack_of_space, sha256_file, write_text

TIMEOUT = 60.0
"""Seconds without a byte before a server is given up."""
CHUNK_BYTES = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAGIC = {".gz": b"\x1f\x8b", ".zip": b"PK"}
RANGE_NOT_SATISFIABLE = 416
PARTIAL_CONTENT = 206

OnBytes = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes on disk, and the bytes of the whole where the server says."""


@dataclass(frozen=True)
class Fetched:
    """A complete downloaded file.

    Attributes:
        path: of the file.
        trust: "published" where its checksum was known before, "first use" where this fetch recorded it, "recorded"
            where it agrees with an earlier fetch's record.
    """

    path: Path
    trust: Literal["published", "first use", "recorded"]


class _Refused(Exception):
    """An address did not serve the file; the next one may."""


class _Broken(Exception):
    """The connection broke; the bytes so far are kept."""


def fetch(published: PublishedSet, folder: Path, on_bytes: OnBytes = lambda name, done, total: None) -> list[Fetched]:
    """Downloads a published data set into a folder that ``prepare`` reads; existing files are only checked.

    Args:
        published: what to fetch.
        folder: for its files; incomplete ones are kept as ``NAME.part``, and the next call resumes them.
        on_bytes: called with the progress.

    Raises:
        InputError: no address gives the file, the connection broke, a checksum differs, or an archive is hostile.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetched = [fetch_file(file, folder, on_bytes) for file in published.files]
        for one in fetched:
            if one.path.suffix == ".zip":
                unpack(one.path, folder)
    except OSError as error:
        raise InputError(
            f"{folder} could not be written: {error.strerror or error}. Mend that or give another --to; fetch again."
        ) from None
    return fetched


def fetch_file(file: PublishedFile, folder: Path, on_bytes: OnBytes) -> Fetched:
    """Fetches one file, unless it is there, and checks it.

    Raises:
        InputError: as ``fetch``.
    """
    path, record = folder / file.name, record_of(folder / file.name)
    expected = file.sha256 or (record.read_text(encoding="utf-8").partition(" ")[0] if record.is_file() else None)
    if path.is_file():
        got = sha256_file(path)
        if expected is not None and got != expected:
            raise InputError(
                f"{path} is not the file that was published or first fetched: its sha256 is {got[:12]}…, expected "
                f"{expected[:12]}…. Remove it and fetch again."
            )
    else:
        got = _download(file, path, expected, on_bytes)
    if file.sha256 is not None:
        return Fetched(path, "published")
    if expected is not None:
        return Fetched(path, "recorded")
    write_text(record, f"{got}  {file.name}\n")
    return Fetched(path, "first use")


def record_of(path: Path) -> Path:
    """The file that records the checksum of a file that was published without one."""
    return path.with_name(f"{path.name}.sha256")


def _download(file: PublishedFile, path: Path, expected: str | None, on_bytes: OnBytes) -> str:
    part = path.with_name(f"{path.name}.part")
    failures = []
    with _locked(part) as out:
        for address in _likeliest_first(file.addresses, part):
            try:
                _receive(address, part, out, expected is not None, lambda d, t: on_bytes(file.name, d, t))
                got = _checked(part, path.suffix, expected)
            except _Refused as refusal:
                failures.append(f"{address}: {refusal}")
            except _Broken as broken:
                raise InputError(
                    f"{address} broke off: {broken}. {_size(out):,} bytes are kept in {part}; fetch again to go on."
                ) from None
            else:
                os.fsync(out.fileno())
                part.replace(path)
                _origin_of(part).unlink(missing_ok=True)
                return got
    kept = f" {part.stat().st_size:,} bytes are kept in {part}." if part.exists() else ""
    changed = "" if file.sha256 or expected is None else (
        f" Where the publisher has changed the file and you trust that, remove {record_of(path)} first."
    )  # fmt: skip
    raise InputError(
        f"{file.name} could not be fetched ({'; '.join(failures)}).{kept} Is there a network? Fetch again later, or "
        f"put the file at {path} by other means.{changed}"
    )


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    with part.open("ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part} is being written by another fetch. Wait until that is over.") from None
        try:
            yield out
        except OSError as error:
            if not lack_of_space(error):
                raise
            raise FullError(
                f"{part}: {lack_of_space(error)}. Free some space and fetch again: what came so far is kept."
            ) from None
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                _origin_of(part).unlink(missing_ok=True)


def _origin_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.from")


def _read_origin(part: Path) -> tuple[str, str]:
    origin = _origin_of(part)
    lines = origin.read_text().split("\n") if origin.is_file() else []
    return (lines[0], lines[1]) if len(lines) > 1 else ("", "")


def _likeliest_first(addresses: tuple[str, ...], part: Path) -> list[str]:
    begun, _ = _read_origin(part)
    return sorted(addresses, key=lambda address: address != begun)


def _receive(
    address: str, part: Path, out: IO[bytes], is_checked: bool, on_bytes: Callable[[int, int | None], None]
) -> None:
    begun, validator = _read_origin(part)
    validator = validator if begun == address else ""
    # Without a checksum to detect it, two versions of a file must not be mixed.
    offset = _size(out) if validator or is_checked else 0
    with _opened(address, offset, validator) as response:
        if response.status == RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range", "").endswith(f"/{offset}"):
                return
            out.truncate(0)
            raise _Broken("it has less than the part on disk, which is given up")
        if response.status == PARTIAL_CONTENT:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise _Refused("it sent another part of the file than was requested")
        else:
            offset = 0
            out.truncate(0)
            write_text(_origin_of(part), f"{address}\n{_validator(response)}\n")
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else None
        _refuse_full_disk(part, offset, total)
        _copy(response, out, offset, total, on_bytes)


def _size(out: IO[bytes]) -> int:
    return out.seek(0, os.SEEK_END)


def _copy(
    response: HTTPResponse, out: IO[bytes], offset: int, total: int | None, on_bytes: Callable[[int, int | None], None]
) -> None:
    on_bytes(offset, total)
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (HTTPException, OSError) as error:
            raise _Broken(str(error) or type(error).__name__) from None
        if not chunk:
            break
        out.write(chunk)
        offset += len(chunk)
        on_bytes(offset, total)
    out.flush()
    if total is not None and offset != total:
        raise _Broken(f"{offset:,} of {total:,} bytes came")


@contextmanager
def _opened(address: str, offset: int, validator: str) -> Iterator[HTTPResponse]:
    check_address(address)
    headers = {"User-Agent": f"allrec/{version('allrec')}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    response: Any
    try:
        response = build_opener(_SafeRedirects).open(Request(address, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            error.close()
            raise _Refused(f"{error.code} {error.reason}") from None
        response = error
    except (HTTPException, OSError) as error:
        raise _Refused(str(getattr(error, "reason", error)) or type(error).__name__) from None
    with response:
        yield response


class _SafeRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> Request | None:
        check_address(arguments[-1])
        return super().redirect_request(*arguments)


def check_address(address: str) -> None:
    """Refuses an address that is not https; a server on this machine may do without.

    Raises:
        InputError: what the address was.
    """
    split = urlsplit(address)
    if split.scheme != "https" and not (split.scheme == "http" and split.hostname in LOOPBACK):
        raise InputError(f"{address} is no https address, and data are fetched over https alone. Give another address.")


def _validator(response: HTTPResponse) -> str:
    tag = response.headers.get("ETag", "")
    # A weak tag means similar, not equal.
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _refuse_full_disk(part: Path, offset: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - offset > free:
        raise InputError(
            f"{part.parent} has {free:,} bytes free, and {part.name} needs {total - offset:,}. Make room, or give "
            "another --to."
        )


def _checked(part: Path, suffix: str, expected: str | None) -> str:
    with part.open("rb") as file:
        start = file.read(2)
    got = sha256_file(part)
    if expected is not None and got != expected:
        part.write_bytes(b"")
        raise _Refused(f"its sha256 is {got[:12]}…, expected {expected[:12]}…; what came was thrown away")
    if start != MAGIC.get(suffix, start):
        part.write_bytes(b"")
        raise _Refused(f"what came is no {suffix} file and was thrown away")
    return got


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip file into ``folder``, without the one folder that all its members may lie in.

    Raises:
        InputError: a member would land outside ``folder``, or the archive is damaged; nothing is then unpacked.
    """
    try:
        with ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member, target in zip(members, _targets(members, archive, folder), strict=True):
                with opened.open(member) as source, atomic_path(target) as temporary, temporary.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except BadZipFile as error:
        record = record_of(archive)
        # What was recorded of a damaged file would refuse the whole one.
        what = f"it and {record.name}" if record.is_file() else "it"
        raise InputError(f"{archive} is a damaged archive: {error}. Remove {what}, and fetch again.") from None


def _targets(members: list[ZipInfo], archive: Path, folder: Path) -> list[Path]:
    places = [PurePosixPath(member.filename) for member in members]
    for member, place in zip(members, places, strict=True):
        is_outside = place.is_absolute() or ".." in place.parts or "\\" in member.filename or ":" in member.filename
        if is_outside or stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(
                f"{archive} holds {member.filename!r}, which would land outside {folder}; nothing was unpacked. "
                "Do not trust this archive."
            )
    tops = {place.parts[0] for place in places if len(place.parts) > 1}
    is_wrapped = len(tops) == 1 and all(len(place.parts) > 1 for place in places)
    return [folder.joinpath(*place.parts[1:] if is_wrapped else place.parts) for place in places]
