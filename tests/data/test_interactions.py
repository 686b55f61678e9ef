"""Every row is kept in its place or rejected by a reason, and written down."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrec.data import PrepareConfig, load_dataset, prepare
from allrec.data.config import PrepareConfig as Config
from allrec.data.count_filter import ITEM_BELOW, USER_BELOW, count_filter
from allrec.data.preparation import number_anew
from allrec.errors import InputWarning

GOOD = [f"a,{item},{time},5,{time}" for time, item in enumerate("xyz")]
HEADER = "user_id,item_id,timestamp,rating,position"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.*could not be read")
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",x,1,5,1", "missing user id"),
        ("  ,x,1,5,1", "missing user id"),
        ("b,,1,5,1", "missing item id"),
        ("b", "missing item id"),
        ("b\x01,x,1,5,1", "bad user id"),
        (f"b,{'x' * 1001},1,5,1", "bad item id"),
        ("b,x,,5,1", "bad timestamp"),
        ("b,x,soon,5,1", "bad timestamp"),
        ("b,x,-5,5,1", "bad timestamp"),
        ("b,x,nan,5,1", "bad timestamp"),
        ("b,x,1e300,5,1", "bad timestamp"),
        ("b,x,1,good,1", "bad rating"),
        ("b,x,1,inf,1", "bad rating"),
        ("b,x,1,5,", "bad position"),
        ("b,x,1,5,1.5", "bad position"),
        ("b,x,1,,1", "missing rating"),
        ("b,x,1,2.9,1", "below minimum rating"),
    ],
)
def test_rejected_by_reason(tmp_path: Path, make_source: Callable[..., Path], row: str, reason: str) -> None:
    source = make_source(rows=[GOOD[0], row, *GOOD[1:]], header=HEADER)
    dataset = prepare(source, tmp_path / "out", config=PrepareConfig(min_rating=3, max_rejected=0.25))
    rejected = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [(line["table"], line["row"], line["reason"]) for line in rejected] == [("interactions", 2, reason)]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["rejected"] == {reason: 1}
    assert dataset.counts["interactions"] == 3
    assert dataset.counts["rejected_rows"] == 1


def test_rejected_row_keeps_its_values(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    config = PrepareConfig(max_rejected=0.25)
    with pytest.warns(InputWarning, match="1 bad timestamp, such as 'soon' in line 5"):
        prepare(make_source(rows=[*GOOD, "b,x,soon,5,1"], header=HEADER), tmp_path / "out", config=config)
    (line,) = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert (line["user_id"], line["item_id"], line["raw_timestamp"], line["raw_rating"]) == ("b", "x", "soon", "5")


def test_missing_rating_is_legal_without_a_minimum(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    dataset = prepare(make_source(rows=[*GOOD, "b,x,1,,1"], header=HEADER), tmp_path / "out")
    assert dataset.num_interactions == 4
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet")["rating"].to_list() == [5.0, 5.0, 5.0, None]


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_item_without_id(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    source = make_source(items=[{"item_id": "x", "title": "Kettle"}, {"item_id": " ", "title": "Nobody's"}])
    with pytest.warns(
        InputWarning, match=r"1 of 2 rows \(50.0%\) could not be read \(1 item without id, first in line 2"
    ):
        prepare(source, tmp_path / "out", config=PrepareConfig(max_rejected=0.5))
    (line,) = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert (line["table"], line["row"], line["reason"], line["title"]) == ("items", 2, "item without id", "Nobody's")


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        (["1700000000", "1700000001", "1700000002"], 1_700_000_000),
        (["1700000000500", "1700000000600", "1700000000700"], 1_700_000_000),
        (["1700000000500000", "1700000000600000", "1700000000700000"], 1_700_000_000),
        (["1700000000500000000", "1700000000600000000", "1700000000700000000"], 1_700_000_000),
        (["1.7e9", "1700000001.0", "1700000002.5"], 1_700_000_000),
        (["1970-01-02", "1970-01-03", "1970-01-04"], 86_400),
        (["1970-01-02 00:00:07", "1970-01-02T00:00:08Z", "1970-01-02 00:00:09.25"], 86_407),
        (["1970-01-02 00:01", "1970-01-02T00:02", "1970-01-02 00:03+00:00"], 86_460),
    ],
)
def test_timestamps(tmp_path: Path, make_source: Callable[..., Path], texts: list[str], seconds: int) -> None:
    rows = [f"a,{item},{text}" for item, text in zip("zyx", reversed(texts), strict=True)]
    dataset = prepare(make_source(rows=rows, header="user_id,item_id,timestamp"), tmp_path / "out")
    assert [dataset.item_ids[item] for item in dataset.history(0)] == ["x", "y", "z"]
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet")["timestamp"][0] == seconds


def test_ties_keep_the_sources_order_and_repeats_stay(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    rows = ["a,z,5", "b,x,1", "a,x,5", "a,x,5", "a,y,1", "a,z,5"]
    dataset = prepare(make_source(rows=rows, header="user_id,item_id,timestamp"), tmp_path / "out")
    assert dataset.user_ids == ["a", "b"]
    assert [dataset.item_ids[item] for item in dataset.history(0)] == ["y", "z", "x", "x", "z"]
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet")["order"].to_list() == [0, 1, 2, 3, 4, 0]


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_unlisted_items_are_kept_without_text(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    dataset = prepare(make_source(rows=["a,q,1", "a,p,2", "a,x,3"], header="user_id,item_id,time"), tmp_path / "out")
    assert dataset.item_ids == ["x", "y", "z", "w", "q", "p"]
    assert dataset.texts[4:] == [None, None]
    assert dataset.counts["unlisted_items"] == 2


@pytest.mark.parametrize(("choice", "item_ids"), [("all", ["x", "y", "z", "w"]), ("interacted", ["x", "y", "z"])])
def test_catalogue_by_option(
    tmp_path: Path, make_source: Callable[..., Path], choice: str, item_ids: list[str]
) -> None:
    dataset = prepare(make_source(), tmp_path / "out", config=PrepareConfig(items=choice))
    assert dataset.item_ids == item_ids


def filter_by_counting(pairs: list[tuple[int, int]], minimum: int, is_iterated: bool) -> list[int]:
    """The oracle: plain Python over lists; the indices that are kept."""
    kept = list(range(len(pairs)))
    while True:
        users, items = [pairs[place][0] for place in kept], [pairs[place][1] for place in kept]
        left = [p for p in kept if users.count(pairs[p][0]) >= minimum and items.count(pairs[p][1]) >= minimum]
        if len(left) == len(kept) or not is_iterated:
            return left
        kept = left


@pytest.mark.parametrize("count", ["k-core", "one-pass"])
@pytest.mark.parametrize("seed", range(5))
def test_count_filters_equal_counting(count: str, seed: int) -> None:
    pairs = np.random.default_rng(seed).integers(12, size=(60, 2))
    config = Config(count_filter=count, min_user_count=5, min_item_count=5)
    kept = np.flatnonzero(count_filter(pairs[:, 0], pairs[:, 1], config) == 0)
    expected = filter_by_counting([tuple(pair) for pair in pairs.tolist()], 5, count == "k-core")
    assert kept.tolist() == expected


def test_one_pass_leaves_what_k_core_takes_further() -> None:
    users, items = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 0])
    both = {"min_user_count": 2, "min_item_count": 2}
    once = count_filter(users, items, Config(count_filter="one-pass", **both))
    assert once.tolist() == [0, 0, ITEM_BELOW, 0, 0, USER_BELOW]
    strict = {"min_user_count": 3, "min_item_count": 2}
    core = count_filter(users, items, Config(count_filter="k-core", **strict))
    assert (core > 0).all()


def rated(ratings: list[tuple[str, str, int]]) -> list[str]:
    return [f"{user},{item},{time},{rating}" for time, (user, item, rating) in enumerate(ratings)]


FEW = rated([("a", "x", 5), ("a", "y", 5), ("b", "x", 5), ("b", "y", 5), ("a", "x", 1), ("c", "x", 5), ("c", "y", 1)])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        # c has one interaction of at least 3; a's low rating does not count and yet stays, as in the public code
        ("one-pass", [(6, "user below minimum count"), (7, "user below minimum count")]),
        ("k-core", [(5, "below minimum rating"), (6, "user below minimum count"), (7, "below minimum rating")]),
    ],
)
def test_counts_are_taken_after_the_rating_filter(
    tmp_path: Path, make_source: Callable[..., Path], count: str, expected: list[tuple[int, str]]
) -> None:
    config = PrepareConfig(min_rating=3, count_filter=count, min_user_count=2, min_item_count=2)
    dataset = prepare(make_source(rows=FEW), tmp_path / "out", config=config)
    rejected = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [(line["row"], line["reason"]) for line in rejected] == expected
    assert dataset.user_ids == ["a", "b"]
    assert dataset.item_ids == ["x", "y"]  # with a count filter the catalogue is what was interacted with


def test_minimum_rating_itself_is_kept(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    rows = ["a,x,1,3", "a,y,2,2.99", "a,z,3,3.0"]
    dataset = prepare(make_source(rows=rows), tmp_path / "out", config=PrepareConfig(min_rating=3))
    assert [dataset.item_ids[item] for item in dataset.history(0)] == ["x", "z"]


def test_id_maps_are_stored_as_loaded(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    dataset = prepare(make_source(), tmp_path / "out")
    again = load_dataset(tmp_path / "out")
    assert (again.user_ids, again.item_ids, again.sha256) == (dataset.user_ids, dataset.item_ids, dataset.sha256)


@pytest.mark.filterwarnings("ignore:.*could not be read")
def test_numbers_of_a_parquet_table_are_what_was_written(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "user_id": ["a"] * 4,
            "item_id": ["x", "y", "z", "w"],
            "timestamp": [3, 2, None, 1],
            "rating": pl.Series([4.1, 4.0, 5.0, float("nan")], dtype=pl.Float32),
        }
    )
    table.write_parquet(tmp_path / "interactions.parquet")
    dataset = prepare(
        tmp_path / "interactions.parquet", tmp_path / "out", config=PrepareConfig(min_rating=4.1, max_rejected=0.5)
    )
    # As a double, the short float nearest to 4.1 lies below it.
    assert dataset.item_ids == ["x"]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["reason"], row["raw_timestamp"]) for row in rejected] == [
        ("below minimum rating", "2"),
        ("bad timestamp", None),
        ("bad rating", "1"),
    ]


@given(st.lists(st.integers(0, 9), max_size=20))
def test_numbers_without_gaps(numbers: list[int]) -> None:
    kept, places = number_anew(np.array(numbers, np.int32), 10)
    assert kept.tolist() == sorted(set(numbers))
    assert kept[places].tolist() == numbers
    assert places.dtype == np.int32
