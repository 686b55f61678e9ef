"""Scenarios: which interactions are trained on and which targets are evaluated; and the runs of a scenario.

What a scenario holds out is held out of everything: backbone, stage 1, stage 2, tuned texts, counts and fusion.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from allrec import seeds
from allrec.alignment.text_cache import default_cache
from allrec.backbones.registry import BackboneConfig
from allrec.config import Recipe
from allrec.data.dataset import Dataset, Targets, load_dataset, load_timestamps
from allrec.data.items import NewItems
from allrec.data.negatives import UserItems, draw_candidates
from allrec.data.split import split_at_times
from allrec.errors import InputError, nearest
from allrec.evaluation.evaluate import Plan
from allrec.files import sha256_text
from allrec.parallel import Observer, ignore
from allrec.recommender import AllRec
from allrec.runs.add_items import store_items

STREAM = "scenario"
"""The name of the random stream."""
COLD_LENGTH = 3
"""Interactions of a cold user: two of history and the target."""
UNSEEN_SHARE = 0.1
"""Share of the items that scenario ``unseen`` holds out."""
TIMES = (0.8, 0.9)
"""Shares of the interactions before validation and before test in scenario ``global-time``."""
CROSS_DOMAIN = "cross-domain"
FEW_SHOT = "few-shot-"
STEPS, SMALLEST = 10, 32
"""Steps that an epoch of a few-shot run has at least, and interactions that a batch has at least all the same."""
PATIENCE, EPOCHS = 100, 20
"""Of backbones, and of stage 1, in a few-shot run at least."""
NAMES = ("cold-users", "cold-users-2000", "few-shot-64", "few-shot-128", "few-shot-256", "unseen", "global-time")
"""Scenarios that train; the numbers may be others."""


class Scenario(NamedTuple):
    """A data set as changed by a scenario.

    Attributes:
        train: what every stage trains on.
        evaluated: whose targets are ranked; its catalogue begins with that of ``train``, further items are untrained.
    """

    train: Dataset
    evaluated: Dataset


def make_scenario(dataset: Dataset, name: str, seed: int) -> Scenario:
    """The data set as changed by one of the scenarios.

    Args:
        dataset: as it was prepared.
        name: one of ``NAMES``, with another number too; ``standard`` changes nothing.
        seed: draws users, items and candidates.

    Raises:
        InputError: an unknown scenario, or one that the data set is too small for or has no times for.
    """
    if name == "standard":
        return Scenario(dataset, dataset)
    counted = re.fullmatch(r"(cold-users|few-shot)-([0-9]+)", name)
    kind, number = counted.groups() if counted else (name, None)
    kinds: dict[str, Callable[[], Scenario]] = {
        "cold-users": lambda: _both(
            drawn_cold_users(dataset, int(number), seed) if number is not None else cold_users(dataset)
        ),
        "few-shot": lambda: _both(few_shot(dataset, int(number or 0), seed)),
        "unseen": lambda: unseen(dataset, seed),
        "global-time": lambda: _both(global_time(dataset, load_timestamps(dataset), seed)),
    }
    if kind not in kinds or name == "few-shot":
        raise InputError(f"unknown scenario {name!r}: {nearest(name, [*NAMES, CROSS_DOMAIN])}.")
    sha256 = sha256_text(f"{dataset.sha256} {name} {seed}")
    train, evaluated = (replace(made, scenario=name, sha256=sha256, counts=counts_of(made)) for made in kinds[kind]())
    return Scenario(train, evaluated)


def cold_users(dataset: Dataset) -> Dataset:
    """Users with exactly three interactions are held out of training and validation; only their targets are tested.

    Source: arXiv:2404.11343, section 5.2.2.

    Raises:
        InputError: no user has exactly three.
    """
    users = np.flatnonzero(np.diff(dataset.offsets) == COLD_LENGTH)
    if len(users) == 0:
        raise InputError(f"{dataset.name} has no user with exactly {COLD_LENGTH} interactions. Try cold-users-2000.")
    left_out = hold_out_users(dataset, users)
    test = left_out.targets["test"]
    return with_targets(left_out, test=test.take(np.isin(test.users, users)))


def drawn_cold_users(dataset: Dataset, num_users: int, seed: int) -> Dataset:
    """Randomly drawn users are held out of training and validation and cut to their first three interactions.

    The third is their test target, and other users have none. Its negatives are items that the user never interacted
    with, the interactions that were cut off included.

    Raises:
        InputError: the data set has no more users than that.
    """
    users = draw_users(dataset, num_users, seed, "cold-users")
    positions = np.full(len(users), COLD_LENGTH - 1)
    test = draw_targets(dataset, users, positions, seeds.rng(seed, STREAM, "cold users"))
    left_out = with_targets(hold_out_users(dataset, users), test=test)
    is_held_out = np.zeros(dataset.num_users, bool)
    is_held_out[users] = True
    owners, places = places_of(dataset)
    return without_interactions(left_out, is_held_out[owners] & (places >= COLD_LENGTH))


def few_shot(dataset: Dataset, num_users: int, seed: int) -> Dataset:
    """Training and validation have a few randomly drawn users only; the test targets of all users are evaluated.

    Source: arXiv:2404.11343, section 5.2.3.

    Raises:
        InputError: the data set has no more users than that.
    """
    users = draw_users(dataset, num_users, seed, "few-shot")
    return hold_out_users(dataset, np.setdiff1d(np.arange(dataset.num_users), users))


def unseen(dataset: Dataset, seed: int, share: float = UNSEEN_SHARE) -> Scenario:
    """Randomly drawn items are in no catalogue, history or list of training; test targets among them are evaluated.

    They come last in the evaluated catalogue, as items do that are added to a trained run. Evaluated histories lack
    them too: an item that was added today is in nobody's history.

    Raises:
        InputError: no test target is held out.
    """
    # An item without a text could never join.
    texts = np.flatnonzero([text is not None for text in dataset.texts])
    drawn = seeds.rng(seed, STREAM, "unseen texts").permutation(texts)
    is_known = np.ones(dataset.num_items, bool)
    is_known[drawn[: int(share * dataset.num_items)]] = False
    num_known = int(is_known.sum())
    whole = reorder_items(dataset, np.argsort(~is_known, kind="stable"))
    test = whole.targets["test"]
    is_target = np.zeros(whole.num_interactions, bool)
    is_target[whole.offsets[test.users] + test.positions] = True
    evaluated = without_interactions(whole, (whole.items >= num_known) & ~is_target)
    known = without_interactions(evaluated, evaluated.items >= num_known)
    test = evaluated.targets["test"]
    wanted = test.take(test.items >= num_known)
    if len(wanted) == 0:
        raise InputError(
            f"{dataset.name} has no test target among {dataset.num_items - num_known} held-out items of a user with "
            "another item. Take a larger data set."
        )
    no_targets = evaluated.targets["valid"].take(np.zeros(len(evaluated.targets["valid"]), bool))
    train = redraw_candidates(_chosen_items(known, np.arange(num_known)), seed)
    return Scenario(train, with_targets(evaluated, valid=no_targets, test=wanted))


def global_time(dataset: Dataset, times: Int[ndarray, "interactions"], seed: int) -> Dataset:
    """Training ends for everybody at one time; targets are each user's first interactions from it and a later one on.

    Args:
        dataset: its own split is ignored.
        times: UTC seconds of every interaction.
        seed: draws the negatives.

    Raises:
        InputError: no user has interactions on both sides of a time.
    """
    valid_from, test_from = (float(np.quantile(times, share)) for share in TIMES)
    owners, _ = places_of(dataset)
    split = split_at_times(owners, times * 1_000_000_000, dataset.num_users, valid_from, test_from)
    targets = {
        name: draw_targets(dataset, users, positions, seeds.rng(seed, STREAM, "global time", name))
        for name, (users, positions) in split.targets.items()
    }
    if not all(len(rows) for rows in targets.values()):
        raise InputError(f"{dataset.name} has no user on both sides of {valid_from} and {test_from} (UTC seconds).")
    return replace(dataset, train_lengths=split.train_lengths, targets=targets)


def hold_out_users(dataset: Dataset, users: Int[ndarray, "held_out"]) -> Dataset:
    """Removes users from training and validation; their test targets stay."""
    lengths = dataset.train_lengths.copy()
    lengths[users] = 0
    valid = dataset.targets["valid"]
    kept = valid.take(~np.isin(valid.users, users))
    return with_targets(replace(dataset, train_lengths=lengths), valid=kept)


def draw_users(dataset: Dataset, num_users: int, seed: int, what: str) -> Int[ndarray, "drawn"]:
    """A random sample of the evaluated users, ascending; a smaller draw of the same seed is part of a larger one.

    Raises:
        InputError: there are no more than that.
    """
    users = np.intersect1d(dataset.targets["valid"].users, dataset.targets["test"].users)
    if not 0 < num_users < len(users):
        raise InputError(
            f"got {what}-{num_users}, and {dataset.name} has {len(users)} users with a validation and a test target: "
            f"expected 1 to {len(users) - 1}. Give another number, as in {what}-{max(1, len(users) // 4)}."
        )
    return np.sort(seeds.rng(seed, STREAM, "users").permutation(users)[:num_users])


def draw_targets(
    dataset: Dataset, users: Int[ndarray, "rows"], positions: Int[ndarray, "rows"], rng: np.random.Generator
) -> Targets:
    """Targets at these places, with lists of candidates as long as the data set has them."""
    targets = dataset.items[dataset.offsets[users] + positions]
    seen = UserItems(places_of(dataset)[0], dataset.items, dataset.num_users, dataset.num_items)
    candidates = {
        protocol: draw_candidates(users, targets, seen, lists.shape[1] - 1, rng)
        for protocol, lists in dataset.targets["test"].candidates.items()
    }
    return Targets(users.astype(np.int32), positions.astype(np.int64), targets.astype(np.int32), candidates)


def redraw_candidates(dataset: Dataset, seed: int) -> Dataset:
    """The same targets, with lists drawn from the catalogue as it is."""
    drawn = {
        split: draw_targets(dataset, rows.users, rows.positions, seeds.rng(seed, STREAM, "redrawn", split))
        for split, rows in dataset.targets.items()
    }
    return replace(dataset, targets=drawn)


def without_interactions(dataset: Dataset, is_dropped: Bool[ndarray, "interactions"]) -> Dataset:
    """A data set without some interactions; targets among them go, and targets left without a history."""
    kept_before = np.concatenate([[0], np.cumsum(~is_dropped)])
    starts = dataset.offsets[:-1]
    targets = {}
    for split, rows in dataset.targets.items():
        begins = dataset.offsets[rows.users]
        moved = replace(rows, positions=kept_before[begins + rows.positions] - kept_before[begins])
        targets[split] = moved.take(~is_dropped[begins + rows.positions] & (moved.positions > 0))
    return replace(
        dataset,
        items=dataset.items[~is_dropped],
        offsets=kept_before[dataset.offsets],
        train_lengths=kept_before[starts + dataset.train_lengths] - kept_before[starts],
        targets=targets,
    )


def reorder_items(dataset: Dataset, order: Int[ndarray, "items"]) -> Dataset:
    """The same data set with its catalogue in another order: item ``order[i]`` moves to ``i``."""
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    targets = {
        split: replace(
            rows,
            items=place[rows.items],
            candidates={name: np.where(ids < 0, ids, place[ids]) for name, ids in rows.candidates.items()},
        )
        for split, rows in dataset.targets.items()
    }
    return replace(_chosen_items(dataset, order), items=place[dataset.items], targets=targets)


def with_targets(dataset: Dataset, **targets: Targets) -> Dataset:
    """The data set with other targets for the splits that are named."""
    return replace(dataset, targets=dataset.targets | targets)


def places_of(dataset: Dataset) -> tuple[Int[ndarray, "interactions"], Int[ndarray, "interactions"]]:
    """The user of each interaction, and its position in that user's sequence."""
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    return owners, np.arange(dataset.num_interactions) - dataset.offsets[owners]


def counts_of(dataset: Dataset) -> dict[str, int]:
    """The counts of a changed data set."""
    return {
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": dataset.num_interactions,
        "train_interactions": int(dataset.train_lengths.sum()),
        "evaluated_valid": len(dataset.targets["valid"]),
        "evaluated_test": len(dataset.targets["test"]),
    }


def _chosen_items(dataset: Dataset, items: Int[ndarray, "chosen"]) -> Dataset:
    genres = dataset.genres
    return replace(
        dataset,
        item_ids=[dataset.item_ids[item] for item in items],
        titles=[dataset.titles[item] for item in items],
        texts=[dataset.texts[item] for item in items],
        genres=None if genres is None else [genres[item] for item in items],
    )


def _both(dataset: Dataset) -> Scenario:
    return Scenario(dataset, dataset)


def train_scenario(
    dataset: Dataset | Path | str,
    name: str,
    run: Path | str,
    *,
    recipe: Recipe,
    llm: str | None = None,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    observer: Observer = ignore,
) -> AllRec:
    """Trains and evaluates a recipe in a scenario; the recipe's seed draws what is held out.

    Args:
        dataset: a prepared data set or its folder.
        name: one of ``NAMES``, with another number too.
        run: folder to write, see ``AllRec.train``.
        recipe: complete.
        llm: see ``AllRec.train``.
        resume: continue where the run stopped.
        cache: folder of cached text embeddings.
        device: see ``AllRec.train``.
        observer: receives the progress.

    Raises:
        InputError: an unknown scenario, one that trains nothing, or what ``AllRec.train`` refuses.
    """
    made = _made(dataset, name, recipe.seed)
    if recipe.refit != "none" and made.evaluated.num_items > made.train.num_items:
        raise InputError(f"{name} has items that are added after training, and a refit has none. Set refit=none.")
    if name.startswith(FEW_SHOT):
        recipe = few_shot_recipe(recipe, int(made.train.train_lengths.sum()))
    system = AllRec.train(
        made.train, run=run, recipe=recipe, llm=llm, resume=resume, cache=cache, device=device, observer=observer,
        is_evaluated=False,
    )  # fmt: skip
    if made.evaluated.num_items > system.model.catalogue.num_items:
        later = later_items(made.evaluated, made.train.num_items)
        store_items(system.run, later, cache or default_cache(), device=system.model.device)
        system = AllRec(system.model.reloaded())
    system.evaluate(made.evaluated, observer=observer)
    return system


def few_shot_recipe(recipe: Recipe, num_interactions: int) -> Recipe:
    """The recipe with batches that leave an epoch of few interactions at least ten steps, and more patience.

    A batch sized for thousands of users holds all of a hundred users: in a recipe's epochs hardly anything is learned
    then (docs/experiments.md). Smaller batches and more patience than these are kept.

    Args:
        recipe: complete.
        num_interactions: of training.
    """
    most = max(SMALLEST, num_interactions // STEPS)
    evidence, alignment = recipe.fusion.evidence, recipe.alignment
    return recipe.changed(
        backbone=_small(recipe.backbone, most),
        alignment__batch_size=min(alignment.batch_size, most),
        alignment__loop__epochs=max(alignment.loop.epochs, EPOCHS),
        fusion__evidence__content__backbone=_small(evidence.content.backbone, most),
        fusion__evidence__tower__batch_size=min(evidence.tower.batch_size, most),
    )


def _small(config: BackboneConfig, most: int) -> BackboneConfig:
    patience = max(config.loop.patience_steps, PATIENCE) if config.loop.patience_steps else 0
    return config.changed(tokens_per_batch=min(config.tokens_per_batch, most), loop__patience_steps=patience)


def later_items(dataset: Dataset, num_known: int) -> NewItems:
    """The items after the first ``num_known``, to be added to a run that was trained on those."""
    genres = dataset.genres or [[] for _ in dataset.item_ids]
    columns = (dataset.item_ids, dataset.titles, dataset.texts, genres)
    return NewItems(*(column[num_known:] for column in columns))  # type: ignore[arg-type]


def evaluate_scenario(system: AllRec, dataset: Dataset | Path | str, name: str, plan: Plan | None = None) -> None:
    """Evaluates a run again in the scenario that it was trained for, and writes its ``metrics.json``.

    Raises:
        InputError: the run was trained for another scenario, or on other data.
    """
    made = _made(dataset, name, system.run.manifest["seed"])
    own = system.run.manifest["dataset"]
    # Another data set altogether is refused by the evaluation itself.
    is_plain = name == own.get("scenario", name) == "standard"
    if own["sha256"] != made.evaluated.sha256 and not is_plain:
        raise InputError(
            f"{system.run.path} was trained on {own['name']!r}, scenario {own.get('scenario', 'standard')}, and may "
            f"have seen what {name} holds out of {made.evaluated.name!r}. Train one: allrec scenario DATASET "
            f"--scenario {name} --out DIR"
        )
    system.evaluate(made.evaluated, plan=plan)


def _made(dataset: Dataset | Path | str, name: str, seed: int) -> Scenario:
    if name == CROSS_DOMAIN:
        raise InputError(f"{CROSS_DOMAIN} trains nothing of its own: allrec evaluate RUN DATASET --scenario {name}")
    return make_scenario(dataset if isinstance(dataset, Dataset) else load_dataset(dataset), name, seed)
