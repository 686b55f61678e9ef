"""Diagnoses a run: every scorer that it has, and what its language model writes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec.artifacts import write_json
from allrec.data import Dataset, load_dataset
from allrec.evidence.histories import histories_of
from allrec.experiments.diagnostics import (
    Asked,
    Histories,
    Score,
    asked_of,
    dot_product,
    order_of_history,
    place_in_prompt,
    written_answers,
)
from allrec.experiments.scenarios import make_scenario
from allrec.generating import WrittenTitle, write_titles
from allrec.pipeline import Observer, ignore
from allrec.recommender import AllRec
from allrec.scoring import LlmScorer, Scoring

FORMAT_VERSION = 1
DIAGNOSTICS = "diagnostics.json"
WRITTEN_TOGETHER = 16
"""Users whose answers are written at one time."""


def diagnose(
    system: AllRec,
    dataset: Dataset | Path | str,
    *,
    num_users: int = 500,
    num_orders: int = 5,
    observer: Observer = ignore,
) -> dict[str, Any]:
    """Diagnoses a run on a fixed sample of its test users, and writes ``diagnostics.json`` into its folder.

    Args:
        system: the run.
        dataset: its data set, as it was prepared.
        num_users: at most so many users, those whom an evaluation takes first.
        num_orders: orders of every prompt's candidates.
        observer: told of progress.

    Returns:
        ``history``: see ``order_of_history``. ``places`` and ``answers``: see ``place_in_prompt`` and
        ``written_answers``; None where the run has no language model, or its prompt no room for the lists.

    Raises:
        InputError: another data set than the run's, or one without test lists.
    """
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    scoring, run = system.scoring, system.run
    dataset = make_scenario(dataset, run.manifest["dataset"].get("scenario", "standard"), scoring.recipe.seed).asked
    run.check_dataset(dataset.sha256, dataset.name)
    seed, protocol = scoring.recipe.evaluation.bootstrap_seed, "paper"
    asked = asked_of(dataset, protocol, num_users, seed)
    scorers = list_scorers(scoring, asked)
    observer("diagnose", 0.0, {})
    history = order_of_history(scorers, asked, seed)
    observer("diagnose", 0.3, {})
    places = place_in_prompt(scorers["llm"], asked, num_orders, seed) if "llm" in scorers else None
    observer("diagnose", 0.7, {})
    answers = written_answers(written(scoring, asked), scoring.catalogue.item_ids, asked) if places else None
    observer("diagnose", 1.0, {})
    result = {
        "format": FORMAT_VERSION, "dataset": dataset.name, "scenario": dataset.scenario, "protocol": protocol,
        "llm": run.manifest["llm"]["name"], "seed": seed, "history": history, "places": places, "answers": answers,
    }  # fmt: skip
    write_json(run.path / DIAGNOSTICS, result)
    return result


def list_scorers(scoring: Scoring, asked: Asked) -> dict[str, Score]:
    """What a run scores given lists with, by name."""
    scorers = {
        "cf": dot_product(scoring.represent, scoring.item_embeddings),
        "joint": dot_product(scoring.represent, scoring.joint_embeddings),
    }
    fused = scoring.fused
    if fused is not None:
        score = fused.score("lists")
        scorers["fusion"] = lambda histories, candidates: fused.score_lists(histories_of(histories), candidates, score)
    if scoring.readout is not None:
        scorers["readout"] = partial(with_llm, scoring, "readout")
    if scoring.soft_tokens is not None and scoring.can_list(asked.candidates):
        scorers["llm"] = partial(with_llm, scoring, "llm")
    return scorers


def with_llm(
    scoring: Scoring, scorer: LlmScorer, histories: Histories, candidates: Int[ndarray, "users candidates"]
) -> Float[ndarray, "users candidates"]:
    """What the language model makes of every candidate: log P(title | prompt), or the read-out head's score."""
    return scoring.score_with_llm(scoring.represent(histories), histories, candidates, scorer)


def written(scoring: Scoring, asked: Asked) -> list[WrittenTitle]:
    """The likeliest title for each user, in greedy steps."""
    answers = []
    for start in range(0, len(asked.targets), WRITTEN_TOGETHER):
        part = asked.rows(np.arange(start, min(start + WRITTEN_TOGETHER, len(asked.targets))))
        users = scoring.represent(part.histories)
        answers += [row[0] for row in write_titles(scoring, users, part.histories, part.candidates)]
    return answers
