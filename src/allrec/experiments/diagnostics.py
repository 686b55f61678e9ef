"""Diagnostics of a run: sensitivity to the history's order and a candidate's place in the prompt, invalid answers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec import seeds
from allrec.data.dataset import Dataset, load_dataset
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import InputError
from allrec.evaluation.metrics import hits_at, tested_metrics
from allrec.evaluation.ranks import candidate_ranks
from allrec.evaluation.results import alike, corrected
from allrec.evaluation.segments import sample_rows
from allrec.evaluation.significance import bootstrap_interval, compare
from allrec.experiments.scenarios import make_scenario
from allrec.files import write_json
from allrec.hybrid.features import histories_of
from allrec.hybrid.ranking import FusedRanker
from allrec.llm.generation import WrittenTitle, write_titles
from allrec.parallel import Observer, ignore
from allrec.recommender import AllRec
from allrec.runs.trained_model import TrainedModel

STREAM = "diagnostics"
"""The name of the random stream."""
SAMPLES = 20_000
"""Draws of the test of even places."""
Histories = Sequence[Int[ndarray, "length"]]
Score = Callable[[Histories, Int[ndarray, "users candidates"]], Float[ndarray, "users candidates"]]
"""Scores lists of candidates for histories; -1 pads a list, and the score of padding is ignored."""


class EvaluatedLists(NamedTuple):
    """The evaluated users with their candidate lists.

    Attributes:
        histories: before the targets, oldest first.
        candidates: each with its target once, -1 pads.
        targets: items.
    """

    histories: list[Int[ndarray, "length"]]
    candidates: Int[ndarray, "users candidates"]
    targets: Int[ndarray, "users"]

    @property
    def clusters(self) -> Int[ndarray, "users"]:
        """Users of one history and one target have one number."""
        return alike(self.histories, self.targets)

    def rows(self, chosen: Int[ndarray, "chosen"]) -> "EvaluatedLists":
        """Some of the users."""
        return EvaluatedLists([self.histories[row] for row in chosen], self.candidates[chosen], self.targets[chosen])


def sample_test_lists(dataset: Dataset, protocol: str, num_users: int, seed: int) -> EvaluatedLists:
    """A fixed sample of the test users with their stored lists, the same as the evaluation's.

    Raises:
        InputError: there is no test target, or no such list.
    """
    targets = dataset.targets["test"]
    if len(targets) == 0 or protocol not in targets.candidates:
        raise InputError(f"{dataset.name} stores no test lists of protocol {protocol!r}, so nothing can be diagnosed.")
    rows = sample_rows(len(targets), num_users, seed)
    starts = dataset.offsets[targets.users[rows]]
    ends = starts + targets.positions[rows]
    histories = [dataset.items[start:end] for start, end in zip(starts, ends, strict=True)]
    return EvaluatedLists(histories, targets.candidates[protocol][rows], targets.items[rows])


def order_of_history(scorers: Mapping[str, Score], lists: EvaluatedLists, seed: int) -> list[dict[str, Any]]:
    """What each scorer loses when every history is shuffled, over the users with two different items at least.

    ``changed`` is the share of users whose first choice changes, ``correlation`` the mean over users of the correlation
    of the candidates' scores before and after; None where scores do not differ. A positive difference means that the
    true order is better.
    """
    movable = np.flatnonzero([len(np.unique(history)) > 1 for history in lists.histories])
    if len(movable) == 0:
        return []
    part, rng = lists.rows(movable), seeds.rng(seed, STREAM, "history order")
    own = part.clusters
    shuffled = [reordered(history, rng) for history in part.histories]
    rows = []
    for name, score in scorers.items():
        kept, mixed = score(part.histories, part.candidates), score(shuffled, part.candidates)
        ranks = [candidate_ranks(scores, part.candidates, part.targets) for scores in (kept, mixed)]
        rows += [
            {"scorer": name, "metric": metric, "users": len(movable), "kept": float(values(ranks[0]).mean()),
             "shuffled": float(values(ranks[1]).mean())}
            | compare(values(ranks[0]), values(ranks[1]), seeds.rng(seed, STREAM, "paired", len(movable)), own).row()
            | {"changed": float((first_choices(kept, part) != first_choices(mixed, part)).mean()),
               "correlation": mean_correlation(kept, mixed, part.candidates >= 0)}
            for metric, (values, _) in tested_metrics().items()
        ]  # fmt: skip
    return corrected(rows, ("metric",))


def place_in_prompt(score: Score, lists: EvaluatedLists, num_orders: int, seed: int) -> dict[str, Any]:
    """Whether a candidate's place in the list matters: the same lists in several random orders.

    Without an effect of place every place holds the first choice equally often, whatever the users like; ``p`` is the
    chance of counts as uneven as these. ``averaged`` scores each candidate by its mean over the orders.

    Args:
        score: such as the language model's.
        lists: padding stays at the end of a list.
        num_orders: orders a user, drawn.
        seed: draws them.
    """
    rng = seeds.rng(seed, STREAM, "candidate order")
    width = lists.candidates.shape[1]
    total = np.zeros(lists.candidates.shape)
    hits, target_places, first_places = [], [], []
    for _ in range(num_orders):
        order = np.argsort(np.where(lists.candidates < 0, 2.0, rng.random(lists.candidates.shape)), axis=1)
        listed = lists._replace(candidates=np.take_along_axis(lists.candidates, order, axis=1))
        scores = score(listed.histories, listed.candidates)
        np.put_along_axis(total, order, np.take_along_axis(total, order, axis=1) + scores, axis=1)
        hits.append(hits_at(candidate_ranks(scores, listed.candidates, listed.targets), 1))
        target_places.append((listed.candidates == listed.targets[:, None]).argmax(axis=1))
        first_places.append(first_choices(scores, listed))
    averaged = hits_at(candidate_ranks(total, lists.candidates, lists.targets), 1)
    means = np.mean(hits, axis=0)
    interval = bootstrap_interval(means, seeds.rng(seed, STREAM, "interval"), lists.clusters)
    return {
        "users": len(lists.targets), "orders": num_orders,
        "HR@1": float(means.mean()), "ci95": list(interval),
        "by_order": [float(values.mean()) for values in hits], "averaged": float(averaged.mean()),
        "places": by_place(np.concatenate(target_places), np.concatenate(hits), np.concatenate(first_places), width),
        "p": even_p(np.bincount(np.concatenate(first_places), minlength=width), lists.candidates, num_orders, rng),
    }  # fmt: skip


def by_place(
    target_places: Int[ndarray, "rows"],
    hits: Float[ndarray, "rows"],
    first_places: Int[ndarray, "rows"],
    width: int,
) -> list[dict[str, Any]]:
    """A row a place: the number of targets there, their hit rate, and the share of first choices there."""
    rows = []
    for place in range(width):
        own = hits[target_places == place]
        hit_rate = float(own.mean()) if len(own) else None
        first = float((first_places == place).mean())
        rows.append({"place": place + 1, "targets": len(own), "HR@1": hit_rate, "first_choices": first})
    return rows


def even_p(
    counts: Int[ndarray, "places"], candidates: Int[ndarray, "users candidates"], num_orders: int, rng: Any
) -> float:
    """The p of counts at least as uneven, under a uniform choice among each user's places.

    Pearson's chi-square over draws of the same lists; never below 1 / (draws + 1).
    """
    lengths, users = np.unique((candidates >= 0).sum(axis=1), return_counts=True)
    shares = np.array([(np.arange(len(counts)) < length) / length for length in lengths])
    expected = num_orders * (users[:, None] * shares).sum(axis=0)
    is_used = expected > 0
    drawn = sum(
        rng.multinomial(num_orders * number, share, SAMPLES) for number, share in zip(users, shares, strict=True)
    )
    uneven = ((np.vstack([counts, drawn]) - expected) ** 2)[:, is_used] @ (1 / expected[is_used])
    return float((1 + (uneven[1:] >= uneven[0] * (1 - 1e-12)).sum()) / (1 + SAMPLES))


def written_answers(answers: Sequence[WrittenTitle], item_ids: Sequence[str], lists: EvaluatedLists) -> dict[str, Any]:
    """The share of written titles that are in the catalogue, among the candidates, the target's.

    ``invalid`` is the share that names no candidate. A title that several items share counts as each of them.
    """
    is_hit = [item_ids[target] in answer.item_ids for answer, target in zip(answers, lists.targets, strict=True)]
    hits = np.array(is_hit, np.float64)
    interval = bootstrap_interval(hits, seeds.rng(0, STREAM, "hits", len(hits)), lists.clusters)
    return {
        "users": len(answers),
        "invalid": float(np.mean([not answer.is_candidate for answer in answers])),
        "outside_catalogue": float(np.mean([not answer.is_in_catalogue for answer in answers])),
        "HR@1": float(hits.mean()),
        "ci95": list(interval),
    }


def dot_product(represent: Callable[[Histories], Tensor], items: Float[Tensor, "items dim"]) -> Score:
    """x_u · item as a score of lists."""

    def score(histories: Histories, candidates: Int[ndarray, "users candidates"]) -> Float[ndarray, "users candidates"]:
        wanted = items[torch.from_numpy(candidates.clip(min=0)).long()]
        return torch.einsum("ud,ucd->uc", represent(histories), wanted).numpy()

    return score


def reordered(history: Int[ndarray, "length"], rng: np.random.Generator) -> Int[ndarray, "length"]:
    """A random order of a history of at least two different items that is not its own."""
    while True:
        drawn = rng.permutation(history)
        if (drawn != history).any():
            return drawn


def first_choices(scores: Float[ndarray, "users candidates"], lists: EvaluatedLists) -> Int[ndarray, "users"]:
    """The place of the best-scored candidate of each user; the first one where several are."""
    return np.where(lists.candidates >= 0, scores, -np.inf).argmax(axis=1)


def mean_correlation(
    first: Float[ndarray, "users candidates"], second: Float[ndarray, "users candidates"], is_candidate: ndarray
) -> float | None:
    """Mean over users of Pearson's correlation of their candidates' scores; users of equal scores are left out."""
    correlations = []
    for one, other, kept in zip(first.astype(np.float64), second.astype(np.float64), is_candidate, strict=True):
        if kept.sum() > 1 and one[kept].std() > 0 and other[kept].std() > 0:
            correlations.append(np.corrcoef(one[kept], other[kept])[0, 1])
    return float(np.mean(correlations)) if correlations else None


FORMAT_VERSION = 1
DIAGNOSTICS = "diagnostics.json"
WRITTEN_TOGETHER = 16
"""Users whose answers are generated at one time."""


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
        num_users: users at most, those that an evaluation takes first.
        num_orders: orders of every prompt's candidates.
        observer: receives the progress.

    Returns:
        ``history``: see ``order_of_history``. ``places`` and ``answers``: see ``place_in_prompt`` and
        ``written_answers``; None where the run has no language model, or its prompt no room for the lists.

    Raises:
        InputError: another data set than the run's, or one without test lists.
    """
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    model, run = system.measured, system.run
    dataset = make_scenario(dataset, run.manifest["dataset"].get("scenario", "standard"), model.recipe.seed).evaluated
    run.check_dataset(dataset.sha256, dataset.name)
    seed, protocol = model.recipe.evaluation.bootstrap_seed, EvaluationProtocol.PAPER
    lists = sample_test_lists(dataset, protocol, num_users, seed)
    scorers = list_scorers(model, lists)
    observer("diagnose", 0.0, {})
    history = order_of_history(scorers, lists, seed)
    observer("diagnose", 0.3, {})
    places = place_in_prompt(scorers["llm"], lists, num_orders, seed) if "llm" in scorers else None
    observer("diagnose", 0.7, {})
    answers = written_answers(written(model, lists), model.catalogue.item_ids, lists) if places else None
    observer("diagnose", 1.0, {})
    result = {
        "format": FORMAT_VERSION, "dataset": dataset.name, "scenario": dataset.scenario, "protocol": protocol,
        "llm": run.manifest["llm"]["name"], "seed": seed, "history": history, "places": places, "answers": answers,
    }  # fmt: skip
    write_json(run.path / DIAGNOSTICS, result)
    return result


def list_scorers(model: TrainedModel, lists: EvaluatedLists) -> dict[str, Score]:
    """The scorers of a run for given lists, by name."""
    scorers = {
        "cf": dot_product(model.represent, model.item_embeddings),
        "joint": dot_product(model.represent, model.joint_embeddings),
    }
    if model.fused_ranker is not None:
        scorers["fusion"] = partial(fused_scores_of, model.fused_ranker)
    if model.has_llm and model.recipe.readout.enabled:
        scorers["readout"] = partial(model.llm_scores, name="readout")
    if model.has_llm and model.titles.fits(lists.candidates):
        scorers["llm"] = model.llm_scores
    return scorers


def fused_scores_of(
    ranker: FusedRanker, histories: Histories, candidates: Int[ndarray, "users candidates"]
) -> Float[ndarray, "users candidates"]:
    """The fused score of every candidate."""
    return np.concatenate([scored.scores for scored in ranker.rank_lists(histories_of(histories), candidates)])


def written(model: TrainedModel, lists: EvaluatedLists) -> list[WrittenTitle]:
    """The likeliest title for each user, in greedy steps."""
    answers = []
    for start in range(0, len(lists.targets), WRITTEN_TOGETHER):
        part = lists.rows(np.arange(start, min(start + WRITTEN_TOGETHER, len(lists.targets))))
        users = model.represent(part.histories)
        answers += [
            row[0] for row in write_titles(model.titles, model.catalogue, users, part.histories, part.candidates)
        ]
    return answers
