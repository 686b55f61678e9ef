"""Runs every baseline over seeds, each one once, and puts them into one table with intervals and corrected tests."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.artifacts import load_tensors, read_json, save_tensors, write_json
from allrec.base import InputError
from allrec.config import Recipe, load_recipe
from allrec.data import Dataset, load_dataset
from allrec.evaluation.beyond_accuracy import beyond_accuracy
from allrec.evaluation.protocols import Ranking, corrected, result_rows
from allrec.evaluation.segments import segments
from allrec.evaluation.significance import compare as compare_users
from allrec.evidence.histories import histories_before
from allrec.experiments.baselines import Choice, baseline_ranks, chosen_baselines, top_items
from allrec.experiments.summary import METRICS, cell
from allrec.models.backbones.base import Backbone, freeze
from allrec.models.backbones.registry import make_backbone
from allrec.models.backbones.sasrec import SASRecConfig
from allrec.pipeline import Observer, ignore
from allrec.run_folder import CHECKPOINT
from allrec.setup import chances, default_cache, describe
from allrec.training.backbone import BackboneConfig, train_backbone
from allrec.training.loop import LoopConfig
from allrec.training.text_cache import text_embeddings

FORMAT_VERSION = 1
BASELINES = "baselines.json"
K = 10
"""Length of the lists that the measures beyond accuracy look at."""
ASKED = (("valid", "paper"), ("test", "paper"), ("test", "full"))
DRAWN = ("bpr", "sasrec-bce", "sasrec-softmax")
"""Baselines that depend on the seed; the others are run once."""
SOFTMAX = BackboneConfig(
    model=SASRecConfig(dim=128),
    loss="softmax",
    tokens_per_batch=1024,
    loop=LoopConfig(epochs=60, learning_rate=2e-3, betas=(0.9, 0.98), patience=3),
)
"""SASRec with a softmax over the catalogue: settings chosen on validation (docs/experiments.md)."""


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
        return np.mean([METRICS[metric](ranks) for ranks in self.ranks[split, protocol]], axis=0)


def run_baselines(
    dataset: Dataset | Path | str,
    folder: Path | str,
    *,
    seeds: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    resume: bool = False,
    cache: Path | None = None,
    observer: Observer = ignore,
) -> dict[str, Any]:
    """Chooses every baseline on validation, ranks the test targets, and writes ``baselines.json``.

    Args:
        dataset: a data set or its folder.
        folder: to write; new, or with ``resume`` that of baselines that were stopped. More seeds may join it then.
        seeds: of what is drawn; what draws nothing is run once.
        recipe: its text encoder and its backbone, the one with binary cross-entropy, are taken; a-llmrec where None.
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
    recipe = recipe or load_recipe("a-llmrec")
    _begin(folder, dataset, resume)
    texts = text_embeddings(
        dataset.texts, recipe.text, cache or default_cache(),
        on_chunk=lambda done, total: observer("text", done / total, {"texts": float(done)}),
    )  # fmt: skip
    found: dict[str, Measured] = {}
    for seed in seeds:
        configs = {"sasrec-bce": recipe.backbone, "sasrec-softmax": SOFTMAX}
        backbones = {
            name: _backbone(folder / f"seed{seed}" / name, dataset, config, seed, observer)
            for name, config in configs.items()
        }
        makers = chosen_baselines(dataset, texts, backbones, seed)
        for number, (name, make) in enumerate(makers.items()):
            measured = found.setdefault(name, Measured(name))
            if name in DRAWN or not measured.facts:
                _measure(folder / f"seed{seed}", make, measured, dataset, texts)
            observer("baselines", (number + 1) / len(makers), {})
    result = _begun(dataset) | {"seeds": list(seeds)} | summarise_baselines(list(found.values()), dataset, seeds)
    write_json(folder / BASELINES, result)
    return result


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
                                for metric, values in METRICS.items()}
        for split, protocol in ASKED
    }  # fmt: skip
    return {"name": one.name, "seeds": len(one.facts), "chosen": one.facts, **cells}


def _tests(one: Measured, best: Measured) -> list[dict[str, Any]]:
    rows = []
    for protocol in ("paper", "full"):
        for metric in METRICS:
            values, others = (each.by_user("test", protocol, metric) for each in (best, one))
            result = compare_users(values, others, np.random.default_rng([0, len(values)]))
            rows.append(
                {"split": "test", "protocol": protocol, "metric": metric, "scorer": best.name, "against": one.name,
                 "users": len(values), "difference": result.difference, "ci95": list(result.interval), "p": result.p}
            )  # fmt: skip
    return rows


def _measure(
    folder: Path, make: Callable[[], Choice], measured: Measured, dataset: Dataset, texts: Float[Tensor, "items dim"]
) -> None:
    note, tensors = folder / f"{measured.name}.json", folder / f"{measured.name}.safetensors"
    if not note.is_file():
        start = time.perf_counter()
        chosen = make()
        seconds = time.perf_counter() - start
        targets = dataset.targets
        ranks = {f"{split}/{protocol}": baseline_ranks(chosen.baseline, dataset, targets[split], protocol)
                 for split, protocol in ASKED}  # fmt: skip
        save_tensors(tensors, {key: torch.from_numpy(values) for key, values in ranks.items()})
        told = histories_before(dataset, targets["test"])
        chosen_before = np.concatenate([told.items[a:b] for a, b in zip(told.starts, told.ends, strict=True)])
        lists = top_items(chosen.baseline, dataset, targets["test"], K)
        beyond = beyond_accuracy(lists, chosen_before, dataset.train_counts(), texts)
        facts = {"setting": chosen.setting, "tried": chosen.tried, "seconds": seconds, f"beyond@{K}": beyond}
        write_json(note, facts)
    measured.facts.append(read_json(note))
    stored = load_tensors(tensors)
    for split, protocol in ASKED:
        measured.ranks.setdefault((split, protocol), []).append(stored[f"{split}/{protocol}"].numpy())


def _backbone(folder: Path, dataset: Dataset, config: BackboneConfig, seed: int, observer: Observer) -> Backbone:
    path = folder / "model.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        trained = train_backbone(
            dataset, config, seed=seed, checkpoint=folder / CHECKPOINT,
            on_step=lambda step, values: observer("backbone", values["progress"], values | {"step": float(step)}),
        )  # fmt: skip
        save_tensors(path, trained.model.state_dict())
        (folder / CHECKPOINT).unlink(missing_ok=True)
    model = make_backbone(dataset.num_items, config.model, torch.Generator())
    model.load_state_dict(load_tensors(path))
    return freeze(model)


def _begun(dataset: Dataset) -> dict[str, Any]:
    return {"format": FORMAT_VERSION, "dataset": {k: v for k, v in describe(dataset).items() if k != "wording"}}


def _begin(folder: Path, dataset: Dataset, resume: bool) -> None:
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
