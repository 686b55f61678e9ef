"""What a run needs before its first stage and after its last: the language model, the plan, the summary."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache

from allrec.parallel import OnProgress
from allrec.errors import InputError
from allrec.config import Recipe
from allrec.data.dataset import Dataset
from allrec.evaluation.evaluate import LLM_SCORERS, Plan
from allrec.evaluation.metrics import Metric, chance
from allrec.evaluation.results import Ranking, comparison_rows, corrected, result_rows
from allrec.evaluation.segments import segments
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.runs.run_folder import METRICS, RunFolder

FORMAT_VERSION = 1
CHANCES: dict[str, tuple[Metric, int]] = {
    "HR@1": ("HR", 1), "HR@5": ("HR", 5), "HR@10": ("HR", 10), "NDCG@5": ("NDCG", 5), "NDCG@10": ("NDCG", 10),
    "MRR": ("MRR", 1),
}  # fmt: skip
LEADS = ("allround", "fusion", "llm")
"""Scorers that all others are tested against, where they were scored."""
TIMED = ("backbone", "text", "alignment", "language_model", "readout", "fusion", "evaluate")


def default_cache() -> Path:
    """Where text embeddings are cached: ``ALLREC_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("ALLREC_CACHE") or Path.home() / ".cache" / "allrec") / "texts"


def choose_language_model(recipe: Recipe, asked: str | None) -> Recipe:
    """The recipe with its language model decided, so that a run's recipe says which one was used.

    Taken is the one asked for; else the recipe's own where an accelerator is there and the weights are on disk; else
    the embedded one that stands in for it. Precision and savings are the recipe's, whichever it is.
    """
    if recipe.llm.chosen is not None and asked is None:
        return recipe
    if asked is not None:
        chosen = recipe.llm.published.model_copy(update={"name": asked, "revision": None})
    elif torch.cuda.is_available() and is_within_reach(recipe.llm.published):
        chosen = recipe.llm.published
    else:
        chosen = recipe.llm.published.model_copy(update={"name": recipe.llm.stand_in, "revision": None})
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


def refuse_in_vain(dataset: Dataset, recipe: Recipe, llm: LanguageModel, is_evaluated: bool) -> None:
    """Refuses before the first stage what a later one could only refuse after hours.

    Args:
        dataset: what is to be trained on.
        recipe: complete.
        llm: the language model.
        is_evaluated: whether the run ends with an evaluation.

    Raises:
        InputError: items without any text, nobody to evaluate, or training prompts that outgrow the model.
    """
    if not any(dataset.texts):
        raise InputError(f"{dataset.name}: no item has a text. Prepare it with an items file that has a title column.")
    if is_evaluated and not any(len(dataset.targets[split]) for split in recipe.evaluation.splits):
        raise InputError(
            f"{dataset.name} has nobody to evaluate: no user has three interactions. Prepare a source of longer ones."
        )
    if recipe.llm.enabled and not recipe.prompt.is_bare:
        _refuse_long_prompts(dataset, recipe, llm)


def _refuse_long_prompts(dataset: Dataset, recipe: Recipe, llm: LanguageModel) -> None:
    builder = PromptBuilder(
        llm.encode, dataset.titles, dataset.wording, recipe.prompt, begin=llm.begin, end=llm.end,
        max_length=llm.max_length,
    )  # fmt: skip
    longest = np.argsort(builder.title_lengths, kind="stable")[-recipe.soft_tokens.num_candidates :]
    if not builder.fits(longest[None]):
        raise InputError(
            f"the {len(longest)} longest titles outgrow a prompt: the language model reads {llm.max_length} tokens. "
            "Lower prompt.max_title_tokens or soft_tokens.num_candidates, or take a model that reads more."
        )


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a run remembers of its data set."""
    return {
        "name": dataset.name, "sha256": dataset.sha256, "users": dataset.num_users, "items": dataset.num_items,
        "interactions": dataset.num_interactions, "wording": dataset.wording.model_dump(),
        "scenario": dataset.scenario,
    }  # fmt: skip


def plan_of(recipe: Recipe, folder: Path, on_progress: OnProgress) -> Plan:
    """The evaluation that a recipe asks for; scorers that it does not have, or that repeat another, are left out."""
    asked = recipe.evaluation
    idle = idle_controls(recipe.prompt) | ({"joint"} if recipe.alignment.network.kind == "identity" else set())
    idle |= set() if recipe.llm.enabled else {*LLM_SCORERS, "readout", "allround"}
    return Plan(
        protocols=asked.protocols,
        splits=asked.splits,
        llm_users={"valid": asked.llm_valid_users, "test": asked.llm_users},
        ablation_users=asked.ablation_users,
        catalogue_users=asked.catalogue_users,
        scorers=tuple(scorer for scorer in Plan.scorers if scorer not in idle),
        folder=folder,
        read_folders=(folder.with_name("fusion"),),
        seed=asked.bootstrap_seed,
        on_progress=on_progress,
    )


def idle_controls(prompt: PromptConfig) -> set[str]:
    """Controls that take away what a prompt does not have: their scores are those of ``llm``."""
    idle = {"llm-random-items"} if prompt.soft_token == "none" else set()
    return idle | ({"llm-no-soft"} if prompt.is_bare else set())


def metrics_of(run: RunFolder, dataset: Dataset, rankings: list[Ranking]) -> dict[str, Any]:
    """What ``metrics.json`` holds.

    Args:
        run: the run.
        dataset: its data set.
        rankings: of this evaluation and of earlier ones, as ``with_earlier`` joins them. Rows of other data sets that
            joined ``metrics.json`` stay.
    """
    seed, scenario = run.recipe().evaluation.bootstrap_seed, dataset.scenario
    masks = {split: segments(dataset, dataset.targets[split]) for split in {ranking.split for ranking in rankings}}
    stages = {"prepare": dataset.seconds} | {name: run.seconds(name) for name in TIMED}
    stages["fusion"] += run.seconds("content") + run.seconds("ensemble")
    results = [row for ranking in rankings for row in result_rows(ranking, masks[ranking.split], seed, scenario)]
    earlier = run.metrics() if (run.path / METRICS).is_file() else {}
    return {
        "format": FORMAT_VERSION,
        "dataset": {key: value for key, value in describe(dataset).items() if key != "wording"},
        "recipe": run.manifest["recipe"],
        "seed": run.manifest["seed"],
        "llm": run.manifest["llm"],
        "seconds": stages | {"total": sum(stages.values())},
        "scoring_seconds": scoring_seconds(run, rankings),
        "chance": chances(dataset, rankings),
        "results": results + [row for row in earlier.get("results", []) if "dataset" in row],
        "comparisons": corrected([row for lead in LEADS for row in comparison_rows(_led_by(lead, rankings), seed)]),
        "other_datasets": earlier.get("other_datasets", {}),
    }


def scoring_seconds(run: RunFolder, rankings: list[Ranking]) -> dict[str, float]:
    """Time by scorer, over splits, protocols and evaluations; scores that an earlier attempt kept count as read."""
    seconds: dict[str, float] = run.metrics()["scoring_seconds"] if (run.path / METRICS).is_file() else {}
    for ranking in rankings:
        seconds[ranking.scorer] = seconds.get(ranking.scorer, 0.0) + ranking.seconds
    return seconds


def chances(dataset: Dataset, rankings: list[Ranking]) -> dict[str, dict[str, float]]:
    """What a random order gives, by protocol: a mean over test lists as long as they are, or validation's lists."""
    splits: dict[str, set[str]] = {}
    for ranking in rankings:
        splits.setdefault(ranking.protocol, set()).add(ranking.split)
    found = {}
    for protocol, among in sorted(splits.items()):
        listed = dataset.targets["test" if "test" in among else "valid"].candidates.get(protocol)
        sizes = np.array([dataset.num_items]) if listed is None else (listed >= 0).sum(axis=1)
        lengths, counts = np.unique(sizes, return_counts=True)
        shares = counts / counts.sum()
        found[protocol] = {
            name: float(shares @ [chance(metric, k, int(length)) for length in lengths])
            for name, (metric, k) in CHANCES.items()
        }
    return found


def _led_by(lead: str, rankings: list[Ranking]) -> list[Ranking]:
    """The rankings that a scorer is tested against, itself first; those of earlier leads have been, and stay out."""
    groups = {(ranking.split, ranking.protocol) for ranking in rankings if ranking.scorer == lead}
    chosen = [
        ranking
        for ranking in rankings
        if (ranking.split, ranking.protocol) in groups and ranking.scorer not in LEADS[: LEADS.index(lead)]
    ]
    return sorted(chosen, key=lambda ranking: ranking.scorer != lead)
