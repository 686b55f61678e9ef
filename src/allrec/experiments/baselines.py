"""Baselines: each scores the whole catalogue and has a small grid, from which validation chooses; and their table."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.alignment.model import AlignmentConfig, AlignmentStageConfig
from allrec.alignment.text_cache import default_cache
from allrec.backbones.base import Backbone, encode_histories
from allrec.backbones.registry import BackboneConfig
from allrec.config import Recipe, choose_language_model, load_recipe
from allrec.data.dataset import Dataset, Targets, flat, load_dataset
from allrec.data.negatives import NegativeSampler
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import InputError
from allrec.evaluation.beyond_accuracy import beyond_accuracy
from allrec.evaluation.evaluate import Plan, evaluate
from allrec.evaluation.metrics import ndcg_at
from allrec.evaluation.ranks import candidate_ranks, catalogue_ranks, excluded_of
from allrec.evaluation.results import Clusters, Ranking, chances, clusters_of, corrected, masks_of, result_rows
from allrec.evaluation.significance import compare
from allrec.experiments.compare import RUNS, Runs, begin_experiment, by_engine, check_seeds
from allrec.experiments.summary import SHOWN, cell, values_of
from allrec.files import load_tensors, read_json, save_tensors, write_json
from allrec.hybrid.content import Vocabulary
from allrec.hybrid.features import RECALLED, Histories, histories_before, largest_similarity
from allrec.hybrid.fitting import FusionStageConfig
from allrec.hybrid.similarity import DenseSpace, Neighbours
from allrec.parallel import Engine, Observer, ignore
from allrec.runs.run_folder import describe
from allrec.runs.scorers import SCORERS
from allrec.runs.stages import train_stages
from allrec.runs.trained_model import TrainedModel

FORMAT_VERSION = 1
BASELINES = "baselines.json"
K = 10
"""Length of the lists that the measures beyond accuracy look at."""
PAPER, FULL = EvaluationProtocol.PAPER, EvaluationProtocol.FULL
EVALUATED = (("valid", PAPER), ("test", PAPER), ("test", FULL))
BCE, FUSION = "sasrec-bce", "fusion"
DRAWN = ("bpr", BCE, "sasrec-softmax", FUSION)
"""Baselines that depend on the seed; the others are run once."""
WITHOUT_LLM = ("llm.enabled=false",)
STREAM = "bpr"
MAX_DENSE = 20_000
"""Item-kNN and EASE hold a matrix of items by items, and are left out of a larger catalogue."""
ROWS = 512
"""Users scored at one time."""
TINY = 1e-4
"""Less than the step between two positions in a history of RECALLED items, so that it breaks ties only."""


class Baseline(Protocol):
    """Scores the catalogue for known users."""

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """Larger is better, in any unit."""
        ...


class Popularity(NamedTuple):
    """An item's training interactions; with ``is_repeat_first``, items of the history come first."""

    counts: Float[Tensor, "items"]
    is_repeat_first: bool = False

    def scores(self, users: Int[ndarray, "rows"], histories: Histories) -> Float[Tensor, "rows items"]:
        """See ``Baseline``."""
        scores = self.counts.expand(len(users), -1)
        if not self.is_repeat_first:
            return scores
        return scores + (1 + self.counts.max()) * (spread(histories, len(self.counts), 1.0) > 0)


class MostRecent(NamedTuple):
    """The user's items, the latest first; then the most popular."""

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
        order: of candidates with equal scores, most of them unrelated to the history.
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
    """Popularity as a term so small that it only breaks ties, which would count against the target."""
    return TINY * counts / (1 + counts.max())


def popularity(dataset: Dataset, is_repeat_first: bool = False) -> Popularity:
    """Counts of the training interactions."""
    return Popularity(torch.from_numpy(dataset.train_counts()).float(), is_repeat_first)


def most_recent(dataset: Dataset) -> MostRecent:
    """The baseline of the user's latest items."""
    return MostRecent(torch.from_numpy(dataset.train_counts()).float())


def item_knn(dataset: Dataset, decay: float) -> LinearItems:
    """Damped cosine of items that are near each other in training histories."""
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
    # Scaled, since a large penalty would leave weights smaller than the term that breaks ties.
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
    sampler = NegativeSampler.of(dataset.user_ids, offsets, items, dataset.num_items)
    chosen = np.flatnonzero(sampler.has_negative[owners])
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
        for rows in np.array_split(rng.permutation(chosen), max(1, len(chosen) // 1024)):
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

    if EvaluationProtocol(protocol).is_catalogue:
        excluded = excluded_of(dataset, targets, protocol)
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
    """The setting with the best NDCG@10 on validation, and all that were tried."""

    baseline: Baseline
    setting: dict[str, float]
    tried: list[tuple[dict[str, float], float]]


def choose(make: Callable[..., Baseline], grid: Sequence[Mapping[str, float]], dataset: Dataset) -> Choice:
    """Makes a baseline with every setting and keeps the best by NDCG@10 on validation; the earlier one of a tie."""
    best: tuple[float, Baseline | None, dict[str, float]] = (-1.0, None, {})
    tried = []
    for setting in map(dict, grid):
        baseline = make(**setting)
        value = ndcg_at(baseline_ranks(baseline, dataset, dataset.targets["valid"], PAPER), 10)
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
        seed: of random baselines.
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


class Outcome(NamedTuple):
    """One baseline with one seed: ranks by (split, protocol), the chosen setting and measures beyond accuracy."""

    ranks: dict[tuple[str, str], Int[ndarray, "rows"]]
    facts: dict[str, Any]


@dataclass
class Measured:
    """One baseline over the seeds.

    Attributes:
        name: of the baseline.
        ranks: (split, protocol) -> ranks, one array a seed.
        facts: of each seed: the chosen setting, seconds, measures beyond accuracy.
    """

    name: str
    ranks: dict[tuple[str, str], list[Int[ndarray, "rows"]]] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def by_seed(self, split: str, protocol: str, metric: str, num_seeds: int = 1) -> Float[ndarray, "seeds rows"]:
        """Each user's value under each seed; what no seed changes stands under each of ``num_seeds``."""
        values = values_of(metric, self.ranks[split, protocol])
        return values if len(values) > 1 else np.repeat(values, num_seeds, axis=0)


def run_baselines(
    dataset: Dataset | Path | str,
    folder: Path | str,
    *,
    seeds: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    bce: BackboneConfig | None = None,
    resume: bool = False,
    cache: Path | None = None,
    engine: Engine | None = None,
    observer: Observer = ignore,
) -> dict[str, Any]:
    """Chooses every baseline on validation, ranks the test targets, and writes ``baselines.json``.

    Args:
        dataset: a data set or its folder.
        folder: to write; new, or with ``resume`` that of baselines that were stopped. Seeds may be added then.
        seeds: a baseline without randomness is run once.
        recipe: text encoder, SASRec with a full softmax, and fusion; ``allround`` without its language model if None.
        bce: the SASRec with binary cross-entropy; that of ``a-llmrec`` if None.
        resume: continue where it was stopped.
        cache: folder of cached text embeddings.
        engine: does several seeds at a time, see ``compare``; this process where None.
        observer: receives the progress.

    Returns:
        What ``baselines.json`` holds.

    Raises:
        InputError: what is wrong with the data, the seeds or the folder, and what to do.
    """
    folder = Path(folder)
    check_seeds(seeds)
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    whole = recipe or load_recipe("allround", WITHOUT_LLM)
    recipes = {FUSION: whole, BCE: _backbone_alone(whole, bce or load_recipe("a-llmrec").backbone)}
    head = {"format": FORMAT_VERSION, "dataset": {k: v for k, v in describe(dataset).items() if k != "wording"}}
    other = begin_experiment(folder / BASELINES, "baselines", head, resume)["dataset"]
    if other["sha256"] != dataset.sha256:
        raise InputError(f"{folder} holds baselines of {other['name']!r}, got {dataset.name!r}. Give another --out.")
    cache, measured = cache or default_cache(), dict[str, Measured]()
    if engine is not None:
        work = BaselinesOfSeed(folder.absolute(), dataset.path.absolute(), recipes, cache.absolute(), seeds[0])
        by_engine(engine, work, seeds, None, lambda _: nullcontext(observer))
    runs = Runs(folder / RUNS, dataset, cache)
    for seed in seeds:
        _measure_seed(runs, recipes, seed, seed == seeds[0], measured, observer)
    result = head | {"seeds": list(seeds)} | summarise_baselines(list(measured.values()), dataset, seeds)
    write_json(folder / BASELINES, result)
    return result


@dataclass(frozen=True)
class BaselinesOfSeed:
    """Every baseline with one seed: a task of an engine, whose part is the seed.

    Attributes:
        folder: of the baselines; every worker sees it, and the data set.
        dataset: the data set's folder.
        recipes: what is trained, by name.
        cache: folder of cached text embeddings.
        first: the seed with which baselines are run that do not depend on it.
    """

    folder: Path
    dataset: Path
    recipes: dict[str, Recipe]
    cache: Path
    first: int

    def __call__(self, seed: int) -> Path:
        """Does what is not done yet; the folder of the seed."""
        runs = Runs(self.folder / RUNS, load_dataset(self.dataset), self.cache)
        return _measure_seed(runs, self.recipes, seed, seed == self.first, {}, ignore)


def _measure_seed(
    runs: Runs,
    recipes: Mapping[str, Recipe],
    seed: int,
    is_first: bool,
    measured: dict[str, Measured],
    observer: Observer,
) -> Path:
    """Trains and measures what is not done yet with a seed, and adds it to what is measured."""
    folder = runs.folder.parent / f"seed{seed}"
    models = {name: _trained(runs, name, one, seed, observer) for name, one in recipes.items()}
    _measure_all(folder, runs.dataset, models, seed, is_first, measured, observer)
    return folder


def _backbone_alone(recipe: Recipe, backbone: BackboneConfig) -> Recipe:
    """A recipe that trains another backbone and nothing else."""
    alignment = AlignmentStageConfig(network=AlignmentConfig(kind="identity"))
    return recipe.changed(alignment=alignment, fusion=FusionStageConfig(enabled=False), backbone=backbone, name=BCE)


def _trained(runs: Runs, name: str, recipe: Recipe, seed: int, observer: Observer) -> TrainedModel:
    recipe = choose_language_model(recipe.changed(seed=seed), None)
    training, _ = runs.begin(f"{name}-seed{seed}", recipe)
    return train_stages(replace(training, observer=observer))


def _measure_all(
    folder: Path,
    dataset: Dataset,
    models: Mapping[str, TrainedModel],
    seed: int,
    is_first: bool,
    measured: dict[str, Measured],
    observer: Observer,
) -> None:
    """Measures every baseline that depends on the seed, and with the first seed the others too."""
    whole = models[FUSION]
    texts = whole.text_embeddings
    makers = chosen_baselines(dataset, texts, {BCE: models[BCE].backbone, "sasrec-softmax": whole.backbone}, seed)
    measures = {name: partial(_of_choice, make, dataset, texts) for name, make in makers.items()}
    if whole.fused_ranker is not None:
        measures[FUSION] = partial(_of_fusion, whole, dataset)
    for number, (name, measure) in enumerate(measures.items(), 1):
        own = measured.setdefault(name, Measured(name))
        if name in DRAWN or is_first:
            _measure(folder, own, measure)
        observer("baselines", number / len(measures), {})


def _of_choice(make: Callable[[], Choice], dataset: Dataset, texts: Float[Tensor, "items dim"]) -> Outcome:
    chosen = make()
    targets = dataset.targets
    ranks: dict[tuple[str, str], Int[ndarray, "rows"]] = {
        (split, protocol): baseline_ranks(chosen.baseline, dataset, targets[split], protocol)
        for split, protocol in EVALUATED
    }
    lists = top_items(chosen.baseline, dataset, targets["test"], K)
    facts = {"setting": chosen.setting, "tried": chosen.tried, f"beyond@{K}": _beyond(lists, dataset, texts)}
    return Outcome(ranks, facts)


def _of_fusion(model: TrainedModel, dataset: Dataset) -> Outcome:
    protocols = tuple(dict.fromkeys(protocol for _, protocol in EVALUATED))
    plan = Plan(protocols=protocols, splits=("valid", "test"), scorers=(FUSION,))
    ranks = {(one.split, one.protocol): one.ranks for one in evaluate(model, dataset, plan, SCORERS).rankings}
    ranker, targets = model.ranker, dataset.targets["test"]
    # No item of the history is exempt here: a recommendation list has no target.
    nothing = np.full(len(targets), -1)
    ranked = ranker.rank_catalogue(histories_before(dataset, targets), nothing)
    lists = np.concatenate([np.take_along_axis(scored.items, scored.best(K), axis=1) for scored in ranked])
    beyond = _beyond(lists, dataset, model.text_embeddings)
    return Outcome(ranks, {"setting": {}, "tried": [], f"beyond@{K}": beyond})


def _beyond(lists: Int[ndarray, "rows k"], dataset: Dataset, texts: Float[Tensor, "items dim"]) -> dict[str, float]:
    known = histories_before(dataset, dataset.targets["test"])
    _, places = flat(known.starts, known.ends)
    return beyond_accuracy(lists, known.items[places], dataset.train_counts(), texts)


def summarise_baselines(measured: Sequence[Measured], dataset: Dataset, seeds: Sequence[int]) -> dict[str, Any]:
    """Rows as in ``metrics.json`` with a seed added, a table over the seeds, and paired tests against the best.

    The best is the one with the largest NDCG@10 on validation; ``p_holm`` is corrected for the other rows.
    """
    best = max(measured, key=lambda one: float(one.by_seed("valid", PAPER, "NDCG@10").mean()))
    clusters = {split: clusters_of(dataset, dataset.targets[split]) for split in dict(EVALUATED)}
    masks = {split: masks_of(dataset, dataset.targets[split], own) for split, own in clusters.items()}
    rankings = [
        (seed, Ranking(split, protocol, one.name, np.arange(len(ranks)), ranks))
        for one in measured
        for split, protocol in EVALUATED
        for seed, ranks in zip(seeds, one.ranks[split, protocol], strict=False)
    ]
    return {
        "chance": chances(dataset, [ranking for _, ranking in rankings]),
        "results": [
            row | {"seed": seed}
            for seed, one in rankings
            for row in result_rows(one, masks[one.split], 0, clusters=clusters[one.split])
        ],
        "best": best.name,
        "table": [_table_row(one, clusters, masks["test"]["new"]) for one in measured],
        "comparisons": corrected(
            [row for one in measured if one is not best for row in _tests(one, best, clusters["test"])]
        ),
    }  # fmt: skip


def _table_row(one: Measured, clusters: Clusters, is_new: Bool[ndarray, "rows"]) -> dict[str, Any]:
    everyone = {split: np.ones(len(own), bool) for split, own in clusters.items()}
    parts = [(f"{split}/{protocol}", split, protocol, everyone[split]) for split, protocol in EVALUATED]
    parts += [(f"test/{protocol}/new", "test", protocol, is_new) for protocol in (PAPER, FULL) if is_new.any()]
    cells = {
        name: {metric: cell(one.by_seed(split, protocol, metric)[:, kept], clusters[split][kept]) for metric in SHOWN}
        for name, split, protocol, kept in parts
    }
    return {"name": one.name, "seeds": len(one.facts), "chosen": one.facts, **cells}


def _tests(one: Measured, best: Measured, clusters: Int[ndarray, "rows"]) -> list[dict[str, Any]]:
    num_seeds = max(len(one.facts), len(best.facts))
    rows = []
    for protocol in (PAPER, FULL):
        for metric in SHOWN:
            values, others = (each.by_seed("test", protocol, metric, num_seeds) for each in (best, one))
            result = compare(values, others, seeds.rng(0, "baselines", "paired", protocol, metric), clusters)
            rows.append(
                {"split": "test", "protocol": protocol, "metric": metric, "scorer": best.name, "against": one.name,
                 "users": values.shape[1], **result.row()}
            )  # fmt: skip
    return rows


def _measure(folder: Path, measured: Measured, measure: Callable[[], Outcome]) -> None:
    note, tensors = folder / f"{measured.name}.json", folder / f"{measured.name}.safetensors"
    if not note.is_file():
        start = time.perf_counter()
        outcome = measure()
        save_tensors(tensors, {f"{split}/{protocol}": torch.from_numpy(outcome.ranks[split, protocol])
                               for split, protocol in EVALUATED})  # fmt: skip
        write_json(note, outcome.facts | {"seconds": time.perf_counter() - start})
    measured.facts.append(read_json(note))
    stored = load_tensors(tensors)
    for split, protocol in EVALUATED:
        measured.ranks.setdefault((split, protocol), []).append(stored[f"{split}/{protocol}"].numpy())
