"""From a source to a data set: clean, index, split, draw candidates, store."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from allrec.data.config import PrepareConfig
from allrec.data.count_filter import count_filter, name_reasons, pairs_of, refuse_unused_minimum
from allrec.data.dataset import SPLITS, Dataset, Tables, Targets, assemble, is_dataset, load_dataset, read_manifest
from allrec.data.ids import note_null_words
from allrec.data.interactions import ID_PARTS, Coded, code, put_in_order, refuse_nothing_left
from allrec.data.items import Catalogue
from allrec.data.negatives import NUM_NEGATIVES, UserItems, draw_candidates, generators
from allrec.data.partitioned import write_partitioned
from allrec.data.reading import PARSED, RAW, OnStep, places_of, read_catalogue, read_interactions
from allrec.data.sources.registry import open_source
from allrec.data.sources.source import Source, SourceOptions
from allrec.data.split import Split, leave_last_out, refuse_no_times, split_at_times
from allrec.data.writing import (
    count,
    describe_times,
    interaction_columns,
    note_seconds,
    write_manifest,
    write_rejected,
    write_tables,
)
from allrec.errors import InputError
from allrec.files import staging
from allrec.parallel import Engine, ThisProcess


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
    partitions: int = 1,
    engine: Engine | None = None,
    on_step: OnStep = lambda name, share: None,
) -> Dataset:
    """Turns own tables or a published format into a data set folder.

    Args:
        source: a table of interactions, or a folder (see ``data/sources`` for the formats).
        out: the data set folder; a data set that is there already is replaced, anything else is left alone.
        items: the table of items, where it is not in the folder of the interactions.
        config: every option.
        partitions: parts that the interactions are worked on in, one at a time in memory, with the same bytes for any
            number; more than one for interactions that outgrow memory. Ids and items stay in memory.
        engine: where parts are numbered and put in order; this process where None.
        on_step: called with each step's name and the share of the work done by then.

    Returns:
        The data set, loaded from its folder.

    Raises:
        InputError: what is wrong with the source or the options, where, and what to do; nothing is then written.
    """
    config = config or PrepareConfig()
    refuse_unused_minimum(config)
    if partitions < 1:
        raise InputError(f"got {partitions} partitions, expected at least 1.")
    source, out = Path(source), Path(out)
    options = SourceOptions(
        Path(items) if items else None,
        config.columns, config.item_columns, config.names, config.item_names, config.separator,
    )  # fmt: skip
    start = time.perf_counter()
    with staging(out, is_dataset, "data set") as folder:
        opened = open_source(source, options, config.format)
        if partitions == 1:
            tables = write_dataset(folder, source, opened, config, on_step)
        else:
            write_partitioned(folder, source, opened, config, partitions, engine or ThisProcess(), on_step)
        note_seconds(folder, time.perf_counter() - start)
    return assemble(out, read_manifest(out), tables) if partitions == 1 else load_dataset(out)


def write_dataset(folder: Path, path: Path, source: Source, config: PrepareConfig, on_step: OnStep) -> Tables:
    """Reads a source, writes every file of a data set into ``folder``, and returns what the Parquet files hold."""
    parsed, times, num_rows = read_interactions(folder, path, source, config, on_step)
    on_step(f"filtering and ordering {num_rows:,} rows", 0.1)
    kept = keep(code(folder / PARSED), config)
    on_step("reading items", 0.45)
    catalogue = read_catalogue(source, kept.item_ids, config)
    for part in ID_PARTS:
        note_null_words(parsed.filter(pl.col("reason").is_null()), part, str(source.files[0]))
    kept = renumber_items(kept, catalogue)
    on_step(f"splitting {len(kept.frame):,} interactions and drawing candidates", 0.5)
    reasons = write_rejected(folder, kept.filtered, catalogue)
    refuse_nothing_left(len(kept.frame), reasons, path)
    split = make_split(kept, config)
    tables = make_tables(kept, catalogue, split, draw_targets(kept, split, len(catalogue.frame), config.seed))
    on_step("writing the data set", 0.8)
    write_tables(folder, tables)
    for name in (RAW, PARSED):
        (folder / name).unlink()
    num_touched = int(np.count_nonzero(np.bincount(kept.frame["item"].to_numpy())))
    span = None if times is None else (kept.frame["time"].min(), kept.frame["time"].max())
    manifest = {
        "counts": count(len(kept.frame), num_touched, catalogue, split, reasons),
        "rejected": reasons,
        "times": describe_times(span, times, source.columns.get("timestamp", "timestamp")),
    }
    write_manifest(folder, path, source, config, manifest)
    return tables


def keep(coded: Coded, config: PrepareConfig) -> Kept:
    """Applies the count filter, numbers the users that are left, and puts every user's interactions in order."""
    frame = coded.frame
    pairs = pairs_of(frame, config)
    reasons = count_filter(pairs.users, pairs.items, config, pairs.is_counted)
    named = name_reasons(frame, reasons)
    frame = frame.filter(pl.Series(reasons == 0))
    users, user_numbers = number_anew(frame["user"].to_numpy(), len(coded.user_ids))
    items, item_numbers = number_anew(frame["item"].to_numpy(), len(coded.item_ids))
    frame = frame.with_columns(pl.Series("user", user_numbers), pl.Series("item", item_numbers))
    return Kept(put_in_order(frame), coded.user_ids.gather(users), coded.item_ids.gather(items), named)


def number_anew(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers below ``count`` without gaps: those that occur, ascending, and int32 the place of each among them."""
    occurs = np.bincount(numbers, minlength=count) > 0
    return np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int32) - 1)[numbers]


def renumber_items(kept: Kept, catalogue: Catalogue) -> Kept:
    """Replaces item codes by positions in the catalogue."""
    item = places_of(kept.item_ids, catalogue).gather(kept.frame["item"])
    return kept._replace(frame=kept.frame.with_columns(item.alias("item")), item_ids=catalogue.frame["item_id"])


def make_split(kept: Kept, config: PrepareConfig) -> Split:
    """Cuts every user's sequence as the options say.

    Raises:
        InputError: a split at global times of a source without times.
    """
    users = kept.frame["user"].to_numpy()
    if config.valid_from is None or config.test_from is None or config.split == "leave-last-out":
        return leave_last_out(np.bincount(users, minlength=len(kept.user_ids)))
    refuse_no_times(kept.frame)
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
            rngs = generators(seed, name)
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
    users = pl.DataFrame({"user_id": kept.user_ids, "num_train": split.train_lengths})
    return Tables(kept.frame.select(interaction_columns(kept.frame)), catalogue.frame, users, targets)
