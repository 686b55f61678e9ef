"""MovieLens (grouplens.org): ``ratings.csv``, ``ratings.dat`` and ``u.data`` with their tables of movies."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from allrec.data.sources.files import ROW, read_sample, scan_delimited, scan_lines, scan_table
from allrec.data.sources.source import MOVIE, Source, SourceOptions, as_items, existing, read_source
from allrec.errors import InputError

FORMATS = ("movielens",)
RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
RATING_FILES = ("ratings.csv", "ratings.dat", "u.data")
MOVIE_FILES = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
FIRST_GENRE_FIELD = 5


def matches(path: Path) -> str | None:
    """The format's name where the folder (or the file's) holds ratings under one of the names of a release."""
    ratings = find_ratings(path)
    is_release = ratings is not None and (ratings.name != "ratings.csv" or ratings.with_name("movies.csv").is_file())
    return "movielens" if is_release else None


def find_ratings(path: Path) -> Path | None:
    """The ratings: the file itself, or the one of the known names in a folder."""
    if path.is_file():
        return path if path.name in RATING_FILES else None
    return next((path / name for name in RATING_FILES if (path / name).is_file()), None)


def read(path: Path, options: SourceOptions, name: str = "movielens") -> Source:
    """Reads one release; genres become a list.

    Raises:
        InputError: none of the known files is there.
    """
    ratings = find_ratings(path)
    if ratings is None:
        raise InputError(
            f"{path} holds none of {', '.join(RATING_FILES)}. Give the folder that the archive unpacks to."
        )
    movies = options.items_path or existing(ratings.with_name(MOVIE_FILES[ratings.name]))

    def read_items(path: Path) -> pl.LazyFrame:
        return as_items(read_movies(path), path, options.item_columns)

    return read_source(name, scan_ratings(ratings), (ratings, movies), options.columns, read_items, MOVIE)


def scan_ratings(path: Path) -> pl.LazyFrame:
    """The ratings of any release, columns as strings."""
    if path.suffix == ".csv":
        return scan_table(path)
    if path.suffix == ".data":
        return scan_delimited(path, "\t", names=RATING_COLUMNS)
    fields = pl.col("line").str.strip_chars_end("\r").str.split_exact("::", 3)
    return (
        scan_lines(path)
        .with_columns(fields.struct.rename_fields(RATING_COLUMNS).alias("f"))
        .select(ROW, pl.col("f").struct.unnest())
    )


def read_movies(path: Path) -> pl.LazyFrame:
    """The movies of any release: item_id, title, genres (a list)."""
    if path.suffix == ".csv":
        frame = scan_table(path)
        return split_genres(frame.rename({"movieId": "item_id"}, strict=False))
    read_sample(path)
    # movies.dat and u.item are Latin-1 in the older releases, UTF-8 in the newer.
    lines = [line.rstrip("\r") for line in decode(path.read_bytes()).split("\n") if line.strip()]
    rows = [
        row for row in (split_flags(lines) if path.name == "u.item" else (line.split("::") for line in lines)) if row
    ]
    for number, row in enumerate(rows, start=1):
        if len(row) != 3:
            raise InputError(
                f"{path}, line {number}: expected id, title and genres. Is it a table of MovieLens movies?"
            )
    frame = pl.LazyFrame(rows, schema={"item_id": pl.String, "title": pl.String, "genres": pl.String}, orient="row")
    return split_genres(frame.with_row_index(ROW, offset=1))


def decode(content: bytes) -> str:
    """Text of either encoding that MovieLens was published in."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def split_flags(lines: Iterable[str]) -> Iterable[list[str]]:
    """Rows of ``u.item``: id | title | dates and address | a flag a genre -> id, title, genres joined by ``|``."""
    for line in lines:
        fields = line.split("|")
        flags = fields[FIRST_GENRE_FIELD:]
        genres = [genre for genre, flag in zip(GENRES, flags, strict=False) if flag == "1" and genre != "unknown"]
        yield [*fields[:2], "|".join(genres)]


def split_genres(frame: pl.LazyFrame) -> pl.LazyFrame:
    """``Action|Comedy`` -> [Action, Comedy]; none listed -> an empty list."""
    names = frame.collect_schema().names()
    if "genres" not in names:
        return frame
    is_listed = pl.col("genres").str.len_chars().gt(0) & (pl.col("genres") != "(no genres listed)")
    return frame.with_columns(
        pl.when(is_listed).then(pl.col("genres").str.split("|")).otherwise(pl.lit([], dtype=pl.List(pl.String)))
    )
