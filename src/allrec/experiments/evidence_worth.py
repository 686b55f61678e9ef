"""What each evidence is worth: a run's fusion fitted again without it, on validation, of the same trained parts.

Nothing is trained again but fusion's own weights, over given lists (protocol ``paper``). Retrieval keeps all sources,
since no list comes of it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec.config import Recipe
from allrec.data.dataset import Dataset
from allrec.errors import InputError
from allrec.evaluation.ranks import candidate_ranks
from allrec.evaluation.results import RANKS, Ranking, save_ranks
from allrec.experiments.summary import ABLATIONS, FUSION
from allrec.hybrid.features import CONTEXT, FREE, HISTORY, POOLS, families, histories_before
from allrec.hybrid.fitting import LISTED, FusionStageConfig, Lists, Roles, cross_fit, folds_of, lists_of
from allrec.hybrid.fusion import Fusion, fused_scores
from allrec.parallel import Observer, ignore
from allrec.runs.run_folder import RunFolder
from allrec.runs.trained_model import TrainedModel

SPACES = ("text", "tuned_text", "cf_items", "content_items", "words", "neighbours")
TRAINED = ("cf", "content", "joint", "tuned_text")
"""Beginnings of the names of evidence that anything was trained for."""
STAGE = "evidence_worth"
"""Its name for observers."""


def evidence_names(recipe: Recipe) -> list[str]:
    """Names of the evidence of a run of the recipe, all but the language model's."""
    joint = [] if recipe.alignment.network.kind == "identity" else ["joint"]
    return ["cf", "content", *joint, *(f"{space}_{pool}" for space in SPACES for pool in POOLS), *HISTORY]


def parts_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is left out, by what it is called: all that was trained, each family of several, and each evidence.

    Example:
        >>> parts_of(["cf", "joint", "text_largest", "text_mean"])["the family text"]
        ('text_largest', 'text_mean')
    """
    by_family: dict[str, list[str]] = {}
    for name in names:
        by_family.setdefault(next(iter(families({name: 0.0}))), []).append(name)
    parts = {"anything trained": tuple(name for name in names if name.startswith(TRAINED))}
    parts |= {f"the family {family}": tuple(members) for family, members in by_family.items() if len(members) > 1}
    return parts | {name: (name,) for name in names}


def check_ablated(recipe: Recipe) -> None:
    """Refuses a recipe whose runs have no fusion of given lists."""
    if not recipe.fusion.enabled or LISTED not in recipe.evaluation.protocols:
        raise InputError(
            f"the ablation of fusion needs a fusion and protocol {LISTED}, and recipe {recipe.name!r} lacks one. "
            f"Compare another: --recipes allround"
        )


def is_measured(run: RunFolder, scorer: str) -> bool:
    """Whether the ranks of a fusion without some evidence are there already."""
    return (run.path / ABLATIONS / scorer / RANKS).is_file()


class Evaluated(NamedTuple):
    """The lists of a run with all of its evidence.

    Attributes:
        names: of the evidence.
        lists: of each split, evidence computed.
        folds: of the validation rows.
    """

    names: list[str]
    lists: dict[str, Lists]
    folds: Int[ndarray, "rows"]


def measure_left_out(
    model: TrainedModel, dataset: Dataset, wanted: Mapping[str, Sequence[str]], observer: Observer = ignore
) -> None:
    """Ranks by fusions that lack some evidence, and writes the ranks of each into the run's folder.

    Args:
        model: of a run with a fusion.
        dataset: the run's.
        wanted: names of the evidence to leave out, by the name of the scorer.
        observer: receives the progress.
    """
    config, seed = model.recipe.fusion, model.recipe.seed
    evaluated = evaluated_lists(model, dataset)
    for number, (scorer, left_out) in enumerate(wanted.items(), 1):
        rankings = rankings_without(evaluated, left_out, config, seed, scorer)
        save_ranks(model.run.path / ABLATIONS / scorer, rankings, dataset)
        observer(STAGE, number / len(wanted), {})


def evaluated_lists(model: TrainedModel, dataset: Dataset) -> Evaluated:
    """The lists of validation, which fusion is fitted on, and of test."""
    config, seed, evidence = model.recipe.fusion, model.recipe.seed, model.evidence
    valid, _ = lists_of("lists", dataset, evidence, config, seed)
    targets = dataset.targets["test"]
    candidates = targets.candidates[LISTED]
    test = Lists(evidence.features(histories_before(dataset, targets), candidates), candidates, targets.items)
    _, folds = folds_of(dataset, config.training.model.members, seed)
    return Evaluated(evidence.names, {"valid": valid, "test": test}, folds)


def rankings_without(
    evaluated: Evaluated, left_out: Sequence[str], config: FusionStageConfig, seed: int, scorer: str = FUSION
) -> list[Ranking]:
    """The ranks of a fusion that was fitted without some evidence, as evaluation ranks by a whole one.

    Context that is left out is taken from the gates as well. Without ``log_count`` the weights of rare targets cannot
    be told either.
    """
    kept = [place for place, name in enumerate(evaluated.names) if name not in left_out]
    names = [evaluated.names[place] for place in kept]
    roles = Roles(names, [name for name in FREE if name in names], [name for name in CONTEXT if name in names])
    lists = {split: one._replace(features=one.features[:, :, kept]) for split, one in evaluated.lists.items()}
    fitted = cross_fit(lists["valid"], roles, config.training, evaluated.folds, seed=seed)
    folds = {"valid": evaluated.folds}
    return [
        Ranking(split, LISTED, scorer, np.arange(len(one.targets)), _ranks(fitted.model, one, folds.get(split)))
        for split, one in lists.items()
    ]


def _ranks(model: Fusion, lists: Lists, folds: Int[ndarray, "rows"] | None) -> Int[ndarray, "rows"]:
    scores: Float[ndarray, "rows candidates"] = fused_scores(model, lists.features, folds)
    return candidate_ranks(scores, lists.candidates, lists.targets)
