"""The nearest items by an index: against a pass over all of them."""

import numpy as np
import pytest
import torch

from allrec.errors import InputError
from allrec.hybrid import retrieval as nearest
from allrec.hybrid.retrieval import FaissSearch, Search, SearchConfig, scan

NUM_ITEMS = 900


def tables(num_queries=40):
    """Items in clusters, as embeddings are, and queries near them; one query is zeros."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 12, generator=generator)
    items = centres.repeat(NUM_ITEMS // 30, 1) + 0.5 * torch.randn(NUM_ITEMS, 12, generator=generator)
    queries = centres[torch.arange(num_queries) % 30] + 0.5 * torch.randn(num_queries, 12, generator=generator)
    queries[3] = 0
    return queries, items


@pytest.fixture(scope="module")
def faiss():
    return pytest.importorskip("faiss", reason="the extra faiss is not installed")


@pytest.mark.parametrize("num_trained", [NUM_ITEMS, 700, 0])
@pytest.mark.parametrize("depth", [0, 7, 150])
def test_an_index_that_looks_everywhere_gives_what_a_pass_gives(faiss, depth, num_trained):
    queries, items = tables()
    found, normalisers = FaissSearch(items, NUM_ITEMS).nearest(queries, depth, num_trained)
    expected, exact = scan(queries, items, depth, num_trained)
    np.testing.assert_array_equal(found, expected)
    torch.testing.assert_close(normalisers, exact, rtol=1e-5, atol=1e-4)


def test_few_probes_find_nearly_all_and_again_the_same(faiss):
    queries, items = tables()
    found, again = (FaissSearch(items, 8).nearest(queries, 20, NUM_ITEMS) for _ in range(2))
    np.testing.assert_array_equal(found[0], again[0])
    assert torch.equal(found[1], again[1])
    expected, _ = scan(queries, items, 20, 0)
    recall = np.mean(
        [len(set(one) & set(other)) / len(set(other)) for one, other in zip(found[0], expected, strict=True)]
    )
    assert recall > 0.8


@pytest.mark.parametrize("num_trained", [NUM_ITEMS, 700])
def test_a_normaliser_is_estimated_from_a_sample_whatever_the_depth(faiss, monkeypatch, num_trained):
    queries, items = tables()
    monkeypatch.setattr(nearest, "SAMPLED", 200)
    monkeypatch.setattr(nearest, "CELLS", 1000)
    index = FaissSearch(items, NUM_ITEMS)
    _, estimated = index.nearest(queries, 5, num_trained)
    exact = (queries @ items[:num_trained].T).logsumexp(dim=1)
    assert (estimated - exact).abs().max() < 0.05
    assert not torch.equal(estimated, exact)
    torch.testing.assert_close(index.nearest(queries, 150, num_trained)[1], estimated)


def test_auto_takes_the_index_for_large_catalogues_and_many_queries(faiss):
    _, items = tables()
    auto = Search(items, SearchConfig(faiss_from=NUM_ITEMS, faiss_queries=50))
    assert [auto.uses_index(num_queries) for num_queries in (1, 49, 50)] == [False, False, True]
    assert not Search(items, SearchConfig(faiss_from=NUM_ITEMS + 1, faiss_queries=1)).uses_index(50)
    assert not Search(items, SearchConfig(kind="exact", faiss_from=1, faiss_queries=1)).uses_index(50)
    assert Search(items, SearchConfig(kind="faiss")).uses_index(1)


def test_a_part_of_a_large_task_is_searched_as_the_task_is(faiss):
    queries, items = tables()
    auto = Search(items, SearchConfig(faiss_from=1, faiss_queries=1000, probes=1))
    exact, by_index = auto.nearest(queries, 50, 0), auto.nearest(queries, 50, 0, num_queries=1000)
    np.testing.assert_array_equal(exact[0], scan(queries, items, 50, 0)[0])
    np.testing.assert_array_equal(by_index[0], FaissSearch(items, 1).nearest(queries, 50, 0)[0])
    assert not np.array_equal(exact[0], by_index[0])


def test_without_faiss_auto_is_exact_and_asking_for_it_is_refused(monkeypatch):
    monkeypatch.setattr(nearest, "find_spec", lambda name: None)
    _, items = tables()
    assert not Search(items, SearchConfig(faiss_from=1, faiss_queries=1)).uses_index(50)
    with pytest.raises(InputError, match=r"kind is faiss, which is not installed.*pip install 'allrec\[faiss\]'"):
        Search(items, SearchConfig(kind="faiss"))


def test_a_search_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"SearchConfig\.kind"):
        SearchConfig(kind="hnsw")
