"""Every published format, from small files written here, ends in the same data set."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from allrec.data import Dataset, PrepareConfig, prepare
from allrec.data.sources.registry import guess_format, known_formats
from allrec.errors import InputError, Wording

PAIRS = [("7", "11"), ("7", "12"), ("7", "13"), ("8", "12"), ("8", "11"), ("8", "13")]
TITLES = {"11": "Kettle", "12": "Skillet", "13": "Pot"}


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def delimited(rows: list[list[str]], separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


def histories(dataset: Dataset) -> dict[str, list[str]]:
    return {
        user_id: [dataset.item_ids[item] for item in dataset.history(user)]
        for user, user_id in enumerate(dataset.user_ids)
    }


EXPECTED = {"7": ["11", "12", "13"], "8": ["12", "11", "13"]}


def check(source: Path, tmp_path: Path, config: PrepareConfig | None = None, items: Path | None = None) -> Dataset:
    dataset = prepare(source, tmp_path / "out", config=config, items=items)
    assert histories(dataset) == EXPECTED
    return dataset


TABLE = [["user_id", "item_id", "timestamp"], *([user, item, str(time)] for time, (user, item) in enumerate(PAIRS))]
ITEM_TABLE = [["item_id", "title"], *([item, title] for item, title in TITLES.items())]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "tsv.gz"])
def test_delimited_tables(tmp_path: Path, ending: str) -> None:
    separator = "," if "csv" in ending else "\t"
    write(tmp_path / "s" / f"interactions.{ending}", delimited(TABLE, separator))
    write(tmp_path / "s" / f"items.{ending}", delimited(ITEM_TABLE, separator))
    assert check(tmp_path / "s", tmp_path).titles == list(TITLES.values())


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "ndjson", "json"])
def test_json_lines_tables(tmp_path: Path, ending: str) -> None:
    rows = [{"user": int(user), "item": int(item), "time": time} for time, (user, item) in enumerate(PAIRS)]
    write(tmp_path / "s" / f"interactions.{ending}", json_lines(rows) + "\n")
    write(tmp_path / "s" / f"items.{ending}", json_lines([{"id": key, "name": name} for key, name in TITLES.items()]))
    assert check(tmp_path / "s", tmp_path).titles == list(TITLES.values())


def test_parquet_tables_with_numeric_ids_and_datetimes(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    users, items = zip(*PAIRS, strict=True)
    times = pl.Series(range(6)).cast(pl.Datetime("us"))
    table = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    table.with_columns(pl.col("user_id", "item_id").cast(pl.Int64)).write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": list(TITLES), "title": list(TITLES.values())}).write_parquet(folder / "items.parquet")
    assert check(folder, tmp_path).titles == list(TITLES.values())


def test_single_file_without_items_has_no_titles(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", delimited(TABLE, ","))
    dataset = check(tmp_path / "log.csv", tmp_path)
    assert dataset.titles == [None] * 3
    assert dataset.counts["untitled_items"] == 3
    assert dataset.counts["unlisted_items"] == 3
    assert dataset.name == "log"


def test_items_given_apart(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", delimited(TABLE, ","))
    write(tmp_path / "things.csv", delimited(ITEM_TABLE, ","))
    dataset = check(tmp_path / "log.csv", tmp_path, items=tmp_path / "things.csv")
    assert dataset.titles == list(TITLES.values())


def test_columns_mapped_by_options(tmp_path: Path) -> None:
    write(tmp_path / "s" / "interactions.csv", delimited([["who", "what", "when"], *TABLE[1:]], ","))
    write(tmp_path / "s" / "items.csv", delimited([["what", "called"], *ITEM_TABLE[1:]], ","))
    config = PrepareConfig(
        columns={"user_id": "who", "item_id": "what", "timestamp": "when"},
        item_columns={"item_id": "what", "title": "called"},
    )
    assert check(tmp_path / "s", tmp_path, config).titles == list(TITLES.values())


def test_commonest_synonym_wins(tmp_path: Path) -> None:
    rows = [["date", "User-ID", "asin", "parent_asin"]]
    rows += [[str(9 - time), user, "wrong", item] for time, (user, item) in enumerate(PAIRS)]
    write(tmp_path / "log.csv", delimited(rows, ","))
    dataset = prepare(tmp_path / "log.csv", tmp_path / "out")
    assert histories(dataset) == {user: items[::-1] for user, items in EXPECTED.items()}


def test_amazon_2018(tmp_path: Path) -> None:
    reviews = [
        {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": 10**9 + time, "reviewText": "x"}
        for time, (user, item) in enumerate(PAIRS)
    ]
    metadata = [
        {"asin": item, "title": title, "description": ["First.", "Second &amp; last."], "brand": "B", "category": ["C"]}
        for item, title in [*TITLES.items(), ("14", "Never bought")]
    ]
    metadata[0]["title"] = "var aPageStart = (new Date()).getTime();"
    write(tmp_path / "s" / "Shop_5.json.gz", json_lines(reviews))
    write(tmp_path / "s" / "meta_Shop.json.gz", json_lines(metadata))
    dataset = check(tmp_path / "s" / "Shop_5.json.gz", tmp_path)
    assert dataset.titles == [None, "Skillet", "Pot"]
    assert dataset.texts[1] == "Skillet. First. Second & last."
    assert dataset.counts["items"] == 3
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items["brand"].to_list() == ["B"] * 3
    assert items["categories"].to_list() == [["C"]] * 3


def test_amazon_2023(tmp_path: Path) -> None:
    reviews = [
        {"user_id": user, "parent_asin": item, "asin": "w", "rating": 5.0, "timestamp": 1_600_000_000_000 + 250 * time}
        for time, (user, item) in enumerate(PAIRS)
    ]
    metadata = [
        {"parent_asin": item, "title": title, "description": [], "store": None} for item, title in TITLES.items()
    ]
    write(tmp_path / "s" / "Shop.jsonl", json_lines(reviews))
    write(tmp_path / "s" / "meta_Shop.jsonl", json_lines(metadata))
    dataset = check(tmp_path / "s", tmp_path)
    assert dataset.texts == list(TITLES.values())
    stored = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert stored["timestamp"].to_list() == [1_600_000_000] * 3 + [1_600_000_000, 1_600_000_001, 1_600_000_001]


MOVIES = {"11": ("Léon (1994)", "Crime|Drama"), "12": ("Heat (1995)", ""), "13": ("Up, or down (2009)", "Animation")}


def test_movielens_csv(tmp_path: Path) -> None:
    rows = [["userId", "movieId", "rating", "timestamp"]]
    rows += [[user, item, "4.5", str(time)] for time, (user, item) in enumerate(PAIRS)]
    movies = [["movieId", "title", "genres"]]
    movies += [[item, f'"{title}"', genres or "(no genres listed)"] for item, (title, genres) in MOVIES.items()]
    write(tmp_path / "ml" / "ratings.csv", delimited(rows, ","))
    write(tmp_path / "ml" / "movies.csv", delimited(movies, ","))
    check_movies(tmp_path, check(tmp_path / "ml", tmp_path))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_dat(tmp_path: Path, encoding: str) -> None:
    rows = [[user, item, "4", str(time)] for time, (user, item) in enumerate(PAIRS)]
    movies = [[item, title, genres] for item, (title, genres) in MOVIES.items()]
    write(tmp_path / "ml" / "ratings.dat", delimited(rows, "::"))
    write(tmp_path / "ml" / "movies.dat", delimited(movies, "::"), encoding)
    check_movies(tmp_path, check(tmp_path / "ml", tmp_path))


def test_movielens_100k(tmp_path: Path) -> None:
    flags = {"11": {6, 8}, "12": set(), "13": {3}}  # unknown is 0, Action 1, ..., Animation 3, Crime 6, Drama 8
    rows = [[user, item, "4", str(time)] for time, (user, item) in enumerate(PAIRS)]
    movies = [
        [item, title, "01-Jan-1995", "", "http://", *("1" if genre in flags[item] else "0" for genre in range(19))]
        for item, (title, _) in MOVIES.items()
    ]
    write(tmp_path / "ml" / "u.data", delimited(rows, "\t"))
    write(tmp_path / "ml" / "u.item", delimited(movies, "|"), "latin-1")
    check_movies(tmp_path, check(tmp_path / "ml", tmp_path))


def check_movies(tmp_path: Path, dataset: Dataset) -> None:
    assert dataset.titles == [title for title, _ in MOVIES.values()]
    assert dataset.wording == Wording(noun="movie", verb="watch", past="watched")
    genres = pl.read_parquet(tmp_path / "out" / "items.parquet")["genres"].to_list()
    assert genres == [["Crime", "Drama"], [], ["Animation"]]


def test_recbole(tmp_path: Path) -> None:
    rows = [["user_id:token", "item_id:token", "timestamp:float"]]
    rows += [[user, item, f"{time}.0"] for time, (user, item) in enumerate(PAIRS)]
    items = [["item_id:token", "movie_title:token_seq", "class:token_seq", "year:float"]]
    items += [[item, f'{title} "two"', "Action Drama", "1995"] for item, title in TITLES.items()]
    write(tmp_path / "s" / "shop.inter", delimited(rows, "\t"))
    write(tmp_path / "s" / "shop.item", delimited(items, "\t"))
    dataset = check(tmp_path / "s", tmp_path)
    assert dataset.titles == [f'{title} "two"' for title in TITLES.values()]
    stored = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert stored["class"].to_list() == [["Action", "Drama"]] * 3
    assert stored["year"].to_list() == [1995.0] * 3


def test_recbole_header_without_types(tmp_path: Path) -> None:
    write(tmp_path / "shop.inter", "user_id\titem_id\n1\t2\n")
    with pytest.raises(InputError, match=r"shop\.inter, line 1: got 'user_id', expected name:type"):
        prepare(tmp_path / "shop.inter", tmp_path / "out")


def test_sasrec_text(tmp_path: Path) -> None:
    write(tmp_path / "Shop.txt", delimited([list(pair) for pair in PAIRS], " "))
    check(tmp_path / "Shop.txt", tmp_path)


def test_position_decides_without_times(tmp_path: Path) -> None:
    rows = [["user_id", "item_id", "position"]] + [
        [user, item, str(-place)] for place, (user, item) in enumerate(PAIRS)
    ]
    write(tmp_path / "log.csv", delimited(rows, ","))
    dataset = prepare(tmp_path / "log.csv", tmp_path / "out")
    assert histories(dataset) == {user: items[::-1] for user, items in EXPECTED.items()}


def test_format_given_overrides_the_guess(tmp_path: Path) -> None:
    write(tmp_path / "ratings.csv", delimited(TABLE, ","))
    write(tmp_path / "movies.csv", delimited(ITEM_TABLE, ","))
    assert guess_format(tmp_path) == "movielens"
    dataset = check(tmp_path / "ratings.csv", tmp_path / "o", PrepareConfig(format="tables"))
    assert dataset.wording == Wording()


def test_every_format_is_known_by_one_reader() -> None:
    assert len(set(known_formats())) == len(known_formats()) == 6


def test_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", delimited(TABLE, ","))
    with pytest.raises(InputError, match="unknown format 'movilens': did you mean 'movielens'"):
        prepare(tmp_path / "log.csv", tmp_path / "out", config=PrepareConfig(format="movilens"))


def test_wording_by_option(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", delimited(TABLE, ","))
    wording = Wording(noun="book", verb="read", past="read")
    assert check(tmp_path / "log.csv", tmp_path, PrepareConfig(wording=wording)).wording == wording
