"""Interactions in parts give the data set of one part, to the byte."""

import json

import numpy as np
import polars as pl
import pytest

from allrec.data import PrepareConfig, partitioned, prepare, writing
from allrec.data.dataset import FILES
from allrec.errors import InputError
from allrec.files import read_json
from allrec.parallel import Processes

BOTH = {"min_user_count": 4, "min_item_count": 4}


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Row groups, reads and drawn chunks so small that a small source has many of each."""
    for module in (writing, partitioned):
        monkeypatch.setattr(module, "ROW_GROUP", 64)
    monkeypatch.setattr(partitioned, "TOGETHER", 3)
    monkeypatch.setattr(partitioned, "CHUNK_ROWS", 16)
    monkeypatch.setattr("allrec.data.negatives.CHUNK_ROWS", 16)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """700 interactions of 90 users, with ties, repeats, ratings, bad rows, and rows of a user far from each other."""
    rng = np.random.default_rng(5)
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": int(time), "rating": float(rating)}
        for user, item, time, rating in zip(
            rng.integers(90, size=700), rng.zipf(1.3, 700) % 50, rng.integers(1_500_000_000, 1_500_000_100, 700),
            rng.integers(1, 6, 700), strict=True,
        )
    ]  # fmt: skip
    rows[3]["user_id"], rows[10]["timestamp"], rows[400]["item_id"] = "", "yesterday", None
    folder = tmp_path_factory.mktemp("source")
    (folder / "interactions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": f"i{item}", "title": f"thing {item}"}) + "\n" for item in range(60))
    )
    return folder


def content(folder):
    manifest = read_json(folder / "dataset.json")
    del manifest["seconds"]
    return {name: (folder / name).read_bytes() for name in FILES} | {"manifest": manifest}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"count_filter": "k-core", **BOTH},
        {"count_filter": "one-pass", "min_rating": 3, **BOTH},
        {"count_filter": "k-core", "min_rating": 2, "items": "all", **BOTH},
        {"split": "global-time", "valid_from": 1_500_000_060, "test_from": 1_500_000_080},
    ],
    ids=["all", "k-core", "one-pass", "rated", "global-time"],
)
@pytest.mark.parametrize("partitions", [2, 7])
def test_the_bytes_are_those_of_one_part(source, tmp_path, options, partitions):
    config = PrepareConfig(name="x", seed=3, **options)
    whole = prepare(source, tmp_path / "whole", config=config)
    parted = prepare(source, tmp_path / "parted", config=config, partitions=partitions)
    assert content(tmp_path / "whole") == content(tmp_path / "parted")
    assert parted.sha256 == whole.sha256
    assert np.array_equal(parted.items, whole.items)
    assert len(list((tmp_path / "parted").iterdir())) == len(FILES) + 1
    groups = pl.scan_parquet(tmp_path / "parted" / "splits.parquet").select(pl.len()).collect().item() / 64
    assert groups > 1
    assert len(whole.targets["test"]) > 2 * 16


def test_parts_may_be_more_than_users_and_a_source_may_have_no_times(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\n" + "".join(f"u{n % 3},i{n % 7}\n" for n in range(30)))
    for name, partitions in (("whole", 1), ("parted", 40)):
        prepare(tmp_path / "log.csv", tmp_path / name, config=PrepareConfig(name="x"), partitions=partitions)
    assert content(tmp_path / "whole") == content(tmp_path / "parted")


def test_items_that_no_table_lists_are_numbered_as_they_first_occur_in_any_part(tmp_path):
    rng = np.random.default_rng(0)
    rows = "".join(
        f"u{user},i{item}\n" for user, item in zip(rng.integers(20, size=90), rng.integers(40, size=90), strict=True)
    )
    (tmp_path / "log.csv").write_text("user_id,item_id\n" + rows)
    for name, partitions in (("whole", 1), ("parted", 3)):
        prepare(tmp_path / "log.csv", tmp_path / name, config=PrepareConfig(name="x"), partitions=partitions)
    assert content(tmp_path / "whole") == content(tmp_path / "parted")


def test_processes_give_the_same_bytes(source, tmp_path):
    config = PrepareConfig(name="x", count_filter="k-core", **BOTH)
    prepare(source, tmp_path / "here", config=config, partitions=3)
    prepare(source, tmp_path / "processes", config=config, partitions=3, engine=Processes(2))
    assert content(tmp_path / "here") == content(tmp_path / "processes")


@pytest.mark.filterwarnings("ignore::allrec.errors.InputWarning")
@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("user_id,item_id\n,i1\n", {"max_rejected": 1}),
        ("user_id,item_id\nu1,i1\nu2,i2\n", {"count_filter": "k-core"}),
        ("user_id,item_id\nu1,i1\nu1,i2\n", {"split": "global-time", "valid_from": 1, "test_from": 2}),
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(tmp_path, text, options):
    (tmp_path / "log.csv").write_text(text)
    said = []
    for partitions in (1, 2):
        with pytest.raises(InputError) as error:
            prepare(tmp_path / "log.csv", tmp_path / "out", config=PrepareConfig(**options), partitions=partitions)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert not (tmp_path / "out").exists()


def test_the_number_of_parts_is_one_at_least(tmp_path):
    with pytest.raises(InputError, match="got 0 partitions"):
        prepare(tmp_path, tmp_path / "out", partitions=0)
