"""Preparing interactions: the package against polars alone doing the same sorts.

Polars alone reads the same file, numbers users and items in the order in which they first occur, sorts by user and time
with ties as they stood, counts every interaction's place, cuts the last two of a user off as targets, and writes the
same four Parquet tables (a test holds them to the package's), packed as fast as the package packs. It does not do what
needs no sort: no checks of rows, no candidates (118 negatives a target), no hashes. Each side runs in a process of its
own, whose peak memory is shown. The simulated interactions have an average of ten a user and ten an item.

    python bench/preparation.py --interactions 1000000
    python bench/preparation.py --interactions 10000000 --repeats 1
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from allrec.data import prepare
from measure import CLOCKS, in_own_process, options, show, start
from simulated import write_interactions

ASKED = (2.0, 1.3)


def package(source: str, out: str, clock: str) -> float:
    """Seconds that ``prepare`` takes."""
    begun = CLOCKS[clock]()
    prepare(source, out)
    return CLOCKS[clock]() - begun


def polars_alone(source: str, out: str, clock: str) -> float:
    """Seconds for the same sorts."""
    begun = CLOCKS[clock]()
    tables = sorted_tables(Path(source))
    Path(out).mkdir()
    for name, table in tables.items():
        table.write_parquet(Path(out) / f"{name}.parquet", compression_level=1)
    return CLOCKS[clock]() - begun


def sorted_tables(source: Path) -> dict[str, pl.DataFrame]:
    """The tables of a data set but for the candidates, in the quickest way that polars has: categories are numbered."""
    frame = pl.read_parquet(source)
    named = {part: frame[f"{part}_id"].cast(pl.Categorical(pl.Categories.random())) for part in ("user", "item")}
    ids = {part: column.unique(maintain_order=True).cast(pl.String) for part, column in named.items()}
    numbers = [column.to_physical().cast(pl.Int32).alias(part) for part, column in named.items()]
    numbered = pl.DataFrame([*numbers, frame["timestamp"]])
    place, length = pl.int_range(pl.len(), dtype=pl.Int32), pl.len().cast(pl.Int32)
    ordered = numbered.sort("user", "timestamp", maintain_order=True).with_columns(
        place.over("user").alias("order"), length.over("user").alias("length")
    )
    is_target = (pl.col("length") >= 3) & (pl.col("order") >= pl.col("length") - 2)
    targets = ordered.filter(is_target).select(
        pl.when(pl.col("order") == pl.col("length") - 1).then(pl.lit("test")).otherwise(pl.lit("valid")).alias("split"),
        "user", pl.col("order").alias("position"), "item",
    ).sort("split", "user", descending=[True, False])  # fmt: skip
    lengths = ordered.filter(pl.col("order") == 0)["length"]
    num_train = lengths - 2 * (lengths >= 3).cast(pl.Int32)
    return {
        "interactions": ordered.select("user", "item", "order", "timestamp"),
        "items": pl.DataFrame({"item_id": ids["item"]}),
        "users": pl.DataFrame({"user_id": ids["user"], "num_train": num_train}),
        "splits": targets,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns our time over the other's."""
    parser = options(__doc__ or "", repeats=1)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    given = start(parser, arguments)
    many = given.interactions
    times: dict[str, list[float]] = {"allrec": [], "polars": []}
    memory: dict[str, list[float]] = {"allrec": [], "polars": []}
    with TemporaryDirectory() as folder:
        source = Path(folder) / "interactions.parquet"
        write_interactions(source, many, many // 10, many // 10, given.seed)
        for repeat in range(given.repeats):
            for name, function in (("allrec", package), ("polars", polars_alone)):
                seconds, peak = in_own_process(
                    function, str(source), str(Path(folder) / f"{name}{repeat}"), given.clock
                )
                times[name].append(seconds)
                memory[name].append(peak)
    ratio = statistics.median(mine / its for mine, its in zip(*times.values(), strict=True))
    medians = [statistics.median(values) for values in (*times.values(), *memory.values())]
    header = [
        "time over polars' time",
        "at most",
        "aim",
        "allrec, s",
        "polars, s",
        "allrec, peak GiB",
        "polars, peak GiB",
    ]
    show(f"preparing {many:,} interactions", given, header, [[ratio, *ASKED, *medians]])
    return {"polars": ratio}


if __name__ == "__main__":
    main()
