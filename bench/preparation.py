"""Preparing interactions: the package against polars alone doing the same sorts.

Polars alone numbers users and items, sorts by user and time and writes the result: no checks, no split, no candidates,
no hashes. Each side runs in a process of its own, whose peak memory is shown. The simulated interactions have an
average of ten a user and ten an item.

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
    frame = pl.read_parquet(source)
    numbered = frame.with_columns(
        pl.col(name).cast(pl.Categorical).to_physical().alias(name) for name in ("user_id", "item_id")
    )
    numbered.sort("user_id", "timestamp", maintain_order=True).write_parquet(out)
    return CLOCKS[clock]() - begun


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
