"""What a run needs before its first stage and after its last: the language model, the plan, the summary."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from allrec.config import Recipe
from allrec.data import Dataset
from allrec.evaluation.evaluate import Plan
from allrec.evaluation.metrics import chance
from allrec.evaluation.protocols import Ranking, comparison_rows, result_rows
from allrec.evaluation.segments import segments
from allrec.models.language_model import LanguageModel, LanguageModelConfig
from allrec.run_folder import RunFolder

FORMAT_VERSION = 1
TIMED = ("backbone", "text", "alignment", "language_model", "evaluate")


def default_cache() -> Path:
    """Where text embeddings are cached: ``ALLREC_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("ALLREC_CACHE") or Path.home() / ".cache" / "allrec") / "texts"


def choose_language_model(recipe: Recipe, asked: str | None) -> Recipe:
    """The recipe with its language model decided, so that a run's recipe says which one was used.

    Taken is the one asked for; else the recipe's own where an accelerator is there and the weights are on disk; else
    the embedded one that stands in for it.
    """
    if recipe.llm.chosen is not None and asked is None:
        return recipe
    if asked is not None:
        chosen = LanguageModelConfig(name=asked)
    elif torch.cuda.is_available() and is_within_reach(recipe.llm.published):
        chosen = recipe.llm.published
    else:
        chosen = LanguageModelConfig(name=recipe.llm.stand_in)
    return recipe.model_copy(update={"llm": recipe.llm.model_copy(update={"chosen": chosen})})


def is_within_reach(config: LanguageModelConfig) -> bool:
    """Whether a model's weights are on disk: a folder, or in the hub's cache. Nothing is downloaded to find out."""
    if Path(config.name).is_dir():
        return True
    return isinstance(try_to_load_from_cache(config.name, "config.json", revision=config.revision), str)


def load_language_model(recipe: Recipe, device: str | None) -> LanguageModel:
    """Loads the language model of a recipe whose choice is made."""
    chosen = recipe.llm.chosen or LanguageModelConfig(name=recipe.llm.stand_in)
    return LanguageModel.load(chosen, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a run remembers of its data set."""
    return {
        "name": dataset.name, "sha256": dataset.sha256, "users": dataset.num_users, "items": dataset.num_items,
        "interactions": dataset.num_interactions, "wording": dataset.wording.model_dump(),
    }  # fmt: skip


def plan_of(recipe: Recipe, folder: Path, on_progress: Any) -> Plan:
    """The evaluation that a recipe asks for; without a stage 1 there is no joint space to score in."""
    asked = recipe.evaluation
    has_joint = recipe.alignment.network.kind != "identity"
    return Plan(
        protocols=asked.protocols,
        splits=asked.splits,
        llm_users={"valid": asked.llm_valid_users, "test": asked.llm_users},
        ablation_users=asked.ablation_users,
        scorers=tuple(scorer for scorer in Plan.scorers if has_joint or scorer != "joint"),
        folder=folder,
        seed=asked.bootstrap_seed,
        on_progress=on_progress,
    )


def metrics_of(run: RunFolder, dataset: Dataset, rankings: list[Ranking]) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    seed = run.recipe().evaluation.bootstrap_seed
    masks = {split: segments(dataset, dataset.targets[split]) for split in {ranking.split for ranking in rankings}}
    stages = {"prepare": dataset.seconds} | {name: run.seconds(name) for name in TIMED}
    return {
        "format": FORMAT_VERSION,
        "dataset": {key: value for key, value in describe(dataset).items() if key != "wording"},
        "recipe": run.manifest["recipe"],
        "seed": run.manifest["seed"],
        "llm": run.manifest["llm"],
        "seconds": stages | {"total": sum(stages.values())},
        "scoring_seconds": scoring_seconds(rankings),
        "chance": chances(dataset, rankings),
        "results": [row for ranking in rankings for row in result_rows(ranking, masks[ranking.split], seed)],
        "comparisons": comparison_rows(_llm_first(rankings), seed),
    }


def scoring_seconds(rankings: list[Ranking]) -> dict[str, float]:
    """Time by scorer, over splits and protocols; scores that an earlier attempt kept count as read."""
    seconds: dict[str, float] = {}
    for ranking in rankings:
        seconds[ranking.scorer] = seconds.get(ranking.scorer, 0.0) + ranking.seconds
    return seconds


def chances(dataset: Dataset, rankings: list[Ranking]) -> dict[str, dict[str, float]]:
    """What a random order gives, by protocol."""
    sizes = {"paper": 20, "sampled-99": 100}
    numbers = {protocol: sizes.get(protocol, dataset.num_items) for protocol in {r.protocol for r in rankings}}
    return {
        protocol: {"HR@1": chance("HR", 1, n), "HR@10": chance("HR", 10, n), "NDCG@10": chance("NDCG", 10, n)}
        for protocol, n in sorted(numbers.items())
    }


def _llm_first(rankings: list[Ranking]) -> list[Ranking]:
    return sorted(rankings, key=lambda ranking: ranking.scorer != "llm")
