"""The catalogue: cleans titles and texts, merges items listed twice, adds items that are only interacted with."""

import html
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import polars as pl

from allrec.base import InputError
from allrec.data.config import PrepareConfig
from allrec.data.sources.files import ROW

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
        pl.col("item_id").cast(pl.String).str.strip_chars(),
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
        kept = source.with_columns(pl.col("item_id").cast(pl.String).str.strip_chars())
        source = kept.join(wanted.alias("item_id").to_frame().lazy(), on="item_id", how="semi", maintain_order="left")
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
