"""An index that is built in shards: the same as one that is built whole, whoever sorts the shards in."""

import pytest
import torch

from allrec.files import load_tensors
from allrec.hybrid import index as module
from allrec.hybrid.index import build_index, read_index
from allrec.hybrid.retrieval import FaissSearch
from allrec.parallel import Processes

faiss = pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def items():
    return torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))


def test_neighbours_are_those_of_the_index_that_was_built_whole(items, tmp_path):
    location = build_index(items, tmp_path, engine=Processes(2), items_a_shard=700)
    whole, merged = FaissSearch(items, 8), FaissSearch(items, 8, read_index(location))
    queries = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    expected, got = (search.nearest(queries, 20, 3000) for search in (whole, merged))
    assert (got[0] == expected[0]).all()
    assert torch.equal(got[1], expected[1])
    assert merged.index.ntotal == 3000
    # More probes find more, so that the partition is at work.
    assert not (FaissSearch(items, 1, read_index(location)).nearest(queries, 20, 0)[0] == expected[0]).all()


def test_the_bytes_do_not_depend_on_shards_nor_engine_and_the_name_is_the_items(items, tmp_path):
    made = [
        build_index(items, tmp_path / "a", items_a_shard=3000),
        build_index(items, tmp_path / "b", items_a_shard=1000, engine=Processes(1)),
    ]
    first, second = (
        (tmp_path / folder / location.rsplit("/", 1)[1]) for folder, location in zip("ab", made, strict=True)
    )
    assert first.read_bytes() == second.read_bytes()
    assert first.name == second.name
    assert [path.name for path in (tmp_path / "b").iterdir()] == [second.name]
    other = build_index(items + 1, tmp_path / "a")
    assert other.rsplit("/", 1)[1] != first.name


def test_what_is_built_is_not_built_again_and_what_was_stopped_goes_on(items, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(module, "load_tensors", lambda path: (read.append(path.name), load_tensors(path))[1])
    make = module.IndexShard.make

    def stopped(self, shard, path):
        if shard.location.endswith("000002.safetensors"):
            raise KeyboardInterrupt
        make(self, shard, path)

    with monkeypatch.context() as patched:
        patched.setattr(module.IndexShard, "make", stopped)
        with pytest.raises(KeyboardInterrupt):
            build_index(items, tmp_path, items_a_shard=1000)
    assert not list(tmp_path.glob("*.faiss"))
    build_index(items, tmp_path, items_a_shard=1000)
    assert read == [f"{number:06d}.safetensors" for number in range(3)]
    build_index(items, tmp_path, items_a_shard=1000)
    assert len(read) == 3
