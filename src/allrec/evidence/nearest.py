"""The items nearest to a query: by a pass over all of them, or in a large catalogue by an index of FAISS."""

from importlib.util import find_spec
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec.base import Config, InputError
from allrec.evidence.search import CELLS, scan

SAMPLED = 1 << 14
"""Items at least that an index estimates normalisers from, evenly spread over the catalogue."""
SURE = 100
"""Nearest items that count in an estimated normaliser as they are."""
LISTS = 4
"""An index parts its items into so many times the root of their number."""
TRAINED_ON, ROUNDS = 40, 8
"""Items of each part, and rounds, that the parts are found by."""

Nearest = tuple[Int64[ndarray, "rows depth"], Float[Tensor, "rows"]]
"""The nearest items of each row, best first, -1 where there are none; and the normaliser of a softmax over items."""


class SearchConfig(Config):
    """How the nearest items are found."""

    kind: Literal["auto", "exact", "faiss"] = Field(
        "auto", description="All items, an index of FAISS, or that index where it pays and is installed."
    )
    faiss_from: int = Field(100_000, ge=1, description="Items from which auto takes the index, for many queries.")
    faiss_queries: int = Field(8_192, ge=1, description="Queries of a task from which auto builds it.")
    probes: int = Field(64, ge=1, description="Parts of the index that a query looks into.")


class FaissSearch:
    """An inverted file: items are parted by k-means, and a query looks into the parts nearest to it.

    The normaliser is the sum over the nearest items and an estimate for all others from a sample. The same items give
    the same index, whose training is seeded.

    Args:
        items: embeddings.
        probes: parts that a query looks into.

    Source: Jégou et al., TPAMI 2011, without compression.
    """

    def __init__(self, items: Float[Tensor, "items dim"], probes: int) -> None:
        import faiss

        vectors = np.ascontiguousarray(items.numpy(), dtype=np.float32)
        num_lists = max(1, min(int(LISTS * len(items) ** 0.5), len(items) // TRAINED_ON))
        self.items = items
        self.index: Any = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT
        )
        self.index.cp.max_points_per_centroid, self.index.cp.niter = TRAINED_ON, ROUNDS
        self.index.train(vectors)
        self.index.add(vectors)
        self.index.nprobe = min(probes, num_lists)

    def nearest(self, queries: Float[Tensor, "rows dim"], depth: int, num_trained: int) -> Nearest:
        """See ``scan``."""
        import faiss

        # Its own threads are as many as torch's, which are few where parts of a task go side by side.
        faiss.omp_set_num_threads(torch.get_num_threads())
        wanted = min(max(depth, SURE), len(self.items))
        scores, items = self.index.search(np.ascontiguousarray(queries.numpy(), dtype=np.float32), wanted)
        sure = torch.from_numpy(items[:, :SURE])
        normalisers = self._normalisers(queries, sure, torch.from_numpy(scores[:, :SURE]), num_trained)
        items[~queries.any(dim=1).numpy()] = -1
        return items[:, :depth].astype(np.int64), normalisers

    def _normalisers(
        self,
        queries: Float[Tensor, "rows dim"],
        sure: Int64[Tensor, "rows sure"],
        scores: Float[Tensor, "rows sure"],
        num_trained: int,
    ) -> Float[Tensor, "rows"]:
        if num_trained == 0:
            return torch.full((len(queries),), -torch.inf)
        stride = max(1, num_trained // SAMPLED)
        sample = self.items[:num_trained:stride]
        counts = (sure >= 0) & (sure < num_trained)
        total = scores.masked_fill(~counts, -torch.inf).logsumexp(dim=1)
        for rows in torch.split(torch.arange(len(queries)), max(1, CELLS // len(sample))):
            others = queries[rows] @ sample.T
            drawn_rows, places = (counts[rows] & (sure[rows] % stride == 0)).nonzero(as_tuple=True)
            others[drawn_rows, sure[rows][drawn_rows, places] // stride] = -torch.inf
            num_drawn = len(sample) - torch.bincount(drawn_rows, minlength=len(rows))
            share = (num_trained - counts[rows].sum(dim=1)).clamp(min=1) / num_drawn.clamp(min=1)
            total[rows] = torch.logaddexp(total[rows], others.logsumexp(dim=1) + share.log())
        return total


class Search:
    """Finds the items whose dot product with a query is largest.

    Which way depends on the recipe, on the catalogue and on how much a task asks, never on what was asked before.

    Args:
        items: embeddings.
        config: which way.

    Raises:
        InputError: FAISS is asked for and not installed.
    """

    def __init__(self, items: Float[Tensor, "items dim"], config: SearchConfig) -> None:
        is_installed = find_spec("faiss") is not None
        if config.kind == "faiss" and not is_installed:
            raise InputError(
                "fusion.evidence.search.kind is faiss, which is not installed. Install it: pip install "
                "'allrec[faiss]'; or search without it: --set fusion.evidence.search.kind=exact"
            )
        self.items, self.config, self.is_installed = items, config, is_installed
        self.index: FaissSearch | None = None
        self.lock = Lock()

    def uses_index(self, num_queries: int) -> bool:
        """Whether a task of so many queries looks into the index."""
        pays = len(self.items) >= self.config.faiss_from and num_queries >= self.config.faiss_queries
        return self.config.kind == "faiss" or (self.config.kind == "auto" and self.is_installed and pays)

    def nearest(
        self, queries: Float[Tensor, "rows dim"], depth: int, num_trained: int, num_queries: int | None = None
    ) -> Nearest:
        """See ``scan``; ``num_queries`` is how many the task has in all, those given where None."""
        if not self.uses_index(len(queries) if num_queries is None else num_queries):
            return scan(queries, self.items, depth, num_trained)
        return self._built().nearest(queries, depth, num_trained)

    def _built(self) -> FaissSearch:
        with self.lock:
            if self.index is None:
                self.index = FaissSearch(self.items, self.config.probes)
        return self.index
