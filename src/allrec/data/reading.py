"""What preparation reads of a source: typed interactions on disk, and the items that the options ask for."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from allrec.data.config import PrepareConfig
from allrec.data.ids import refuse_no_ids, refuse_objects
from allrec.data.interactions import ID_PARTS, Table, check_unreadable, check_without_id, parse, refuse_missing_rating
from allrec.data.items import Catalogue, build_catalogue, check_listed, read_items
from allrec.data.sources.diagnosis import diagnosing
from allrec.data.sources.files import JSON_SUFFIXES, table_suffix
from allrec.data.sources.source import Source
from allrec.data.times import Times, read_times

OnStep = Callable[[str, float], None]
"""Called with the name of each step as it begins and the share of the work done by then, as measured with 1 to 10
million rows: lazy frames do not report how many rows they have read."""

RAW, PARSED = ".raw.parquet", ".parsed.parquet"


def read_interactions(
    folder: Path, path: Path, source: Source, config: PrepareConfig, on_step: OnStep
) -> tuple[pl.LazyFrame, Times | None, int]:
    """Reads and types the interactions: what ``PARSED`` holds, how its times were read, and how many rows it has."""
    on_step("reading interactions", 0.0)
    table = Table(source.files[0], config.names is None)
    with diagnosing(source.files):
        refuse_missing_rating(source.interactions, config.min_rating, path)
        times = write_parsed(folder, source, config)
    parsed = pl.scan_parquet(folder / PARSED, glob=False)
    if table_suffix(table.path) in JSON_SUFFIXES:
        refuse_objects(parsed, ID_PARTS, table.path)
    check_unreadable(parsed, table, config.max_rejected)
    return parsed, times, parsed.select(pl.len()).collect().item()


def write_parsed(folder: Path, source: Source, config: PrepareConfig) -> Times | None:
    """Types the interactions of a source into ``PARSED``, and returns how its times are read; None without times."""
    # Forms and units are chosen from all values, so these are read more than once. Both files are read again at once
    # and then removed: packing them would cost more than it saves.
    source.interactions.sink_parquet(folder / RAW, compression="uncompressed", statistics=False)
    raw, place = pl.scan_parquet(folder / RAW, glob=False), source.files[0]
    refuse_no_ids(raw, ID_PARTS, place)
    has_times = "timestamp" in raw.collect_schema()
    times = read_times(raw, config.time_format, str(place)) if has_times else None
    # One pass leaves low ratings out of its counts alone, and so meets them again in keep().
    minimum = None if config.count_filter == "one-pass" else config.min_rating
    parsed = parse(raw, minimum, times, config.missing_ids)
    parsed.sink_parquet(folder / PARSED, compression="uncompressed", statistics=False)
    return times


def read_catalogue(source: Source, item_ids: pl.Series, config: PrepareConfig) -> Catalogue:
    """Reads the items that the options select.

    Raises:
        InputError: a damaged table, one that has none of the items, or too many rows without an id.
    """
    is_narrow = config.count_filter != "none" or source.format.startswith("amazon")
    choice = config.items or ("interacted" if is_narrow else "all")
    path = source.files[-1]
    with diagnosing(source.files[-1:]):
        items = read_items(source.items, item_ids if choice == "interacted" else None, config)
        if source.items is not None and len(item_ids):
            check_listed(source.items, items["item_id"], item_ids, path)
    catalogue = build_catalogue(items, item_ids, config, str(path))
    check_without_id(catalogue.rejected, len(items), Table(path, config.item_names is None), config.max_rejected)
    return catalogue


def places_of(item_ids: pl.Series, catalogue: Catalogue) -> pl.Series:
    """Where in a catalogue each item is, Int32."""
    numbered = catalogue.frame.select("item_id").with_row_index("place")
    named = item_ids.alias("item_id").to_frame()
    return named.join(numbered, on="item_id", how="left", maintain_order="left")["place"].cast(pl.Int32)
