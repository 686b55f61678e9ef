"""Items that join a trained run: read from JSON lines, cleaned as prepare cleans, stored beside the catalogue."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from allrec.artifacts import atomic_path
from allrec.base import InputError, nearest
from allrec.data.items import clean_text, flatten, join_parts

KEYS = ("item_id", "title", "description", "genres")
FILE = "items.parquet"


class NewItems(NamedTuple):
    """Items by position; every one has a text, by which it enters.

    Attributes:
        item_ids: the source's ids.
        titles: None where an item has a description alone.
        texts: title and description joined.
        genres: what kinds of thing each is; may be empty.
    """

    item_ids: list[str]
    titles: list[str | None]
    texts: list[str | None]
    genres: list[list[str]]

    def save(self, folder: Path) -> None:
        """Writes ``items.parquet``, whole or not at all."""
        schema: dict[str, Any] = {
            "item_id": pl.String,
            "title": pl.String,
            "text": pl.String,
            "genres": pl.List(pl.String),
        }
        columns = dict(zip(schema, self, strict=True))
        with atomic_path(folder / FILE) as temporary:
            pl.DataFrame(columns, schema=schema).write_parquet(temporary)

    @classmethod
    def load(cls, folder: Path) -> "NewItems":
        """Reads what ``save`` wrote."""
        frame = pl.read_parquet(folder / FILE, glob=False)
        return cls(*(frame[name].to_list() for name in ("item_id", "title", "text", "genres")))


def read_new_items(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines: item_id, title, description and genres, of which the id must be there.

    Raises:
        InputError: no such file, or a line that is no JSON object; the line is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}. Give JSON lines with item_id and title.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is no JSON: {error}. Write one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} holds {type(row).__name__}, expected an object with item_id.")
        rows.append(row)
    return rows


def clean_new_items(rows: Sequence[Mapping[str, Any]], known: Mapping[str, int]) -> NewItems:
    """Checks and cleans items that are to join a catalogue.

    Args:
        rows: item_id, title, description, genres.
        known: ids that the catalogue has.

    Raises:
        InputError: none is given, an unknown key, an id that is missing, given twice or known, or an item without text.
    """
    if not rows:
        raise InputError("no items were given, expected at least one with item_id and title.")
    items = NewItems([], [], [], [])
    for number, row in enumerate(rows, 1):
        if unknown := [key for key in row if key not in KEYS]:
            raise InputError(f"item {number} has the unknown key {unknown[0]!r}: {nearest(unknown[0], list(KEYS))}.")
        item_id = str(row.get("item_id") or "").strip()
        if not item_id:
            raise InputError(f"item {number} has no item_id. Give every item an id of its own.")
        if item_id in known:
            raise InputError(f"item {item_id!r} is known already. Leave it out: a known item is not changed.")
        if item_id in items.item_ids:
            raise InputError(f"item {item_id!r} is given twice, expected each once. Remove one.")
        title = clean_text(flatten(row.get("title")))
        text = join_parts([title, clean_text(flatten(row.get("description")))])
        if text is None:
            raise InputError(f"item {item_id!r} has neither title nor description, and enters by its text. Give one.")
        items.item_ids.append(item_id)
        items.titles.append(title)
        items.texts.append(text)
        items.genres.append([str(genre) for genre in row.get("genres") or []])
    return items
