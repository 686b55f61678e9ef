"""Baselines at equal effort: each scores the whole catalogue, has a small grid, and is chosen on validation alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.backbones.base import Backbone, encode_histories
from allrec.data.dataset import Dataset, Targets, flat
from allrec.evaluation.metrics import ndcg_at
from allrec.evaluation.ranks import candidate_ranks, catalogue_ranks, excluded_history
from allrec.hybrid.content import Vocabulary
from allrec.hybrid.features import RECALLED, Histories, histories_before, largest_similarity
from allrec.hybrid.similarity import DenseSpace, Neighbours
from allrec.training.batches import NegativeSampler

STREAM = "bpr"
MAX_DENSE = 20_000
"""Item-kNN and EASE hold a matrix of items by items, and are left out of a larger catalogue."""
ROWS = 512
"""Users scored at one time."""
TINY = 1e-4
"""Less than the step between two places in a history of RECALLED items: it orders what is equal otherwise."""


class Baseline(Protocol):
    """Scores the catalogue for known users."""

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """Larger is better, in any unit."""
        ...


class Popularity(NamedTuple):
    """How often an item was bought in training; with ``is_repeat_first``, items of the history come first."""

    counts: Float[Tensor, "items"]
    is_repeat_first: bool = False

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """See ``Baseline``."""
        scores = self.counts.expand(len(users), -1)
        if not self.is_repeat_first:
            return scores
        return scores + (1 + self.counts.max()) * (spread(histories, len(self.counts), 1.0) > 0)


class MostRecent(NamedTuple):
    """What the user had last, then before that, and so on; then the popular."""

    counts: Float[Tensor, "items"]

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """See ``Baseline``."""
        latest = histories.latest_first(RECALLED)
        recency = torch.zeros(len(users), len(self.counts) + 1)
        steps = (1 / (1.0 + torch.arange(latest.shape[1]))).expand(latest.shape)
        places = latest.masked_fill(latest < 0, len(self.counts))
        recency.scatter_reduce_(1, places, steps, "amax")
        return recency[:, :-1] + popular_first(self.counts)


class LinearItems(NamedTuple):
    """Item-to-item weights, summed over the history: item-kNN and EASE.

    Attributes:
        weights: from an item of the history to a candidate.
        decay: weight of an item relative to the one after it.
        order: of candidates that are equal otherwise, most of them with nothing in common with the history.
    """

    weights: Float[Tensor, "items items"]
    decay: float
    order: Float[Tensor, "items"]

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """See ``Baseline``."""
        # A history holds few items of the catalogue, and most of a dense product would be zeros.
        return spread(histories, len(self.weights), self.decay).to_sparse() @ self.weights + self.order


class Factors(NamedTuple):
    """A vector a user, a vector and a bias an item; the history is not read."""

    users: Float[Tensor, "users dim"]
    items: Float[Tensor, "items dim"]
    biases: Float[Tensor, "items"]

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """See ``Baseline``."""
        return self.users[torch.from_numpy(users).long()] @ self.items.T + self.biases


class TextSimilarity(NamedTuple):
    """The largest cosine of a candidate's text with the texts of the latest ten items; nothing is trained."""

    space: DenseSpace

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """See ``Baseline``."""
        return largest_similarity(histories, self.space)


class DotProduct(NamedTuple):
    """A trained backbone: x_u · E_i."""

    backbone: Backbone

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """See ``Baseline``."""
        states = encode_histories(self.backbone, histories.items, histories.starts, histories.ends)
        return states @ self.backbone.item_embeddings().detach().T


def spread(histories: Histories, num_items: int, decay: float) -> Float[Tensor, "rows items"]:
    """Histories as vectors over the catalogue: decay to the power of the steps back, the latest occurrence counting."""
    latest = histories.latest_first(RECALLED)
    weights = (decay ** torch.arange(latest.shape[1]).float()).expand(latest.shape)
    vectors = torch.zeros(len(latest), num_items + 1)
    return vectors.scatter_reduce_(1, latest.masked_fill(latest < 0, num_items), weights, "amax")[:, :-1]


def popular_first(counts: Float[Tensor, "items"]) -> Float[Tensor, "items"]:
    """The order of popularity, in numbers that only part what is equal: ties would count against the target."""
    return TINY * counts / (1 + counts.max())


def popularity(dataset: Dataset, is_repeat_first: bool = False) -> Popularity:
    """Counts of the training interactions."""
    return Popularity(torch.from_numpy(dataset.train_counts()).float(), is_repeat_first)


def most_recent(dataset: Dataset) -> MostRecent:
    """What the user had last."""
    return MostRecent(torch.from_numpy(dataset.train_counts()).float())


def item_knn(dataset: Dataset, decay: float) -> LinearItems:
    """Damped cosine of items that stand near each other in training histories."""
    pairs, num_items = Neighbours.of(*dataset.train_csr(), dataset.num_items), dataset.num_items
    weights = torch.zeros(num_items, num_items)
    weights[pairs.keys // num_items, pairs.keys % num_items] = pairs.weights
    return LinearItems(weights, decay, popular_first(popularity(dataset).counts))


def ease(dataset: Dataset, penalty: float, title_weight: float = 0.0) -> LinearItems:
    """The linear autoencoder without self-similarity, in closed form; the largest weight is scaled to 1.

    With titles it is P = (XᵀX + α TTᵀ + λI)⁻¹, as if every title word were a user who had the items named by it.

    Args:
        dataset: its training interactions X [users, items] and titles T [items, words], rows of norm 1, are read.
        penalty: λ.
        title_weight: α; 0 leaves titles out.

    Source: Steck, WWW 2019, arXiv:1905.03375, equation 8; with titles CEASE of Jeunen, Van Balen and Goethals, RecSys
    2020, doi:10.1145/3383313.3418480, with words weighed by their rarity. It inverts an items by items matrix.
    """
    offsets, items = dataset.train_csr()
    starts, ends = offsets[:-1], offsets[1:]
    gram = torch.zeros(dataset.num_items, dataset.num_items)
    for start in range(0, len(starts), ROWS):
        part = slice(start, start + ROWS)
        vectors = spread(Histories(items, starts[part], ends[part]), dataset.num_items, 1.0)
        gram += vectors.T @ vectors
    if title_weight:
        gram += title_weight * title_gram(dataset)
    gram.diagonal().add_(penalty)
    inverse = torch.linalg.inv(gram)
    weights = inverse / -inverse.diagonal()
    weights.fill_diagonal_(0)
    # Scaled, since a large penalty would leave weights that are smaller than what parts equal scores.
    weights /= weights.abs().max().clamp(min=1e-9)
    return LinearItems(weights, 1.0, popular_first(popularity(dataset).counts))


def title_gram(dataset: Dataset) -> Float[Tensor, "items items"]:
    """TTᵀ: the cosine of every two items' title words, weighed by rarity; zeros for an item without words."""
    vocabulary = Vocabulary.of(dataset.titles)
    words = vocabulary.weigh(dataset.titles)
    lengths = words.offsets.diff(append=torch.tensor([len(words.ids)]))
    titles = torch.zeros(dataset.num_items, len(vocabulary))
    titles[torch.repeat_interleave(lengths), words.ids] = words.weights
    return titles.to_sparse() @ titles.T


def bpr(dataset: Dataset, penalty: float, *, seed: int, dim: int = 64, epochs: int = 30) -> Factors:
    """Matrix factorisation by Bayesian personalised ranking, with Adam and one uniform negative an interaction.

    Source: Rendle et al., UAI 2009, arXiv:1205.2618; the penalty is that on the batch's vectors.
    """
    offsets, items = dataset.train_csr()
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    sampler = NegativeSampler(offsets, items, dataset.num_items)
    generator = seeds.torch_generator(seed, STREAM, "weights")
    factors = Factors(
        torch.randn(dataset.num_users, dim, generator=generator) * 0.1,
        torch.randn(dataset.num_items, dim, generator=generator) * 0.1,
        torch.zeros(dataset.num_items),
    )
    for table in factors:
        table.requires_grad_()
    optimizer = torch.optim.Adam(factors, lr=5e-3)
    for epoch in range(epochs):
        rng = seeds.rng(seed, STREAM, "order", epoch)
        for rows in np.array_split(rng.permutation(len(items)), max(1, len(items) // 1024)):
            drawn = (owners[rows], items[rows], sampler.draw(owners[rows], rng))
            users, positives, negatives = (torch.from_numpy(ids).long() for ids in drawn)
            loss = bpr_loss(factors, users, positives, negatives, penalty)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return Factors(*(table.detach() for table in factors))


def bpr_loss(
    factors: Factors,
    users: Int[Tensor, "batch"],
    positives: Int[Tensor, "batch"],
    negatives: Int[Tensor, "batch"],
    penalty: float,
) -> Float[Tensor, ""]:
    """-log s(positive - negative), and the penalty times the vectors' squared lengths; a mean over the batch."""
    user, positive, negative = factors.users[users], factors.items[positives], factors.items[negatives]
    margins = (user * (positive - negative)).sum(dim=1) + factors.biases[positives] - factors.biases[negatives]
    lengths = sum(vectors.square().sum(dim=1) for vectors in (user, positive, negative))
    return (penalty * lengths - torch.nn.functional.logsigmoid(margins)).mean()


def baseline_ranks(baseline: Baseline, dataset: Dataset, targets: Targets, protocol: str) -> Int[ndarray, "rows"]:
    """0-based ranks of the targets under a stored protocol, ``full`` or ``full-repeat``."""
    histories = histories_before(dataset, targets)

    def score_rows(rows: slice) -> Tensor:
        return baseline.scores(targets.users[rows], histories.part(rows))

    if protocol.startswith("full"):
        everyone = np.arange(len(targets))
        excluded = excluded_history(dataset, targets, everyone) if protocol == "full" else None
        return catalogue_ranks(score_rows, targets.items, dataset.num_items, excluded)
    candidates = targets.candidates[protocol]
    scores = np.empty(candidates.shape, np.float32)
    for start in range(0, len(targets), ROWS):
        rows = slice(start, min(start + ROWS, len(targets)))
        wanted = torch.from_numpy(candidates[rows].clip(min=0)).long()
        scores[rows] = score_rows(rows).gather(1, wanted).numpy()
    return candidate_ranks(scores, candidates, targets.items)


@torch.no_grad()
def top_items(baseline: Baseline, dataset: Dataset, targets: Targets, k: int) -> Int[ndarray, "rows k"]:
    """The k best items for each row, those of its history excluded; -1 where the catalogue has no more."""
    histories, lists = histories_before(dataset, targets), []
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        own = histories.part(rows)
        scores = baseline.scores(targets.users[rows], own).clone()
        owners, places = flat(own.starts, own.ends)
        scores[torch.from_numpy(owners), torch.from_numpy(own.items[places]).long()] = -torch.inf
        best = scores.topk(min(k, dataset.num_items), dim=1)
        lists.append(best.indices.masked_fill(best.values == -torch.inf, -1).numpy())
    return np.concatenate(lists)


class Choice(NamedTuple):
    """The setting that validation prefers, its NDCG@10 there, and all that was tried."""

    baseline: Baseline
    setting: dict[str, float]
    tried: list[tuple[dict[str, float], float]]


def choose(
    make: Callable[..., Baseline], grid: Sequence[Mapping[str, float]], dataset: Dataset, protocol: str = "paper"
) -> Choice:
    """Makes a baseline with every setting and keeps the best by NDCG@10 on validation; the earlier one where equal."""
    best: tuple[float, Baseline | None, dict[str, float]] = (-1.0, None, {})
    tried = []
    for setting in map(dict, grid):
        baseline = make(**setting)
        value = ndcg_at(baseline_ranks(baseline, dataset, dataset.targets["valid"], protocol), 10)
        tried.append((setting, value))
        if value > best[0]:
            best = (value, baseline, setting)
    if best[1] is None:
        raise ValueError("got an empty grid, expected a setting at least")
    return Choice(best[1], best[2], tried)


def chosen_baselines(
    dataset: Dataset, text_embeddings: Float[Tensor, "items text_dim"], backbones: Mapping[str, Backbone], seed: int
) -> dict[str, Callable[[], Choice]]:
    """Every baseline by name, chosen on validation when it is called.

    Args:
        dataset: its training interactions and validation targets are read.
        text_embeddings: Q of every item.
        backbones: name -> trained backbone, such as ``sasrec-bce`` and ``sasrec-softmax``.
        seed: of what is drawn.
    """
    once: list[dict[str, float]] = [{}]
    space = DenseSpace.of(text_embeddings)

    def alone(baseline: Baseline) -> Callable[[], Choice]:
        return lambda: choose(lambda: baseline, once, dataset)

    return {
        "popularity": alone(popularity(dataset)),
        "popularity-repeat": alone(popularity(dataset, is_repeat_first=True)),
        "most-recent": alone(most_recent(dataset)),
        **({} if dataset.num_items > MAX_DENSE else _item_to_item(dataset)),
        "bpr": lambda: choose(
            lambda penalty: bpr(dataset, penalty, seed=seed),
            [{"penalty": size} for size in (1e-3, 1e-2, 5e-2)],
            dataset,
        ),
        "text": alone(TextSimilarity(space)),
        **{name: alone(DotProduct(backbone)) for name, backbone in backbones.items()},
    }


def _item_to_item(dataset: Dataset) -> dict[str, Callable[[], Choice]]:
    return {
        "itemknn": lambda: choose(
            lambda decay: item_knn(dataset, decay), [{"decay": decay} for decay in (1.0, 0.8, 0.6)], dataset
        ),
        "ease": lambda: choose(
            lambda penalty: ease(dataset, penalty),
            [{"penalty": size} for size in (100.0, 500.0, 2500.0, 12500.0)],
            dataset,
        ),
        "ease-titles": lambda: choose(
            lambda penalty, title_weight: ease(dataset, penalty, title_weight),
            [{"penalty": size, "title_weight": weight} for size in (100.0, 500.0) for weight in (10.0, 50.0)],
            dataset,
        ),
    }
