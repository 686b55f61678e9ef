"""From a source to a data set: clean, index, split, draw candidates, store."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from allrec import seeds
from allrec.data.config import PrepareConfig
from allrec.data.dataset import (
    FILES,
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Dataset,
    Tables,
    Targets,
    assemble,
    is_dataset,
    read_manifest,
)
from allrec.data.ids import note_null_words, refuse_no_ids, refuse_objects
from allrec.data.interactions import (
    ID_PARTS,
    Coded,
    Table,
    check_unreadable,
    check_without_id,
    code,
    count_reasons,
    parse,
    put_in_order,
    refuse_missing_rating,
    refuse_nothing_left,
)
from allrec.data.items import Catalogue, build_catalogue, check_listed, read_items
from allrec.data.negatives import NUM_NEGATIVES, UserItems, draw_candidates
from allrec.data.sources.diagnosis import diagnosing
from allrec.data.sources.files import JSON_SUFFIXES, ROW, table_suffix
from allrec.data.sources.registry import open_source
from allrec.data.sources.source import Source, SourceOptions
from allrec.data.split import Split, leave_last_out, split_at_times
from allrec.data.time_forms import SECOND
from allrec.data.times import Times, read_times
from allrec.errors import InputError
from allrec.files import read_json, sha256_file, staging, write_json

REASONS = ("", "user below minimum count", "item below minimum count")
USER_BELOW, ITEM_BELOW = 1, 2


def count_filter(
    users: np.ndarray, items: np.ndarray, config: PrepareConfig, is_counted: np.ndarray | None = None
) -> np.ndarray:
    """Which interactions the count filter rejects.

    Args:
        users: int [interactions].
        items: int [interactions].
        config: ``count_filter`` and the two minimum counts.
        is_counted: bool [interactions], which ones count towards the minimums; all when not given.

    Returns:
        uint8 [interactions], an index into ``REASONS``; 0 is kept.

    Source:
        one-pass: the preprocessing of A-LLMRec's public code, which leaves low ratings out of the counts alone: its
        second walk keeps them wherever user and item have their minimum.
    """
    reasons = np.zeros(len(users), np.uint8)
    if config.count_filter == "none":
        return reasons
    while True:
        kept = np.flatnonzero(reasons == 0)
        weights = None if is_counted is None else is_counted[kept].astype(np.float64)
        user_counts, item_counts = np.bincount(users[kept], weights), np.bincount(items[kept], weights)
        is_item_below = item_counts[items[kept]] < config.min_item_count
        is_user_below = user_counts[users[kept]] < config.min_user_count
        reasons[kept[is_item_below]] = ITEM_BELOW
        reasons[kept[is_user_below]] = USER_BELOW
        if config.count_filter == "one-pass" or not (is_item_below | is_user_below).any():
            return reasons


def refuse_unused_minimum(config: PrepareConfig) -> None:
    """Refuses minimum counts without a filter that would use them.

    Raises:
        InputError: how to set one.
    """
    given = config.model_fields_set & {"min_user_count", "min_item_count"}
    if config.count_filter == "none" and given:
        raise InputError(
            f"{', '.join(sorted(given))} is given, but count_filter is 'none'. Set it to k-core or one-pass."
        )


OnStep = Callable[[str, float], None]
"""Called with the name of each step as it begins and the share of the work done by then, as measured with 1 to 10
million rows: lazy frames do not report how many rows they have read."""

RAW, PARSED = ".raw.parquet", ".parsed.parquet"
ROW_GROUP = 1 << 17


class Kept(NamedTuple):
    """What is left after all filters.

    Attributes:
        frame: user, item, order, source_row and where known time, rating; sorted by user and order.
        user_ids: the string id of every user number.
        item_ids: the string id of every item number, first seen first.
        filtered: source_row and reason of the rows that the count filter rejected.
    """

    frame: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    filtered: pl.DataFrame


def prepare(
    source: Path | str,
    out: Path | str,
    *,
    items: Path | str | None = None,
    config: PrepareConfig | None = None,
    on_step: OnStep = lambda name, share: None,
) -> Dataset:
    """Turns own tables or a published format into a data set folder.

    Args:
        source: a table of interactions, or a folder (see ``data/sources`` for the formats).
        out: the data set folder; a data set that is there already is replaced, anything else is left alone.
        items: the table of items, where it is not in the folder of the interactions.
        config: every option.
        on_step: called with each step's name and the share of the work done by then.

    Returns:
        The data set, loaded from its folder.

    Raises:
        InputError: what is wrong with the source or the options, where, and what to do; nothing is then written.
    """
    config = config or PrepareConfig()
    refuse_unused_minimum(config)
    source, out = Path(source), Path(out)
    options = SourceOptions(
        Path(items) if items else None,
        config.columns, config.item_columns, config.names, config.item_names, config.separator,
    )  # fmt: skip
    start = time.perf_counter()
    with staging(out, is_dataset, "data set") as folder:
        opened = open_source(source, options, config.format)
        tables = write_dataset(folder, source, opened, config, on_step)
        note_seconds(folder, time.perf_counter() - start)
    return assemble(out, read_manifest(out), tables)


def write_dataset(folder: Path, path: Path, source: Source, config: PrepareConfig, on_step: OnStep) -> Tables:
    """Reads a source, writes every file of a data set into ``folder``, and returns what the Parquet files hold."""
    on_step("reading interactions", 0.0)
    table = Table(source.files[0], config.names is None)
    with diagnosing(source.files):
        refuse_missing_rating(source.interactions, config.min_rating, path)
        times = write_parsed(folder, source, config)
    parsed = pl.scan_parquet(folder / PARSED, glob=False)
    if table_suffix(table.path) in JSON_SUFFIXES:
        refuse_objects(parsed, ID_PARTS, table.path)
    check_unreadable(parsed, table, config.max_rejected)
    num_rows = parsed.select(pl.len()).collect().item()
    on_step(f"filtering and ordering {num_rows:,} rows", 0.1)
    kept = keep(code(folder / PARSED), config)
    on_step("reading items", 0.45)
    catalogue = read_catalogue(source, kept, config)
    for part in ID_PARTS:
        note_null_words(parsed.filter(pl.col("reason").is_null()), part, str(table.path))
    kept = renumber_items(kept, catalogue)
    on_step(f"splitting {len(kept.frame):,} interactions and drawing candidates", 0.5)
    reasons = write_rejected(folder, kept, catalogue)
    refuse_nothing_left(len(kept.frame), reasons, path)
    split = make_split(kept, config)
    tables = make_tables(kept, catalogue, split, draw_targets(kept, split, len(catalogue.frame), config.seed))
    on_step("writing the data set", 0.8)
    write_tables(folder, tables)
    for name in (RAW, PARSED):
        (folder / name).unlink()
    manifest = {
        "counts": count(kept, catalogue, split, reasons),
        "rejected": reasons,
        "times": describe_times(kept, times, source.columns.get("timestamp", "timestamp")),
    }
    write_manifest(folder, path, source, config, manifest)
    return tables


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


def describe_times(kept: Kept, times: Times | None, column: str) -> dict[str, str] | None:
    """The entry ``times`` of ``dataset.json``; None without any."""
    if times is None:
        return None
    moments = pl.Series([kept.frame["time"].min(), kept.frame["time"].max()], dtype=pl.Int64)
    first, last = moments.cast(pl.Datetime("ns")).dt.to_string("%Y-%m-%dT%H:%M:%SZ")
    return {"column": column, "form": times.form, "first": first, "last": last}


def keep(coded: Coded, config: PrepareConfig) -> Kept:
    """Applies the count filter, numbers the users that are left, and puts every user's interactions in order."""
    frame = coded.frame
    minimum = config.min_rating
    is_counted = None if minimum is None else (frame["rating"] >= minimum).fill_null(False).to_numpy()
    reasons = count_filter(frame["user"].to_numpy(), frame["item"].to_numpy(), config, is_counted)
    filtered = frame.select(ROW).with_columns(pl.Series("reason", reasons)).filter(pl.col("reason") > 0)
    named = filtered.with_columns(pl.col("reason").replace_strict(dict(enumerate(REASONS)), return_dtype=pl.String))
    frame = frame.filter(pl.Series(reasons == 0))
    users, user_numbers = number_anew(frame["user"].to_numpy(), len(coded.user_ids))
    items, item_numbers = number_anew(frame["item"].to_numpy(), len(coded.item_ids))
    frame = frame.with_columns(pl.Series("user", user_numbers), pl.Series("item", item_numbers))
    return Kept(put_in_order(frame), coded.user_ids.gather(users), coded.item_ids.gather(items), named)


def number_anew(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers below ``count`` without gaps: those that occur, ascending, and int32 the place of each among them."""
    occurs = np.bincount(numbers, minlength=count) > 0
    return np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int32) - 1)[numbers]


def read_catalogue(source: Source, kept: Kept, config: PrepareConfig) -> Catalogue:
    """Reads the items that the options select.

    Raises:
        InputError: a damaged table, one that has none of the items, or too many rows without an id.
    """
    is_narrow = config.count_filter != "none" or source.format.startswith("amazon")
    choice = config.items or ("interacted" if is_narrow else "all")
    path = source.files[-1]
    with diagnosing(source.files[-1:]):
        items = read_items(source.items, kept.item_ids if choice == "interacted" else None, config)
        if source.items is not None and len(kept.item_ids):
            check_listed(source.items, items["item_id"], kept.item_ids, path)
    catalogue = build_catalogue(items, kept.item_ids, config, str(path))
    check_without_id(catalogue.rejected, len(items), Table(path, config.item_names is None), config.max_rejected)
    return catalogue


def renumber_items(kept: Kept, catalogue: Catalogue) -> Kept:
    """Replaces item codes by positions in the catalogue."""
    numbered = catalogue.frame.select("item_id").with_row_index("place")
    places = kept.item_ids.alias("item_id").to_frame().join(numbered, on="item_id", how="left", maintain_order="left")
    item = places["place"].cast(pl.Int32).gather(kept.frame["item"])
    return kept._replace(frame=kept.frame.with_columns(item.alias("item")), item_ids=catalogue.frame["item_id"])


def write_rejected(folder: Path, kept: Kept, catalogue: Catalogue) -> dict[str, int]:
    """Writes every rejected row with its reason, in the source's order, and counts them by reason."""
    parsed = pl.scan_parquet(folder / PARSED, glob=False).drop("time", "rating", "position", strict=False)
    filtered = parsed.drop("reason").join(kept.filtered.lazy(), on=ROW).select(*parsed.collect_schema().names())
    interactions = pl.concat([parsed.filter(pl.col("reason").is_not_null()), filtered]).sort(ROW)
    items = catalogue.rejected.lazy().with_columns(pl.lit("items").alias("table"))
    named = interactions.with_columns(pl.lit("interactions").alias("table"))
    rejected = pl.concat([named, items], how="diagonal").rename({ROW: "row"})
    first = pl.col("table", "row", "reason")
    rejected.select(first, pl.exclude("table", "row", "reason")).sink_ndjson(folder / "rejected.jsonl")
    return count_reasons(rejected.select("reason"))


def make_split(kept: Kept, config: PrepareConfig) -> Split:
    """Cuts every user's sequence as the options say.

    Raises:
        InputError: a split at global times of a source without times.
    """
    users = kept.frame["user"].to_numpy()
    if config.valid_from is None or config.test_from is None or config.split == "leave-last-out":
        return leave_last_out(np.bincount(users, minlength=len(kept.user_ids)))
    if "time" not in kept.frame.columns:
        raise InputError("split global-time needs a timestamp column, and the source has none. Use leave-last-out.")
    times = kept.frame["time"].to_numpy()
    return split_at_times(users, times, len(kept.user_ids), config.valid_from, config.test_from)


def draw_targets(kept: Kept, split: Split, num_items: int, seed: int) -> dict[str, Targets]:
    """The targets of both splits and their candidates, each protocol's drawn in a thread of its own."""
    users, items = kept.frame["user"].to_numpy(), kept.frame["item"].to_numpy()
    seen = UserItems(users, items, len(kept.user_ids), num_items)
    starts = np.searchsorted(users, np.arange(len(kept.user_ids), dtype=users.dtype))
    with ThreadPoolExecutor() as pool:

        def draw(name: str) -> tuple[Targets, dict[str, Future[np.ndarray]]]:
            target_users, positions = split.targets[name]
            targets = items[starts[target_users] + positions]
            rngs = {size: seeds.rng(seed, "negatives", name, size) for size in NUM_NEGATIVES.values()}
            drawn = {
                protocol: pool.submit(draw_candidates, target_users, targets, seen, size, rngs[size])
                for protocol, size in NUM_NEGATIVES.items()
            }
            return Targets(target_users, positions, targets, {}), drawn

        started = {name: draw(name) for name in SPLITS}
    return {
        name: replace(targets, candidates={protocol: lists.result() for protocol, lists in drawn.items()})
        for name, (targets, drawn) in started.items()
    }


def make_tables(kept: Kept, catalogue: Catalogue, split: Split, targets: dict[str, Targets]) -> Tables:
    """What the Parquet files are to hold."""
    frame = kept.frame
    columns = [pl.col("user"), pl.col("item"), pl.col("order")]
    if "time" in frame.columns:
        columns.append((pl.col("time") // SECOND).alias("timestamp"))
    if "rating" in frame.columns:
        columns.append(pl.col("rating"))
    users = pl.DataFrame({"user_id": kept.user_ids, "num_train": split.train_lengths})
    return Tables(frame.select(columns), catalogue.frame, users, targets)


def write_tables(folder: Path, tables: Tables) -> None:
    """Writes the Parquet files."""
    splits = pl.concat([split_table(name, targets) for name, targets in tables.targets.items()])
    frames = {"interactions": tables.interactions, "items": tables.items, "users": tables.users, "splits": splits}
    for name, table in frames.items():
        # Candidates are random numbers, which the usual level 3 packs no better in four times the time.
        table.write_parquet(folder / f"{name}.parquet", row_group_size=ROW_GROUP, compression_level=1)


def split_table(name: str, targets: Targets) -> pl.DataFrame:
    """The rows of ``splits.parquet`` of one split: split, user, position, item, and a list of candidates a protocol."""
    columns = {"user": targets.users, "position": targets.positions, "item": targets.items}
    lists = [pl.Series(protocol, drawn).cast(pl.List(pl.Int32)) for protocol, drawn in targets.candidates.items()]
    return pl.DataFrame(columns).select(pl.lit(name).alias("split"), pl.all()).with_columns(lists)


def count(kept: Kept, catalogue: Catalogue, split: Split, reasons: dict[str, int]) -> dict[str, int]:
    """The counts of dataset.json."""
    valid, test = (split.targets[name][0] for name in SPLITS)
    return {
        "users": len(kept.user_ids),
        "items": len(catalogue.frame),
        "interactions": len(kept.frame),
        "train_interactions": int(split.train_lengths.sum()),
        "evaluated_users": int(np.count_nonzero(np.bincount(np.concatenate([valid, test])))),
        "evaluated_valid": len(valid),
        "evaluated_test": len(test),
        "interacted_items": int(np.count_nonzero(np.bincount(kept.frame["item"].to_numpy()))),
        **catalogue.counts,
        "rejected_rows": sum(reasons.values()),
    }


def note_seconds(folder: Path, seconds: float) -> None:
    """Adds to dataset.json how long preparing took; the one entry that differs between equal runs."""
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | {"seconds": round(seconds, 3)})


def write_manifest(folder: Path, path: Path, source: Source, config: PrepareConfig, facts: Mapping[str, Any]) -> None:
    """Writes dataset.json, with the facts of the preparation: counts, rejected rows by reason, times."""
    name = config.name or path.absolute().name.split(".")[0]
    manifest = {
        "format": FORMAT_VERSION,
        "name": name,
        **facts,
        "source": {
            "path": str(path),
            "format": source.format,
            "files": {file.name: sha256_file(file) for file in source.files},
        },
        "config": config.model_dump(mode="json"),
        "wording": (config.wording or source.wording).model_dump(),
        "files": {file: sha256_file(folder / file) for file in FILES},
    }
    write_json(folder / MANIFEST, manifest)
