"""The table of readers by format, and the choice of a source's format."""

from pathlib import Path
from typing import Protocol

from allrec.data.sources import amazon, movielens, recbole, sasrec_text, tables
from allrec.data.sources.diagnosis import diagnosing
from allrec.data.sources.source import Source, SourceOptions
from allrec.errors import InputError, nearest


class Reader(Protocol):
    """Reads one or more formats; a module that has these three names does."""

    @property
    def FORMATS(self) -> tuple[str, ...]:
        """The formats' names, as ``--format`` gives them."""
        ...

    def matches(self, path: Path) -> str | None:
        """The name of the format that a file or folder seems to be in; None where it is in none of these."""
        ...

    def read(self, path: Path, options: SourceOptions, name: str) -> Source:
        """Opens a source in the format of that name."""
        ...


READERS: list[Reader] = [movielens, recbole, amazon, sasrec_text, tables]
"""Every reader, in the order in which they are tried: own tables come last, which would take almost anything."""


def known_formats() -> list[str]:
    """Every format by name."""
    return [name for reader in READERS for name in reader.FORMATS]


def open_source(path: Path, options: SourceOptions, name: str | None = None) -> Source:
    """Opens a source in the format given, or in the one that fits what is there; nothing but headers is read.

    Raises:
        InputError: no such path, an unknown format, or nothing that fits.
    """
    if not path.exists():
        raise InputError(f"no such file or folder: {path}. Give a table, or a folder with interactions.* and items.*.")
    files = [file for file in (path, options.items_path) if file is not None and file.is_file()]
    with diagnosing(files or sorted(file for file in path.iterdir() if file.is_file())):
        name = name or guess_format(path)
        for reader in READERS:
            if name in reader.FORMATS:
                return reader.read(path, options, name)
    raise InputError(f"unknown format {name!r}: {nearest(name, known_formats())}.")


def guess_format(path: Path) -> str:
    """The first format that fits.

    Raises:
        InputError: none does.
    """
    for reader in READERS:
        if name := reader.matches(path):
            return name
    raise InputError(
        f"{path} is in no format known here ({', '.join(known_formats())}). "
        f"Give a table, or a folder with interactions.* (csv, tsv, jsonl, parquet) and items.*."
    )
