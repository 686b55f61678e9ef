"""A data set folder: what it holds, that its bytes are determined, that it appears whole or not at all."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allrec.data import PrepareConfig, load_dataset, prepare
from allrec.data.dataset import FILES, Dataset
from allrec.data.ids import id_of
from allrec.errors import InputError
from allrec.files import sha256_file, staging

SQUARES = [{"item_id": f"i{n}", "title": f"Thing {n}"} for n in range(53)]


def test_arrays_of_a_small_data_set(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    dataset = prepare(make_source(), tmp_path / "out")
    assert dataset.user_ids == ["a", "b", "c"]
    assert dataset.items.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert dataset.offsets.tolist() == [0, 3, 3 + 4, 3 + 4 + 1]
    assert dataset.train_lengths.tolist() == [3 - 2, 4 - 2, 1]
    assert dataset.history(1).tolist() == [0, 1, 2, 0]
    assert dataset.train_history(1).tolist() == [0, 1]
    offsets, items = dataset.train_csr()
    assert (offsets.tolist(), items.tolist()) == ([0, 1, 3, 4], [0, 0, 1, 1])
    assert dataset.train_counts().tolist() == [2, 2, 0, 0]
    valid, test = dataset.targets["valid"], dataset.targets["test"]
    assert (valid.users.tolist(), valid.positions.tolist(), valid.items.tolist()) == ([0, 1], [1, 2], [1, 2])
    assert (test.users.tolist(), test.positions.tolist(), test.items.tolist()) == ([0, 1], [2, 3], [2, 0])
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions, len(test)) == (3, 4, 8, 2)


def test_candidates_of_a_small_catalogue_are_padded(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    targets = prepare(make_source(), tmp_path / "out").targets["test"]
    assert targets.candidates["paper"].shape == (2, 20)
    assert targets.candidates["sampled-99"].shape == (2, 100)
    # both users interacted with x, y, z (0, 1, 2); only w (3) is left as a negative
    assert [sorted(row) for row in targets.candidates["paper"].tolist()] == [[-1] * 18 + [2, 3], [-1] * 18 + [0, 3]]


def test_types(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    dataset = prepare(make_source(), tmp_path / "out")
    targets = dataset.targets["valid"]
    arrays = [dataset.offsets, dataset.items, dataset.train_lengths, targets.users, targets.positions, targets.items]
    assert [str(array.dtype) for array in arrays] == ["int64", "int32", "int64", "int32", "int64", "int32"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in (*arrays, targets.candidates["paper"]):
            torch.from_numpy(array)


def test_manifest(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    source = make_source()
    dataset = prepare(source, tmp_path / "out", config=PrepareConfig(name="mine", seed=7))
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["name"] == dataset.name == "mine"
    assert manifest["config"]["seed"] == 7
    assert manifest["source"]["format"] == "tables"
    assert manifest["source"]["files"]["items.jsonl"] == sha256_file(source / "items.jsonl")
    assert sorted(manifest["files"]) == sorted(FILES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "dataset.json"])
    counts = manifest["counts"]
    assert (counts["users"], counts["items"], counts["interactions"], counts["evaluated_users"]) == (3, 4, 8, 2)


def test_same_source_same_bytes(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    source = make_source(rows=[f"u{n % 97},i{n * n % 53},{n % 7},{n % 5}" for n in range(3_000)], items=SQUARES)
    first = prepare(source, tmp_path / "first", config=PrepareConfig(min_rating=1))
    script = (
        "import sys; from allrec.data import prepare, PrepareConfig;"
        "prepare(sys.argv[1], sys.argv[2], config=PrepareConfig(min_rating=1))"
    )
    environment = {**os.environ, "POLARS_MAX_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(source), str(tmp_path / "again")], check=True, env=environment)
    assert {name: sha256_file(tmp_path / "first" / name) for name in FILES} == {
        name: sha256_file(tmp_path / "again" / name) for name in FILES
    }
    assert load_dataset(tmp_path / "again").sha256 == first.sha256


def test_prepare_returns_what_is_loaded(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    prepared, loaded = prepare(make_source(), tmp_path / "out"), load_dataset(tmp_path / "out")
    for field in fields(Dataset):
        one, other = getattr(prepared, field.name), getattr(loaded, field.name)
        if field.name == "targets":
            for split, targets in other.items():
                mine = one[split]
                assert {name: lists.tolist() for name, lists in mine.candidates.items()} == {
                    name: lists.tolist() for name, lists in targets.candidates.items()
                }
                for part in ("users", "positions", "items"):
                    assert getattr(mine, part).tolist() == getattr(targets, part).tolist()
                    assert getattr(mine, part).dtype == getattr(targets, part).dtype
        elif isinstance(other, np.ndarray):
            assert one.tolist() == other.tolist()
            assert one.dtype == other.dtype
            assert one.flags.writeable
        else:
            assert one == other


def test_candidates_are_read_when_asked_for_and_once(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    targets = prepare(make_source(), tmp_path / "out").targets["valid"]
    loaded = load_dataset(tmp_path / "out").targets["valid"]
    some = loaded.take(np.array([1]))
    assert loaded.candidates["paper"] is loaded.candidates["paper"]
    assert loaded.candidates["paper"].dtype == np.int32
    assert some.candidates["paper"].tolist() == targets.candidates["paper"][[1]].tolist()
    assert list(some.candidates) == ["paper", "sampled-99"]
    assert "full" not in loaded.candidates
    prepare(make_source(), tmp_path / "out", config=PrepareConfig(seed=1))
    assert some.candidates["paper"].tolist() == targets.candidates["paper"][[1]].tolist()
    with pytest.raises(InputError, match=r"splits.parquet was removed or written anew after .* Load it again"):
        some.candidates["sampled-99"]


def test_seed_changes_candidates_alone(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    source = make_source(rows=[f"u{n % 9},i{n * n % 53},{n},5" for n in range(200)], items=SQUARES)
    hashes = []
    for seed in (0, 1):
        prepare(source, tmp_path / str(seed), config=PrepareConfig(seed=seed))
        hashes.append({name: sha256_file(tmp_path / str(seed) / name) for name in FILES})
    assert {name for name in FILES if hashes[0][name] != hashes[1][name]} == {"splits.parquet"}


def test_prepared_again_replaces_the_old_one(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    prepare(make_source(), tmp_path / "out")
    dataset = prepare(make_source(rows=["a,x,1,5"]), tmp_path / "out")
    assert dataset.num_interactions == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shop"]


def test_failure_leaves_the_old_one(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    before = prepare(make_source(), tmp_path / "out").sha256
    with pytest.raises(ValueError, match="no interaction is left"):
        prepare(make_source(rows=[]), tmp_path / "out")
    assert load_dataset(tmp_path / "out").sha256 == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shop"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    orphan, running = tmp_path / f".out.{dead.pid}.part", tmp_path / f".out.{os.getppid()}.part"
    for folder in (orphan, running):
        folder.mkdir()
    prepare(make_source(), tmp_path / "out")
    assert not orphan.exists()
    assert running.exists()


def test_staging_is_invisible_until_its_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out, lambda path: False, "thing") as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
    assert (out / "file").read_text() == "whole"


def test_progress_is_told(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    told: list[tuple[str, float]] = []
    prepare(make_source(), tmp_path / "out", on_step=lambda name, share: told.append((name, share)))
    names, shares = zip(*told, strict=True)
    assert names[0] == "reading interactions"
    assert "filtering and ordering 8 rows" in names
    assert len(names) == 5
    assert list(shares) == sorted(set(shares))
    assert (shares[0], shares[-1] < 1) == (0.0, True)


def test_global_time_split(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    rows = ["a,x,10,5", "a,y,20,5", "a,z,30,5", "b,x,10,5", "b,y,30,5", "c,x,20,5", "c,y,21,5", "d,x,30,5"]
    config = PrepareConfig(split="global-time", valid_from=20, test_from=30)
    dataset = prepare(make_source(rows=rows), tmp_path / "out", config=config)
    valid, test = dataset.targets["valid"], dataset.targets["test"]
    assert dataset.train_lengths.tolist() == [1, 1, 0, 0]
    assert (valid.users.tolist(), valid.positions.tolist()) == ([0], [1])
    assert (test.users.tolist(), test.positions.tolist()) == ([0, 1], [2, 1])
    assert dataset.counts["evaluated_users"] == 2


IDS = st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=5)


@pytest.mark.filterwarnings("ignore:.*is kept as an id")
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=30))
def test_id_maps_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    users, items = zip(*rows, strict=True)
    pl.DataFrame({"user_id": users, "item_id": items}).write_parquet(folder / "log.parquet")
    dataset = prepare(folder / "log.parquet", folder / "out")
    assert len(set(dataset.user_ids)) == dataset.num_users
    assert len(set(dataset.item_ids)) == dataset.num_items
    for user, user_id in enumerate(dataset.user_ids):
        history = [dataset.item_ids[item] for item in dataset.history(user)]
        assert history == [id_of(item, "item") for owner, item in rows if id_of(owner, "user") == user_id]


def test_nothing_of_the_future_is_in_training(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    rows = [f"u{n % 9},i{n * n % 53},{n},5" for n in range(200)]
    dataset = prepare(make_source(rows=rows, items=SQUARES), tmp_path / "out")
    for name in ("valid", "test"):
        targets = dataset.targets[name]
        assert (targets.positions >= dataset.train_lengths[targets.users]).all()
        assert (dataset.items[dataset.offsets[targets.users] + targets.positions] == targets.items).all()
        for row, user in enumerate(targets.users):
            negatives = targets.candidates["paper"][row]
            negatives = negatives[(negatives != targets.items[row]) & (negatives >= 0)]
            assert not np.isin(negatives, dataset.history(user)).any()
