"""Preparation of interactions that outgrow memory: users are hashed into parts, and each part is a file.

The data set is that of one part, to the byte. What is global is small and reduced over the parts: in which order users
and items first occur, how often each occurs, and how long each user's sequence is. Those numbers, ids and items stay in
memory; interactions and candidates do not.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from allrec.data.config import PrepareConfig
from allrec.data.count_filter import Pairs, count_filter_parts, name_reasons, pairs_of
from allrec.data.dataset import SPLITS, Targets
from allrec.data.ids import note_null_words
from allrec.data.interactions import ID_PARTS, count_reasons, put_in_order, refuse_nothing_left
from allrec.data.items import Catalogue
from allrec.data.negatives import CHUNK_ROWS, NUM_NEGATIVES, UserItems, draw_candidates, generators
from allrec.data.reading import PARSED, RAW, OnStep, places_of, read_catalogue, read_interactions
from allrec.data.sources.files import ROW
from allrec.data.sources.source import Source
from allrec.data.split import Split, leave_last_out, refuse_no_times, split_at_counts
from allrec.data.time_forms import SECOND
from allrec.data.writing import (
    PACKING,
    ROW_GROUP,
    count,
    describe_times,
    interaction_columns,
    sink,
    write_manifest,
    write_rejected,
    write_splits,
)
from allrec.files import atomic_path
from allrec.parallel import Engine

TOGETHER = 16
"""Row groups that are read of all parts at one time."""
NUMBERS = {"user_id": "user", "item_id": "item"}


class Totals(NamedTuple):
    """What is known of all parts together, after filtering.

    Attributes:
        lengths: interactions of every user.
        before: interactions of every user before the two times of a split at global times; None without one.
        num_touched: items that have an interaction.
        span: the first and the last time; None without times.
    """

    lengths: np.ndarray
    before: tuple[np.ndarray, np.ndarray] | None
    num_touched: int
    span: tuple[Any, Any] | None


def write_partitioned(
    folder: Path, path: Path, source: Source, config: PrepareConfig, partitions: int, engine: Engine, on_step: OnStep
) -> None:
    """Reads a source and writes every file of a data set into ``folder``; see ``preparation.prepare``."""
    work = folder / ".parts"
    work.mkdir()
    parsed, times, num_rows = read_interactions(folder, path, source, config, on_step)
    on_step(f"parting and numbering {num_rows:,} rows", 0.1)
    numbers = part_by_user(parsed, work, partitions)
    if not numbers:
        refuse_nothing_left(0, count_reasons(parsed.select("reason")), path)
    ids = number_all(work, numbers, engine)
    on_step("filtering and reading items", 0.3)
    users, item_ids = filter_parts(work, numbers, ids, config)
    catalogue = read_catalogue(source, item_ids, config)
    for part in ID_PARTS:
        note_null_words(parsed.filter(pl.col("reason").is_null()), part, str(source.files[0]))
    on_step("ordering", 0.45)
    totals = order_parts(work, numbers, len(users), item_ids, catalogue, config, engine)
    filtered = pl.concat([pl.read_parquet(named(work, "filtered", number), glob=False) for number in numbers])
    reasons = write_rejected(folder, filtered, catalogue)
    refuse_nothing_left(int(totals.lengths.sum()), reasons, path)
    split = write_ordered(folder, work, numbers, totals, catalogue, users, config, on_step)
    shutil.rmtree(work)
    for name in (RAW, PARSED):
        (folder / name).unlink()
    manifest = {
        "counts": count(int(totals.lengths.sum()), totals.num_touched, catalogue, split, reasons),
        "rejected": reasons,
        "times": describe_times(totals.span, times, source.columns.get("timestamp", "timestamp")),
    }
    write_manifest(folder, path, source, config, manifest)


def write_ordered(
    folder: Path,
    work: Path,
    numbers: Sequence[int],
    totals: Totals,
    catalogue: Catalogue,
    users: pl.Series,
    config: PrepareConfig,
    on_step: OnStep,
) -> Split:
    """Writes the Parquet files of a data set of ordered parts, and returns how users were split."""
    offsets = np.concatenate([[0], np.cumsum(totals.lengths)])
    on_step(f"writing {offsets[-1]:,} interactions", 0.55)
    sink(folder / "interactions.parquet", ordered_groups(work, numbers, offsets))
    split = leave_last_out(totals.lengths) if totals.before is None else split_at_counts(totals.lengths, *totals.before)
    on_step("drawing candidates", 0.65)
    write_splits(folder, draw_from_disk(folder, work, split, offsets, len(catalogue.frame), config.seed))
    tables = {"items": catalogue.frame, "users": pl.DataFrame({"user_id": users, "num_train": split.train_lengths})}
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet", row_group_size=ROW_GROUP, compression_level=PACKING)
    return split


def part_by_user(parsed: pl.LazyFrame, work: Path, partitions: int) -> list[int]:
    """Writes the accepted interactions, all of a user in one part; which parts there are."""
    accepted = parsed.filter(pl.col("reason").is_null())
    known = [name for name in ("time", "position", "rating") if name in parsed.collect_schema()]
    part = (pl.col("user_id").hash(0) % partitions).cast(pl.Int32).alias("part")
    accepted.select(ROW, *ID_PARTS, *known, part).sink_parquet(
        pl.PartitionBy(work / "accepted", key="part", include_key=False), compression="uncompressed", mkdir=True
    )
    return sorted(int(one.name.partition("=")[2]) for one in (work / "accepted").glob("part=*"))


def scan_accepted(work: Path, number: int) -> pl.LazyFrame:
    """The accepted interactions of a part."""
    return pl.scan_parquet(sorted((work / "accepted" / f"part={number}").glob("*.parquet")), glob=False)


def named(work: Path, kind: str, number: int | str) -> Path:
    """A file of a part."""
    return work / f"{kind}-{number}.parquet"


@dataclass(frozen=True)
class SeeFirst:
    """Finds where each user and item of a part first occurs."""

    work: Path

    def __call__(self, number: int) -> Path:
        """Writes both, and returns the users'."""
        for name, part in NUMBERS.items():
            first = scan_accepted(self.work, number).group_by(name).agg(pl.col(ROW).min())
            # Aside and renamed, as each of these: a part that is done twice at once is whole all the same.
            with atomic_path(named(self.work, f"first-{part}", number)) as path:
                first.sink_parquet(path)
        return named(self.work, "first-user", number)


@dataclass(frozen=True)
class Code:
    """Exchanges the ids of a part for numbers."""

    work: Path

    def __call__(self, number: int) -> Path:
        """Writes source_row, user, item and what else is known."""
        frame, path = scan_accepted(self.work, number), named(self.work, "coded", number)
        for name, part in NUMBERS.items():
            ids = pl.scan_parquet(named(self.work, "ids", part), glob=False)
            frame = frame.join(ids.with_row_index(part).select(name, pl.col(part).cast(pl.Int32)), on=name)
        with atomic_path(path) as aside:
            frame.drop(*ID_PARTS).sink_parquet(aside, compression="uncompressed")
        return path


def number_all(work: Path, numbers: Sequence[int], engine: Engine) -> dict[str, pl.Series]:
    """Numbers users and items over all parts, first seen first, codes the parts, and returns the ids."""
    for _ in engine.map(SeeFirst(work), numbers):
        pass
    ids = {}
    for name, part in NUMBERS.items():
        files = [named(work, f"first-{part}", number) for number in numbers]
        first = pl.scan_parquet(files, glob=False).group_by(name).agg(pl.col(ROW).min()).sort(ROW)
        first.select(name).sink_parquet(named(work, "ids", part))
        ids[name] = pl.read_parquet(named(work, "ids", part), glob=False)[name]
    for _ in engine.map(Code(work), numbers):
        pass
    return ids


def filter_parts(
    work: Path, numbers: Sequence[int], ids: dict[str, pl.Series], config: PrepareConfig
) -> tuple[pl.Series, pl.Series]:
    """Applies the count filter to all parts; the ids of users and items that are left, numbered anew."""

    def parts() -> Iterator[Pairs]:
        return (pairs_of(pl.read_parquet(named(work, "coded", number), glob=False), config) for number in numbers)

    lengths = [pl.scan_parquet(named(work, "coded", n), glob=False).select(pl.len()).collect().item() for n in numbers]
    num_users, num_items = len(ids["user_id"]), len(ids["item_id"])
    reasons = count_filter_parts(parts, lengths, num_users, num_items, config)
    occurs = {"user": np.zeros(num_users, bool), "item": np.zeros(num_items, bool)}
    for number, part, why in zip(numbers, parts(), reasons, strict=True):
        np.save(work / f"reasons-{number}.npy", why)
        occurs["user"][part.users[why == 0]] = True
        occurs["item"][part.items[why == 0]] = True
    np.save(work / "users.npy", np.cumsum(occurs["user"], dtype=np.int32) - 1)
    np.save(work / "items.npy", np.cumsum(occurs["item"], dtype=np.int32) - 1)
    return ids["user_id"].filter(pl.Series(occurs["user"])), ids["item_id"].filter(pl.Series(occurs["item"]))


@dataclass(frozen=True)
class Order:
    """Filters a part, numbers what is left anew, and puts every user's interactions in order."""

    work: Path

    def __call__(self, number: int) -> Path:
        """Writes the ordered interactions and, beside them, what was filtered."""
        coded = pl.read_parquet(named(self.work, "coded", number), glob=False)
        reasons, path = np.load(self.work / f"reasons-{number}.npy"), named(self.work, "ordered", number)
        with atomic_path(named(self.work, "filtered", number)) as aside:
            name_reasons(coded, reasons).write_parquet(aside)
        kept = coded.filter(pl.Series(reasons == 0))
        users, places = np.load(self.work / "users.npy"), np.load(self.work / "places.npy")
        numbered = [
            pl.Series("user", users[kept["user"].to_numpy()]),
            pl.Series("item", places[kept["item"].to_numpy()]),
        ]
        ordered = put_in_order(kept.with_columns(numbered))
        with atomic_path(path) as aside:
            ordered.write_parquet(aside, row_group_size=ROW_GROUP, compression="lz4")
        return path


def order_parts(
    work: Path,
    numbers: Sequence[int],
    num_users: int,
    item_ids: pl.Series,
    catalogue: Catalogue,
    config: PrepareConfig,
    engine: Engine,
) -> Totals:
    """Orders all parts, with items as positions in the catalogue, and adds up what is known of them.

    Raises:
        InputError: a split at global times of a source without times.
    """
    places = places_of(item_ids, catalogue).to_numpy()
    np.save(work / "places.npy", places[np.load(work / "items.npy").clip(min=0)] if len(places) else places)
    lengths, touched = np.zeros(num_users, np.int64), np.zeros(len(catalogue.frame), bool)
    before = None
    if config.split == "global-time" and config.valid_from is not None and config.test_from is not None:
        moments = [config.valid_from * SECOND, config.test_from * SECOND]
        before = (np.zeros(num_users, np.int64), np.zeros(num_users, np.int64))
    spans: list[Any] = []
    for path in engine.map(Order(work), numbers):
        frame = pl.read_parquet(path, glob=False)
        users = frame["user"].to_numpy()
        lengths += np.bincount(users, minlength=num_users)
        touched[frame["item"].to_numpy()] = True
        if before is not None:
            refuse_no_times(frame)
            for sums, moment in zip(before, moments, strict=True):
                sums += np.bincount(users[frame["time"].to_numpy() < moment], minlength=num_users)
        if "time" in frame.columns and len(frame):
            spans += [frame["time"].min(), frame["time"].max()]
    return Totals(lengths, before, int(touched.sum()), (min(spans), max(spans)) if spans else None)


def ordered_groups(work: Path, numbers: Sequence[int], offsets: np.ndarray) -> Iterator[pl.DataFrame]:
    """The interactions of all parts by user, in frames of ``ROW_GROUP`` rows."""
    parts = pl.scan_parquet([named(work, "ordered", number) for number in numbers], glob=False)
    step = ROW_GROUP * TOGETHER
    for start in range(0, int(offsets[-1]), step):
        end = min(start + step, int(offsets[-1]))
        first, last = np.searchsorted(offsets, [start, end - 1], side="right") - 1
        wanted = parts.filter(pl.col("user").is_between(int(first), int(last))).collect().sort("user", "order")
        frame = wanted.select(interaction_columns(wanted)).slice(start - int(offsets[first]), end - start)
        yield from (frame.slice(place, ROW_GROUP) for place in range(0, end - start, ROW_GROUP))


def draw_from_disk(
    folder: Path, work: Path, split: Split, offsets: np.ndarray, num_items: int, seed: int
) -> dict[str, Targets]:
    """As ``preparation.draw_targets``, with interactions read for some rows at a time, and candidates in files."""
    interactions = pl.scan_parquet(folder / "interactions.parquet", glob=False).select("user", "item")
    found = {}
    for name in SPLITS:
        users, positions = split.targets[name]
        items = np.zeros(len(users), np.int32)
        lists = {protocol: on_disk(work / f"{name}-{protocol}.npy", (len(users), 1 + size))
                 for protocol, size in NUM_NEGATIVES.items()}  # fmt: skip
        rngs = generators(seed, name)
        for start in range(0, len(users), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            first, last = int(users[rows][0]), int(users[rows][-1])
            begin, end = int(offsets[first]), int(offsets[last + 1])
            own = interactions.slice(begin, end - begin).collect()
            known, local = own["item"].to_numpy(), users[rows] - first
            items[rows] = known[offsets[users[rows]] - begin + positions[rows]]
            seen = UserItems(own["user"].to_numpy() - first, known, last - first + 1, num_items)
            for protocol, size in NUM_NEGATIVES.items():
                lists[protocol][rows] = draw_candidates(local, items[rows], seen, size, rngs[size])
        found[name] = Targets(users, positions, items, lists)
    return found


def on_disk(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """An int32 array that lies in a file; an empty one lies in memory."""
    if 0 in shape:
        return np.zeros(shape, np.int32)
    return np.lib.format.open_memmap(path, "w+", np.int32, shape)
