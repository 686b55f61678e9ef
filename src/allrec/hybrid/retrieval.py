"""Retrieval: the items of largest dot product with a query, exact or by a FAISS index; fusion of ranked lists."""

from collections.abc import Sequence
from importlib.util import find_spec
from math import log
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec.errors import Config, InputError

LIST_WEIGHT = 1 << 20
"""An item weighs this over (SMOOTHING + its 0-based rank) in a list. Integer weights, so that sums are exact."""
SMOOTHING = 20
OWN = 1 << 22
"""Weight of an own item: larger than that of any item of the lists."""
EMPTY = np.iinfo(np.int64).max
"""A key that sorts after all others."""
LOW = (np.int64(1) << 32) - 1
CELLS = 3 << 18
"""Queries times items that are scored at one time, so few that they stay in a core's cache."""
QUERIES = 32
"""Queries at least that are scored at one time: a large catalogue is read from memory once for all of them."""
LOG2_E = 1 / log(2)
CROWDED = 8
"""Rows of which more than this many times k scores reach the bound of ``top_k`` are sorted in full."""


def top_k(scores: Float[Tensor, "rows items"], k: int) -> Int64[ndarray, "rows k"]:
    """The k items of the largest scores of each row, best first; of equal ones the lower position first.

    The k-th largest of the maxima of blocks is a lower bound of the k-th largest score; only scores that reach it are
    sorted. ``torch.topk`` takes 2.5 times as long for a whole scan of 6,000 items, and defines no order of ties.

    Args:
        scores: float32, no NaN.
        k: at most the number of items counts.
    """
    values, k = scores.numpy(), min(k, scores.shape[1])
    if k == 0:
        return np.zeros((len(values), 0), np.int64)
    width = max(1, scores.shape[1] // (2 * k))
    num_blocks = scores.shape[1] // width
    # A block is every num_blocks-th item, so that the maxima of many blocks are computed at once.
    largest = scores[:, : num_blocks * width].view(len(scores), width, num_blocks).amax(dim=1).numpy()
    least = np.partition(largest, num_blocks - k, axis=1)[:, num_blocks - k]
    reached = np.flatnonzero(values >= least[:, None])
    rows = reached // scores.shape[1]
    counts = np.bincount(rows, minlength=len(values))
    crowded = np.flatnonzero(counts > CROWDED * k)
    is_sparse = (counts <= CROWDED * k)[rows]
    best = np.empty((len(values), k), np.int64)
    keys = _descending(values.reshape(-1)[reached[is_sparse]]) << 32 | reached[is_sparse] % scores.shape[1]
    ordered = _sorted_rows(rows[is_sparse], keys, len(values))[:, :k] & LOW
    best[:, : ordered.shape[1]] = ordered
    best[crowded] = np.argsort(-values[crowded], axis=1, kind="stable")[:, :k]
    return best


def reciprocal_rank_fusion(
    lists: Sequence[Int[ndarray, "rows places"]], own: Int[ndarray, "rows length"]
) -> Int64[ndarray, "rows union"]:
    """The union of ranked lists, ordered by reciprocal rank fusion after a row's own items; each item once.

    An item's weight is the sum of 1 / (20 + rank) over the lists that hold it, ranks from 0; ties go by item position.

    Args:
        lists: items of each row, best first; -1 pads.
        own: items that come before all others; -1 pads.

    Returns:
        Item positions; -1 at the end of rows that have fewer.

    Source: reciprocal rank fusion, Cormack et al., SIGIR 2009, with 20 in place of 60.
    """
    weights = [LIST_WEIGHT // (SMOOTHING + np.arange(one.shape[1], dtype=np.int64)) for one in lists]
    items = np.concatenate([own, *lists], axis=1)
    weight = np.concatenate([np.full(own.shape[1], OWN), *weights])
    keys = np.where(items < 0, EMPTY, items << 32 | weight)
    keys.sort(axis=1)
    flat = keys.reshape(-1)
    item_ids, is_item = flat >> 32, flat != EMPTY
    ends = np.flatnonzero((np.append(item_ids[1:] != item_ids[:-1], True) | _ends_row(keys.shape)) & is_item)
    sums = np.diff(np.cumsum((flat & LOW) * is_item)[ends], prepend=0)
    ordered = _sorted_rows(ends // keys.shape[1], (EMPTY >> 32) - sums << 32 | item_ids[ends], len(items))
    return np.where(ordered == EMPTY, -1, ordered & LOW)


def scan(
    queries: Float[Tensor, "rows dim"],
    items: Float[Tensor, "items dim"],
    depth: int,
    num_trained: int,
    allowed: Bool[ndarray, "rows items"] | None = None,
) -> tuple[Int64[ndarray, "rows depth"], Float[Tensor, "rows"]]:
    """One pass over the catalogue, some queries at a time.

    Args:
        queries: one a row.
        items: their dot products score.
        depth: number of best items; 0 is none.
        num_trained: number of items, the first ones, that count in the normaliser; 0 leaves it out.
        allowed: the items that may be retrieved for each row, all where None; the normaliser counts all.

    Returns:
        The best items of each row, -1 where there are no more and where the query is zeros; and the
        log of the sum of exponentials over items.
    """
    parts, normalisers = [np.zeros((0, min(depth, len(items))), np.int64)], [queries.new_zeros(0)]
    num_rows = max(QUERIES, CELLS // max(1, len(items)))
    # Newly allocated memory is paged in each time, a tenth of a scan.
    memory = queries.new_empty(min(num_rows, len(queries)), len(items))
    # In powers of two, which are faster than those of e.
    for start in range(0, len(queries), num_rows):
        part = queries[start : start + num_rows] * LOG2_E
        scores = torch.mm(part, items.T, out=memory[: len(part)])
        if allowed is None:
            parts.append(top_k(scores, depth))
        else:
            parts.append(_top_allowed(scores, depth, torch.from_numpy(allowed[start : start + num_rows])))
        normalisers.append(_log_sum_in_place(scores[:, :num_trained]) / LOG2_E)
    nearest = np.concatenate(parts)
    nearest[~queries.any(dim=1).numpy()] = -1
    return nearest, torch.cat(normalisers)


def _top_allowed(
    scores: Float[Tensor, "rows items"], k: int, allowed: Bool[Tensor, "rows items"]
) -> Int64[ndarray, "rows k"]:
    """``top_k`` of the allowed items, -1 where a row has fewer; the scores stay."""
    masked = scores.masked_fill(~allowed, -torch.inf)
    best = top_k(masked, k)
    return np.where(np.take_along_axis(masked.numpy(), best, axis=1) == -np.inf, -1, best)


def _log_sum_in_place(scores: Float[Tensor, "rows items"]) -> Float[Tensor, "rows"]:
    """log2 of the sum of powers of two; of no items minus infinity. The scores are lost."""
    if scores.shape[1] == 0:
        return scores.new_full((len(scores),), -torch.inf)
    largest = scores.amax(dim=1, keepdim=True)
    return scores.sub_(largest).exp2_().sum(dim=1).log2_() + largest[:, 0]


def _ends_row(shape: tuple[int, int]) -> ndarray:
    """True at the last place of every row, rows concatenated."""
    is_end = np.zeros(shape, bool)
    is_end[:, -1:] = True
    return is_end.reshape(-1)


def _descending(values: Float[ndarray, "values"]) -> Int64[ndarray, "values"]:
    """32-bit integers in the opposite order of float32 values; 0.0 and -0.0 are equal."""
    bits = (values + np.float32(0)).view(np.int32)
    return (~np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)).astype(np.int64)


def _sorted_rows(
    rows: Int64[ndarray, "values"], keys: Int64[ndarray, "values"], num_rows: int
) -> Int64[ndarray, "rows widest"]:
    """Keys of each row, ascending, ``EMPTY`` where a row has fewer; ``rows`` ascends."""
    counts = np.bincount(rows, minlength=num_rows)
    padded = np.full((num_rows, counts.max(initial=0)), EMPTY)
    padded[rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)] = keys
    padded.sort(axis=1)
    return padded


SAMPLED = 1 << 14
"""Items at least that an index estimates normalisers from, evenly spread over the catalogue."""
SURE = 100
"""Nearest items whose exact scores count in an estimated normaliser."""
LISTS = 4
"""Cells of an index over the square root of the number of items."""
TRAINED_ON, ROUNDS = 40, 8
"""Items of each part, and rounds, of the k-means."""

Nearest = tuple[Int64[ndarray, "rows depth"], Float[Tensor, "rows"]]
"""The nearest items of each row, best first, -1 where there are none; and the normaliser of a softmax over items."""


class SearchConfig(Config):
    """Search of the nearest items."""

    kind: Literal["auto", "exact", "faiss"] = Field(
        "auto", description="All items, an index of FAISS, or that index where it pays and is installed."
    )
    faiss_from: int = Field(100_000, ge=1, description="Items from which auto takes the index, for many queries.")
    faiss_queries: int = Field(8_192, ge=1, description="Queries of a task from which auto builds it.")
    probes: int = Field(64, ge=1, description="Parts of the index that a query looks into.")


def trained_index(items: Float[Tensor, "items dim"]) -> Any:
    """The index of ``FaissSearch`` before an item is in it: a partition by k-means, whose training is seeded."""
    import faiss

    num_lists = max(1, min(int(LISTS * len(items) ** 0.5), len(items) // TRAINED_ON))
    dim = items.shape[1]
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.cp.niter = TRAINED_ON, ROUNDS
    index.train(np.ascontiguousarray(items.numpy(), dtype=np.float32))
    return index


def write_index(index: Any, path: Path) -> None:
    """Writes an index of FAISS; equal indexes give equal bytes."""
    import faiss

    faiss.write_index(index, str(path))


def stored_index(path: Path) -> Any:
    """Reads what ``write_index`` wrote."""
    import faiss

    return faiss.read_index(str(path))


class FaissSearch:
    """An inverted file: k-means partitions the items, and a query searches the nearest partitions.

    The normaliser is the sum over the nearest items and an estimate for all others from a sample. The same items give
    the same index, whose training is seeded.

    Args:
        items: embeddings.
        probes: parts that a query looks into.
        index: where it was built before; see ``hybrid.index``.

    Source: Jégou et al., TPAMI 2011, without compression.
    """

    def __init__(self, items: Float[Tensor, "items dim"], probes: int, index: Any = None) -> None:
        self.items = items
        if index is None:
            index = trained_index(items)
            index.add(np.ascontiguousarray(items.numpy(), dtype=np.float32))
        self.index = index
        self.index.nprobe = min(probes, self.index.nlist)

    def nearest(self, queries: Float[Tensor, "rows dim"], depth: int, num_trained: int) -> Nearest:
        """See ``scan``."""
        import faiss

        # As many threads as torch has, which are few where parts of a task run in parallel.
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

    The method depends on the recipe, the catalogue and the number of queries of the task, never on earlier tasks.

    Args:
        items: embeddings.
        config: the method.

    Raises:
        InputError: FAISS is configured and not installed.
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
        """Whether a task of ``num_queries`` queries searches the index."""
        pays = len(self.items) >= self.config.faiss_from and num_queries >= self.config.faiss_queries
        return self.config.kind == "faiss" or (self.config.kind == "auto" and self.is_installed and pays)

    def nearest(
        self,
        queries: Float[Tensor, "rows dim"],
        depth: int,
        num_trained: int,
        num_queries: int | None = None,
        allowed: Bool[ndarray, "rows items"] | None = None,
    ) -> Nearest:
        """See ``scan``; ``num_queries`` counts those of the whole task, these alone where None.

        An index has no mask: with ``allowed`` the search is exact.
        """
        if allowed is not None or not self.uses_index(len(queries) if num_queries is None else num_queries):
            return scan(queries, self.items, depth, num_trained, allowed)
        return self._built().nearest(queries, depth, num_trained)

    def adopt(self, index: Any) -> None:
        """Takes an index of the same items that was built before, in place of building it; see ``hybrid.index``."""
        self.index = FaissSearch(self.items, self.config.probes, index)

    def _built(self) -> FaissSearch:
        with self.lock:
            if self.index is None:
                self.index = FaissSearch(self.items, self.config.probes)
        return self.index
