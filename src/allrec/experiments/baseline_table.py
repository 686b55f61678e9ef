"""Runs every baseline over seeds, each one once, and puts them into one table with intervals and corrected tests."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.alignment.text_cache import default_cache
from allrec.backbones.base import Backbone, freeze
from allrec.backbones.registry import make_backbone
from allrec.backbones.training import BackboneConfig, train_backbone
from allrec.config import Recipe, choose_language_model, load_recipe
from allrec.data.dataset import Dataset, flat, load_dataset
from allrec.errors import InputError
from allrec.evaluation.beyond_accuracy import beyond_accuracy
from allrec.evaluation.evaluate import Plan, evaluate
from allrec.evaluation.results import Ranking, chances, corrected, result_rows
from allrec.evaluation.segments import segments
from allrec.evaluation.significance import compare as compare_users
from allrec.experiments.baselines import Choice, baseline_ranks, chosen_baselines, top_items
from allrec.experiments.summary import SHOWN, cell
from allrec.files import load_tensors, read_json, save_tensors, write_json
from allrec.hybrid.features import histories_before
from allrec.recommender import begin_training
from allrec.runs.run_folder import CHECKPOINT, MANIFEST, describe
from allrec.runs.scorers import SCORERS
from allrec.runs.stages import Observer, ignore, train_stages
from allrec.runs.trained_model import TrainedModel

FORMAT_VERSION = 1
BASELINES = "baselines.json"
K = 10
"""Length of the lists that the measures beyond accuracy look at."""
ASKED = (("valid", "paper"), ("test", "paper"), ("test", "full"))
DRAWN = ("bpr", "sasrec-bce", "sasrec-softmax", "fusion")
"""Baselines that depend on the seed; the others are run once."""
FUSION = "fusion"
WITHOUT_LLM = ("llm.enabled=false",)


class Found(NamedTuple):
    """What one baseline did with one seed: ranks by split and protocol; what was chosen and what its lists are like."""

    ranks: dict[tuple[str, str], Int[ndarray, "rows"]]
    facts: dict[str, Any]


@dataclass
class Measured:
    """One baseline over the seeds.

    Attributes:
        name: of the baseline.
        ranks: (split, protocol) -> ranks, one array a seed.
        facts: what each seed chose, what that took, and what its lists are like.
    """

    name: str
    ranks: dict[tuple[str, str], list[Int[ndarray, "rows"]]] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def by_user(self, split: str, protocol: str, metric: str) -> Float[ndarray, "rows"]:
        """Each user's mean over the seeds."""
        return np.mean([SHOWN[metric](ranks) for ranks in self.ranks[split, protocol]], axis=0)


@dataclass(frozen=True)
class Job:
    """What baselines are run on.

    Attributes:
        dataset: the data set.
        folder: holds a folder a seed, and ``baselines.json``.
        recipe: its backbone is the SASRec with a full softmax, its fusion the one without a language model.
        bce: the SASRec with binary cross-entropy.
        cache: folder of cached text embeddings.
        observer: told of progress.
    """

    dataset: Dataset
    folder: Path
    recipe: Recipe
    bce: BackboneConfig
    cache: Path
    observer: Observer


def run_baselines(
    dataset: Dataset | Path | str,
    folder: Path | str,
    *,
    seeds: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    bce: BackboneConfig | None = None,
    resume: bool = False,
    cache: Path | None = None,
    observer: Observer = ignore,
) -> dict[str, Any]:
    """Chooses every baseline on validation, ranks the test targets, and writes ``baselines.json``.

    Args:
        dataset: a data set or its folder.
        folder: to write; new, or with ``resume`` that of baselines that were stopped. More seeds may join it then.
        seeds: of what is drawn; what draws nothing is run once.
        recipe: text encoder, SASRec with a full softmax, and fusion; ``allround`` without its language model if None.
        bce: the SASRec with binary cross-entropy; that of ``a-llmrec`` if None.
        resume: go on where it was stopped.
        cache: folder of cached text embeddings.
        observer: told of progress.

    Returns:
        What ``baselines.json`` holds.

    Raises:
        InputError: what is wrong with the data, the seeds or the folder, and what to do.
    """
    folder = Path(folder)
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"got seeds {list(seeds)}, expected at least one, and each once.")
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    recipe = recipe or load_recipe("allround", WITHOUT_LLM)
    job = Job(dataset, folder, recipe, bce or load_recipe("a-llmrec").backbone, cache or default_cache(), observer)
    _begin(job, resume)
    found: dict[str, Measured] = {}
    for seed in seeds:
        _run_seed(job, seed, found)
    result = _begun(dataset) | {"seeds": list(seeds)} | summarise_baselines(list(found.values()), dataset, seeds)
    write_json(folder / BASELINES, result)
    return result


def _run_seed(job: Job, seed: int, found: dict[str, Measured]) -> None:
    folder, dataset = job.folder / f"seed{seed}", job.dataset
    model = _without_llm(job, seed)
    backbones = {"sasrec-bce": _backbone(job, folder / "sasrec-bce", seed), "sasrec-softmax": model.backbone}
    makers = chosen_baselines(dataset, model.text_embeddings, backbones, seed)
    for number, (name, make) in enumerate(makers.items()):
        measured = found.setdefault(name, Measured(name))
        if name in DRAWN or not measured.facts:
            _measure(folder, measured, partial(_of_choice, make, dataset, model.text_embeddings))
        job.observer("baselines", (number + 1) / len(makers), {})
    if model.fused_ranker is not None:
        measured = found.setdefault(FUSION, Measured(FUSION))
        _measure(folder, measured, partial(_of_fusion, model, dataset))


def _without_llm(job: Job, seed: int) -> TrainedModel:
    """Every stage but the language model's, in a run folder of its own."""
    recipe = choose_language_model(job.recipe.model_copy(update={"seed": seed}), None)
    path = job.folder / f"seed{seed}" / FUSION
    resume = (path / MANIFEST).is_file()
    training = begin_training(job.dataset, path, recipe, None, resume=resume, cache=job.cache)
    return train_stages(replace(training, observer=job.observer))


def _of_choice(make: Callable[[], Choice], dataset: Dataset, texts: Float[Tensor, "items dim"]) -> Found:
    chosen = make()
    ranks = {(split, protocol): baseline_ranks(chosen.baseline, dataset, dataset.targets[split], protocol)
             for split, protocol in ASKED}  # fmt: skip
    lists = top_items(chosen.baseline, dataset, dataset.targets["test"], K)
    facts = {"setting": chosen.setting, "tried": chosen.tried, f"beyond@{K}": _beyond(lists, dataset, texts)}
    return Found(ranks, facts)


def _of_fusion(model: TrainedModel, dataset: Dataset) -> Found:
    protocols = tuple(dict.fromkeys(protocol for _, protocol in ASKED))
    plan = Plan(protocols=protocols, splits=("valid", "test"), scorers=(FUSION,))
    ranks = {(one.split, one.protocol): one.ranks for one in evaluate(model, dataset, plan, SCORERS).rankings}
    ranker, targets = model.ranker, dataset.targets["test"]
    # No item of the history is excepted here: a list for a user knows no target.
    nothing = np.full(len(targets), -1)
    ranked = ranker.rank_catalogue(histories_before(dataset, targets), nothing)
    lists = np.concatenate([np.take_along_axis(scored.items, scored.best(K), axis=1) for scored in ranked])
    beyond = _beyond(lists, dataset, model.text_embeddings)
    return Found(ranks, {"setting": {}, "tried": [], f"beyond@{K}": beyond})


def _beyond(lists: Int[ndarray, "rows k"], dataset: Dataset, texts: Float[Tensor, "items dim"]) -> dict[str, float]:
    told = histories_before(dataset, dataset.targets["test"])
    _, places = flat(told.starts, told.ends)
    return beyond_accuracy(lists, told.items[places], dataset.train_counts(), texts)


def summarise_baselines(found: Sequence[Measured], dataset: Dataset, seeds: Sequence[int]) -> dict[str, Any]:
    """Rows as in ``metrics.json`` with a seed besides, a table over the seeds, and paired tests against the best.

    The best is the one with the largest NDCG@10 on validation; ``p_holm`` is corrected for the other rows.
    """
    best = max(found, key=lambda one: float(one.by_user("valid", "paper", "NDCG@10").mean()))
    masks = {split: segments(dataset, dataset.targets[split]) for split in dict(ASKED)}
    rankings = [
        (seed, Ranking(split, protocol, one.name, np.arange(len(ranks)), ranks))
        for one in found
        for split, protocol in ASKED
        for seed, ranks in zip(seeds, one.ranks[split, protocol], strict=False)
    ]
    return {
        "chance": chances(dataset, [ranking for _, ranking in rankings]),
        "results": [
            row | {"seed": seed} for seed, one in rankings for row in result_rows(one, masks[one.split], 0)
        ],
        "best": best.name,
        "table": [_table_row(one) for one in found],
        "comparisons": corrected([row for one in found if one is not best for row in _tests(one, best)]),
    }  # fmt: skip


def _table_row(one: Measured) -> dict[str, Any]:
    cells = {
        f"{split}/{protocol}": {metric: cell([values(ranks) for ranks in one.ranks[split, protocol]])
                                for metric, values in SHOWN.items()}
        for split, protocol in ASKED
    }  # fmt: skip
    return {"name": one.name, "seeds": len(one.facts), "chosen": one.facts, **cells}


def _tests(one: Measured, best: Measured) -> list[dict[str, Any]]:
    rows = []
    for protocol in ("paper", "full"):
        for metric in SHOWN:
            values, others = (each.by_user("test", protocol, metric) for each in (best, one))
            result = compare_users(values, others, seeds.rng(0, "baselines", "paired", protocol, metric))
            rows.append(
                {"split": "test", "protocol": protocol, "metric": metric, "scorer": best.name, "against": one.name,
                 "users": len(values), "difference": result.difference, "ci95": list(result.interval), "p": result.p}
            )  # fmt: skip
    return rows


def _measure(folder: Path, measured: Measured, find: Callable[[], Found]) -> None:
    note, tensors = folder / f"{measured.name}.json", folder / f"{measured.name}.safetensors"
    if not note.is_file():
        start = time.perf_counter()
        found = find()
        save_tensors(tensors, {f"{split}/{protocol}": torch.from_numpy(found.ranks[split, protocol])
                               for split, protocol in ASKED})  # fmt: skip
        write_json(note, found.facts | {"seconds": time.perf_counter() - start})
    measured.facts.append(read_json(note))
    stored = load_tensors(tensors)
    for split, protocol in ASKED:
        measured.ranks.setdefault((split, protocol), []).append(stored[f"{split}/{protocol}"].numpy())


def _backbone(job: Job, folder: Path, seed: int) -> Backbone:
    path, config, dataset = folder / "model.safetensors", job.bce, job.dataset
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        trained = train_backbone(
            dataset, config, seed=seed, checkpoint=folder / CHECKPOINT,
            on_progress=partial(job.observer, "backbone"),
        )  # fmt: skip
        save_tensors(path, trained.model.state_dict())
        (folder / CHECKPOINT).unlink(missing_ok=True)
    model = make_backbone(dataset.num_items, config.model, torch.Generator())
    model.load_state_dict(load_tensors(path))
    return freeze(model)


def _begun(dataset: Dataset) -> dict[str, Any]:
    return {"format": FORMAT_VERSION, "dataset": {k: v for k, v in describe(dataset).items() if k != "wording"}}


def _begin(job: Job, resume: bool) -> None:
    folder, dataset = job.folder, job.dataset
    path = folder / BASELINES
    if path.is_file():
        if not resume:
            raise InputError(f"{folder} already holds baselines. Go on with them: --resume. Or give another --out.")
        if (other := read_json(path)["dataset"])["sha256"] != dataset.sha256:
            raise InputError(
                f"{folder} holds baselines of {other['name']!r}, got {dataset.name!r}. Give another --out."
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is in use and holds no baselines, expected a new or empty folder.")
    write_json(path, _begun(dataset))
