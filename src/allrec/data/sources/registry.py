"""Which format a source is in, by what is there or by what the user says."""

from pathlib import Path
from types import ModuleType

from allrec.data.sources import amazon, movielens, recbole, sasrec_text, tables
from allrec.data.sources.diagnosis import diagnosing
from allrec.data.sources.source import Source, SourceOptions
from allrec.errors import InputError, nearest

# Published formats before own tables, which would take almost anything.
READERS: tuple[ModuleType, ...] = (movielens, recbole, amazon, sasrec_text, tables)
FORMATS = tuple(name for reader in READERS for name in reader.FORMATS)


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
                source: Source = reader.read(path, options, name)
                return source
    raise InputError(f"unknown format {name!r}: {nearest(name, list(FORMATS))}.")


def guess_format(path: Path) -> str:
    """The first format that fits.

    Raises:
        InputError: none does.
    """
    for reader in READERS:
        name: str | None = reader.matches(path)
        if name:
            return name
    raise InputError(
        f"{path} is in no format known here ({', '.join(FORMATS)}). "
        f"Give a table, or a folder with interactions.* (csv, tsv, jsonl, parquet) and items.*."
    )
