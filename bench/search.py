"""The nearest items by an index of FAISS beside a pass over the catalogue: time, recall, and what building costs.

Embeddings are simulated: clusters in 32 directions and noise in all. A graph (HNSW) is built beside the product's own
inverted file where it is asked for.

    python bench/search.py --items 100000 1000000 --probes 16 64 128
    python bench/search.py --items 100000 --graph
"""

from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from allrec.hybrid.retrieval import FaissSearch, scan
from measure import CLOCKS, options, rates, ratio, show, start

DIM, DIRECTIONS, CLUSTERS = 128, 32, 1000
DEPTH = 100
QUERIES = 64


def embeddings(count: int, generator: torch.Generator, clusters: Tensor, spread: Tensor) -> Tensor:
    """Unit vectors near the centres of clusters."""
    own = clusters[torch.randint(len(clusters), (count,), generator=generator)]
    own = (own + 0.8 * torch.randn(own.shape, generator=generator)) @ spread
    return torch.nn.functional.normalize(own + 0.2 * torch.randn(own.shape, generator=generator), dim=1)


def graph(items: Tensor) -> Callable[[int], Callable[[Tensor], np.ndarray]]:
    """HNSW, whose breadth of search is to be said."""
    index: Any = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 40
    index.add(items.numpy())

    def broad(breadth: int) -> Callable[[Tensor], np.ndarray]:
        def find(queries: Tensor) -> np.ndarray:
            index.hnsw.efSearch = breadth
            return np.asarray(index.search(queries.numpy(), DEPTH)[1])

        return find

    return broad


def inverted_file(items: Tensor, num_trained: int) -> Callable[[int], Callable[[Tensor], np.ndarray]]:
    """The product's index, whose number of probes is to be said."""
    search = FaissSearch(items, 1)

    def probing(probes: int) -> Callable[[Tensor], np.ndarray]:
        def find(queries: Tensor) -> np.ndarray:
            search.index.nprobe = probes
            return search.nearest(queries, DEPTH, num_trained)[0]

        return find

    return probing


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns ratios of time by size and search."""
    parser = options(__doc__ or "")
    parser.add_argument("--items", type=int, nargs="+", default=[100_000])
    parser.add_argument("--probes", type=int, nargs="+", default=[16, 64, 128], help="and a graph's breadth, times 4")
    parser.add_argument("--graph", action="store_true", help="HNSW too")
    parser.add_argument("--normaliser", action="store_true", help="with the sum of exponentials over the catalogue")
    given = start(parser, arguments)
    faiss.omp_set_num_threads(given.threads)
    rows, ratios = [], {}
    for size in given.items:
        generator = torch.Generator().manual_seed(given.seed)
        clusters = torch.randn(CLUSTERS, DIRECTIONS, generator=generator)
        spread = torch.randn(DIRECTIONS, DIM, generator=generator) / 6
        items, queries = (embeddings(count, generator, clusters, spread) for count in (size, QUERIES))
        num_trained = size if given.normaliser else 0
        expected = scan(queries, items, DEPTH, 0)[0]
        built = {"inverted file": lambda items=items, trained=num_trained: inverted_file(items, trained)}
        if given.graph:
            built["graph"] = lambda items=items: graph(items)
        for name, build in built.items():
            begun = CLOCKS[given.clock]()
            searches = build()
            seconds = CLOCKS[given.clock]() - begun
            for effort in given.probes:
                find = searches(effort * (4 if name == "graph" else 1))

                def by_pass(repeat: int) -> float:
                    scan(queries, items, DEPTH, num_trained)  # noqa: B023
                    return QUERIES

                def by_index(repeat: int) -> float:
                    find(queries)  # noqa: B023
                    return QUERIES

                found = rates({"exact": by_pass, "faiss": by_index}, given)
                own = find(queries)
                recall = float(np.mean([len(set(one) & set(other)) for one, other in zip(own, expected, strict=True)]))
                speed = ratio(found, "faiss", "exact")
                ours, theirs = (1e3 / float(np.median(found[side])) for side in ("faiss", "exact"))
                pays = seconds / max(1e-9, (theirs - ours) / 1e3)
                rows.append([speed, size, name, effort, recall / DEPTH, ours, theirs, seconds, float(round(pays))])
                ratios[f"{size} {name} {effort}"] = speed
    header = ["ratio", "items", "index", "effort", f"recall@{DEPTH}", "ms a query", "exact, ms", "built in, s",
              "queries until it pays"]  # fmt: skip
    show("nearest items by an index against a pass over the catalogue", given, header, rows)
    return ratios


if __name__ == "__main__":
    main()
