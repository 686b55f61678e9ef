"""The item catalogue: cleaned titles and texts, and items that are added to a trained run."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from allrec.data.config import PrepareConfig
from allrec.data.ids import id_of
from allrec.data.sources.diagnosis import refuse_constant
from allrec.data.sources.files import ROW
from allrec.errors import InputError, nearest, notice
from allrec.files import atomic_path

BATCH_ROWS = 16_384
MAX_UNESCAPES = 8
HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# A letter must follow, so that "<3" and "a < b" stay.
TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ufeff\ufffe\uffff]+")
SENTENCE_END = (".", "!", "?", ":", ";")
COLUMNS = ("item_id", "title", "text")


class Catalogue(NamedTuple):
    """The items of a data set.

    Attributes:
        frame: item_id, title, text, further columns; the row is the item's number.
        counts: untitled, without text, merged, cut, only in the interactions.
        rejected: source_row, reason, and the title of rows without an id.
    """

    frame: pl.DataFrame
    counts: dict[str, int]
    rejected: pl.DataFrame


def clean_text(text: str | None) -> str | None:
    """Plain text: entities resolved (doubly escaped ones too), tags, control characters and extra white space gone.

    Example:
        >>> clean_text(" Crabtree &amp;amp; Evelyn <b>Hand</b>\\tCream ")
        'Crabtree & Evelyn Hand Cream'
        >>> clean_text("<br>") is None
        True
    """
    if not text:
        return None
    for _ in range(MAX_UNESCAPES):
        if "&" not in text or (plain := html.unescape(text)) == text:
            break
        text = plain
    if "<" in text:
        text = TAG.sub(" ", HIDDEN.sub(" ", text))
    return " ".join(CONTROL.sub(" ", text).split()) or None


def flatten(value: Any) -> str | None:
    """One string of what a source calls a text: a list's parts in a row, JSON lists too."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    if isinstance(value, list):
        parts = [str(part) for part in value if part is not None]
        return " ".join(parts) if any(" " in part for part in parts) else ", ".join(parts)
    return None if value is None else str(value)


def join_parts(parts: Iterable[str | None]) -> str | None:
    """Parts of a text as sentences: a full stop between two where the first does not end in one."""
    joined = ""
    for part in parts:
        if part:
            gap = " " if joined.endswith(SENTENCE_END) else ". "
            joined += gap + part if joined else part
    return joined or None


def clean_batch(batch: pl.DataFrame, config: PrepareConfig) -> pl.DataFrame:
    """Cleans a batch of items: source_row, item_id, title, text, is_cut, further columns (description is in text)."""
    cleaned: dict[str, list[str | None]] = {}
    for name in {"title", *config.text_columns}:
        values = batch[name].to_list() if name in batch.columns else [None] * len(batch)
        cleaned[name] = [clean_text(flatten(value)) for value in values]
    texts = [join_parts(parts) for parts in zip(*(cleaned[name] for name in config.text_columns), strict=True)]
    limit = config.max_text_chars
    further = [name for name in batch.columns if name not in (ROW, "item_id", "title", "description")]
    return batch.select(
        pl.col(ROW),
        pl.col("item_id"),
        cut("title", cleaned["title"], limit),
        cut("text", texts, limit),
        pl.Series("is_cut", [len(text or "") > limit for text in texts], pl.Boolean),
        *further,
    )


def cut(name: str, texts: list[str | None], limit: int) -> pl.Series:
    """A column of texts, each of at most ``limit`` characters."""
    return pl.Series(name, [text if text is None else text[:limit].rstrip() for text in texts], pl.String)


def read_items(source: pl.LazyFrame | None, wanted: pl.Series | None, config: PrepareConfig) -> pl.DataFrame:
    """Reads and cleans a source's items batch by batch.

    Args:
        source: source_row, item_id, title, description, further columns; None where the source has no items.
        wanted: the ids to keep; all when None.
        config: text columns and limits.
    """
    empty = pl.DataFrame(
        schema={ROW: pl.UInt32, "item_id": pl.String, "title": pl.String, "text": pl.String, "is_cut": pl.Boolean}
    )
    if source is None:
        return empty
    if wanted is not None:
        source = source.join(wanted.alias("item_id").to_frame().lazy(), on="item_id", how="semi", maintain_order="left")
    batches = source.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")
    cleaned = [clean_batch(batch, config) for batch in batches]
    return decode_lists(pl.concat(cleaned)) if cleaned else empty


def decode_lists(frame: pl.DataFrame) -> pl.DataFrame:
    """Further columns whose every value is a JSON list of strings become lists."""
    for name, kind in frame.schema.items():
        column = frame[name]
        if kind != pl.String or name in COLUMNS or not column.str.starts_with("[").any():
            continue
        if column.str.starts_with("[").all(ignore_nulls=True):
            try:
                frame = frame.with_columns(column.str.json_decode(pl.List(pl.String)))
            except pl.exceptions.PolarsError:
                continue
    return frame


def merge_duplicates(frame: pl.DataFrame, config: PrepareConfig, place: str) -> pl.DataFrame:
    """Keeps the first row of every item id.

    Raises:
        InputError: two rows of one id differ in title or text, and the option says to refuse that.
    """
    duplicated = frame.filter(pl.col("item_id").is_duplicated())
    different = duplicated.select(ROW, *COLUMNS).filter(pl.struct("title", "text").n_unique().over("item_id") > 1)
    if config.duplicate_items == "refuse" and len(different):
        first = different.filter(pl.col("item_id") == different["item_id"][0])
        other = first.filter(
            pl.col("text").ne_missing(first["text"][0]) | pl.col("title").ne_missing(first["title"][0])
        )
        raise InputError(
            f"{place}: item {first['item_id'][0]!r} has different texts in rows {first[ROW][0]} and {other[ROW][0]}, "
            f"expected one text an item. Remove one, or take the first of each with duplicate_items=first."
        )
    return frame.unique("item_id", keep="first", maintain_order=True)


def check_listed(source: pl.LazyFrame, listed: pl.Series, interacted: pl.Series, path: Path) -> None:
    """Warns of interacted items that the table of items lacks; refuses a table that lacks all of them.

    Args:
        source: the table of items, for an id of it.
        listed: ids that were read from it.
        interacted: ids of the kept interactions.
        path: the table of items.

    Raises:
        InputError: none is listed; one id of each side.
    """
    unlisted = interacted.filter(~interacted.is_in(listed.drop_nulls().implode()))
    if not len(unlisted):
        return
    others = source.select("item_id").filter(pl.col("item_id").str.len_chars() > 0)
    spare = others.filter(~pl.col("item_id").is_in(interacted.implode())).head(1).collect()
    shown = (spare if len(spare) else others.head(1).collect())["item_id"]
    sides = f"such as {unlisted[0]!r}" + (f"; an id there is {shown[0]!r}" if len(shown) else "; it has no ids")
    said = f"{path}: {len(unlisted):,} of {len(interacted):,} interacted items are not in it ({sides})"
    if len(unlisted) == len(interacted):
        raise InputError(
            f"{said}, expected the same ids on both sides. Did one side lose zeros in front, or is another column the "
            f"id? Name it: --item-column item_id=COLUMN, --column item_id=COLUMN."
        )
    notice(f"{said}: {len(unlisted) / len(interacted):.1%}. They stay, without a title or a text.")


def build_catalogue(items: pl.DataFrame, interacted: pl.Series, config: PrepareConfig, place: str) -> Catalogue:
    """Puts the catalogue together: listed items in their order, then those that only the interactions name.

    Args:
        items: cleaned items.
        interacted: item ids of the kept interactions, first seen first.
        config: what to do with duplicates.
        place: the source, for messages.
    """
    has_id = pl.col("item_id").is_not_null() & (pl.col("item_id").str.len_chars() > 0)
    listed = items.filter(has_id)
    merged = merge_duplicates(listed, config, place)
    unlisted = interacted.alias("item_id").to_frame().join(merged, on="item_id", how="anti", maintain_order="left")
    frame = pl.concat([merged, unlisted], how="diagonal")
    counts = {
        "untitled_items": frame["title"].null_count(),
        "textless_items": frame["text"].null_count(),
        "cut_items": int(frame["is_cut"].sum()),
        "merged_items": len(listed) - len(merged),
        "unlisted_items": len(unlisted),
    }
    rejected = items.filter(~has_id).select(ROW, pl.lit("item without id").alias("reason"), "title")
    return Catalogue(frame.drop(ROW, "is_cut"), counts, rejected)


KEYS = ("item_id", "title", "description", "genres")
FILE = "items.parquet"


class NewItems(NamedTuple):
    """Items to be added, in the order of their positions; each has a text, since it is embedded by its text alone.

    Attributes:
        item_ids: the source's ids.
        titles: None where an item has only a description.
        texts: title and description joined.
        genres: of each item; may be empty.
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
    """The rows of a file of JSON lines: item_id, title, description and genres, of which only the id is required.

    Raises:
        InputError: no such file, or a line that is no JSON object; the line is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}. Give JSON lines with item_id and title.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=refuse_constant)
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
        given = row.get("item_id")
        item_id = "" if given is None else id_of(given, "item")
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
