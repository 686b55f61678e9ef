"""What preparation writes: the Parquet files of a data set, rejected rows, and dataset.json."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from allrec.data.config import PrepareConfig
from allrec.data.dataset import FILES, FORMAT_VERSION, MANIFEST, SPLITS, Tables, Targets
from allrec.data.interactions import count_reasons
from allrec.data.items import Catalogue
from allrec.data.negatives import NUM_NEGATIVES
from allrec.data.reading import PARSED
from allrec.data.sources.files import ROW
from allrec.data.sources.source import Source
from allrec.data.split import Split
from allrec.data.time_forms import SECOND
from allrec.data.times import Times
from allrec.files import read_json, sha256_file, write_json

ROW_GROUP = 1 << 17
PACKING = 1
"""Level of compression: the usual 3 packs candidates, which are random numbers, no better in four times the time."""


def interaction_columns(frame: pl.DataFrame) -> list[pl.Expr]:
    """What ``interactions.parquet`` has of ordered interactions."""
    columns = [pl.col("user"), pl.col("item"), pl.col("order")]
    if "time" in frame.columns:
        columns.append((pl.col("time") // SECOND).alias("timestamp"))
    if "rating" in frame.columns:
        columns.append(pl.col("rating"))
    return columns


def write_tables(folder: Path, tables: Tables) -> None:
    """Writes the Parquet files."""
    frames = {"interactions": tables.interactions, "items": tables.items, "users": tables.users}
    for name, table in frames.items():
        table.write_parquet(folder / f"{name}.parquet", row_group_size=ROW_GROUP, compression_level=PACKING)
    write_splits(folder, tables.targets)


def write_splits(folder: Path, targets: Mapping[str, Targets]) -> None:
    """Writes ``splits.parquet``, a row group at a time: the largest table of a data set."""
    num_rows = sum(map(len, targets.values()))
    groups = (
        split_rows(targets, start, min(start + ROW_GROUP, num_rows)) for start in range(0, max(1, num_rows), ROW_GROUP)
    )
    sink(folder / "splits.parquet", groups)


def sink(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    """Writes frames, one at least and each of ``ROW_GROUP`` rows but for the last, as one Parquet file."""
    first = next(frames)

    def read(columns: Any, predicate: Any, num_rows: Any, batch_size: Any) -> Iterator[pl.DataFrame]:
        yield first
        yield from frames

    source = register_io_source(read, schema=first.schema)
    source.sink_parquet(path, row_group_size=ROW_GROUP, compression_level=PACKING, maintain_order=True)


def split_rows(targets: Mapping[str, Targets], start: int, end: int) -> pl.DataFrame:
    """Rows of ``splits.parquet``: split, user, position, item, and a list of candidates a protocol.

    Lists are laid out anew, as the pages of a file depend on the memory that a list is a part of.
    """
    names, parts = list[str](), list[dict[str, np.ndarray]]()
    for name, one in targets.items():
        rows = slice(max(0, start), max(0, end))
        part = {"user": one.users[rows], "position": one.positions[rows], "item": one.items[rows]}
        parts.append(part | {protocol: one.candidates[protocol][rows] for protocol in NUM_NEGATIVES})
        names += [name] * len(part["user"])
        start, end = start - len(one), end - len(one)
    columns = {key: pl.Series(key, np.concatenate([part[key] for part in parts])) for key in parts[0]}
    columns |= {protocol: columns[protocol].cast(pl.List(pl.Int32)) for protocol in NUM_NEGATIVES}
    return pl.DataFrame([pl.Series("split", names, dtype=pl.String), *columns.values()])


def count(
    num_interactions: int, num_touched: int, catalogue: Catalogue, split: Split, reasons: dict[str, int]
) -> dict[str, int]:
    """The counts of dataset.json; ``num_touched`` is how many items have an interaction."""
    valid, test = (split.targets[name][0] for name in SPLITS)
    return {
        "users": len(split.train_lengths),
        "items": len(catalogue.frame),
        "interactions": num_interactions,
        "train_interactions": int(split.train_lengths.sum()),
        "evaluated_users": int(np.count_nonzero(np.bincount(np.concatenate([valid, test])))),
        "evaluated_valid": len(valid),
        "evaluated_test": len(test),
        "interacted_items": num_touched,
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


def write_rejected(folder: Path, filtered: pl.DataFrame, catalogue: Catalogue) -> dict[str, int]:
    """Writes every rejected row with its reason, in the source's order, and counts them by reason.

    Args:
        folder: holds ``PARSED``.
        filtered: source_row and reason of what the count filter rejected.
        catalogue: of which rejected items are known.
    """
    parsed = pl.scan_parquet(folder / PARSED, glob=False).drop("time", "rating", "position", strict=False)
    counted = parsed.drop("reason").join(filtered.lazy(), on=ROW).select(*parsed.collect_schema().names())
    interactions = pl.concat([parsed.filter(pl.col("reason").is_not_null()), counted]).sort(ROW)
    items = catalogue.rejected.lazy().with_columns(pl.lit("items").alias("table"))
    named = interactions.with_columns(pl.lit("interactions").alias("table"))
    rejected = pl.concat([named, items], how="diagonal").rename({ROW: "row"})
    first = pl.col("table", "row", "reason")
    rejected.select(first, pl.exclude("table", "row", "reason")).sink_ndjson(folder / "rejected.jsonl")
    return count_reasons(rejected.select("reason"))


def describe_times(span: tuple[Any, Any] | None, times: Times | None, column: str) -> dict[str, str] | None:
    """What ``dataset.json`` says of the times, of which the first and the last are given; None without any."""
    if times is None or span is None:
        return None
    moments = pl.Series(span, dtype=pl.Int64)
    first, last = moments.cast(pl.Datetime("ns")).dt.to_string("%Y-%m-%dT%H:%M:%SZ")
    return {"column": column, "form": times.form, "first": first, "last": last}
