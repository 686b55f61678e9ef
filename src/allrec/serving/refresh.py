"""``allrec refresh``: trains a run again from what serves and the store's events, and publishes it unless it is worse.

The new run learns from the histories of the run that serves and every event since. Both are then asked for the newest
item of users who have events, from what came before it; the new run answers with the parts that have not seen it
(``AllRec.measured``), and what is published was trained on everything.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec import seeds
from allrec.config import Recipe, load_recipe
from allrec.data.catalogue import Catalogue
from allrec.data.config import PrepareConfig
from allrec.data.dataset import Dataset, is_dataset, load_dataset
from allrec.data.preparation import prepare
from allrec.errors import InputError
from allrec.evaluation.metrics import gains_at
from allrec.evaluation.significance import bootstrap_interval
from allrec.files import read_json, write_json
from allrec.parallel import Observer, ignore
from allrec.recommender import AllRec
from allrec.runs.run_folder import MANIFEST, RECIPE
from allrec.runs.trained_model import TrainedModel
from allrec.serving.records import Event, Item, ModelVersion
from allrec.serving.snapshots import behind, load_checked, refresh_folder, text_of
from allrec.serving.store import Store
from allrec.serving.store_users import digest_of

REPORT = "refresh.json"
"""Beside the new run, in its ``.refresh`` folder: how far a refresh is, and how it ended."""
K = 10
ABSENT = -2  # no item; -1 pads
PAGE = 10_000
"""Events and items that are read from the store at a time."""
LEAST_USERS = 30
"""With fewer users to compare on nothing is published: no interval of so few says anything."""


@dataclass(frozen=True)
class RefreshConfig:
    """How a run is made anew.

    Attributes:
        margin: NDCG@10 that the new run may lose at most, at the lower end of the 95% interval of the difference.
        num_users: users who are compared on, at most; the latest events' users come first.
        sets: changes of the recipe, ``key=value``.
        cache: folder of cached text embeddings; the usual one where None.
    """

    margin: float = 0.01
    num_users: int = 2000
    sets: tuple[str, ...] = ()
    cache: Path | None = None


def refresh(
    store: Store, tenant: str, out: Path, config: RefreshConfig | None = None, observer: Observer = ignore
) -> dict[str, Any]:
    """Trains, compares and publishes; called again after a kill it goes on.

    Args:
        store: of the service.
        tenant: whose run is made anew.
        out: the new run's folder, beside the runs that serve.
        config: the comparison, and changes of the recipe.
        observer: told of each stage of the training.

    Returns:
        What ``REPORT`` holds: ``state``, ``users``, ``ndcg`` of both, ``difference`` and its interval, ``published``.

    Raises:
        InputError: nothing serves, there is no event, or the folder holds something else.
    """
    config, serving = config or RefreshConfig(), store.serving(tenant)
    if serving is None:
        raise InputError(f"no run serves tenant {tenant!r}, so none can be made anew. Publish one first: allrec serve.")
    folder = refresh_folder(out)
    report = _begun(folder, serving, out)
    if report["state"] == "done":
        return report
    try:
        report = _made(store, tenant, out, config, observer, report, serving)
    except Exception as error:
        write_json(folder / REPORT, report | {"state": "failed", "reason": str(error), "at": time.time()})
        raise
    write_json(folder / REPORT, report)
    return report


def _made(
    store: Store,
    tenant: str,
    out: Path,
    config: RefreshConfig,
    observer: Observer,
    report: dict[str, Any],
    serving: ModelVersion,
) -> dict[str, Any]:
    """Trains, compares and publishes; the report of its end."""
    folder = refresh_folder(out)
    old = AllRec.from_pretrained(report["from_run"])
    is_refreshed = refresh_folder(old.run.path).is_dir()
    dataset = _dataset(store, tenant, old.model.catalogue, folder, is_refreshed)
    recipe = _recipe(old, config)

    new = AllRec.train(
        dataset,
        run=out,
        recipe=recipe,
        resume=(out / MANIFEST).is_file(),
        cache=config.cache,
        observer=_telling(folder / REPORT, report, observer),
    )
    report |= compared(old, new, newest(dataset, old.model.catalogue, config.num_users), config.margin)
    if report["published"]:
        load_checked(str(out), 0)
        is_published = serving.run == str(out)  # before a kill that came ahead of the report
        report["version"] = serving.version if is_published else store.publish(tenant, run=str(out)).version
    return report | {"state": "done", "at": time.time()}


def _telling(file: Path, report: dict[str, Any], observer: Observer) -> Observer:
    """Writes down how far the training is, once a second at most, and passes it on."""
    written = [0.0]

    def on_progress(stage: str, share: float, values: dict[str, float], *more: Any) -> None:
        if time.time() - written[0] >= 1:
            written[0] = time.time()
            write_json(file, report | {"state": "training", "stage": stage, "share": share, "at": written[0]})
        observer(stage, share, values, *more)

    return on_progress


def reports(runs_root: Path) -> list[dict[str, Any]]:
    """Every refresh whose folder lies among the runs, by name: how far it is, or how it ended. Runs go by name."""
    found = [read_json(file) for file in sorted(runs_root.glob(f"*.refresh/{REPORT}"))]
    return [report | {"from_run": Path(report["from_run"]).name} for report in found]


def _begun(folder: Path, serving: ModelVersion, out: Path) -> dict[str, Any]:
    if (folder / REPORT).is_file():
        report: dict[str, Any] = read_json(folder / REPORT)
        if serving.run not in (report["from_run"], str(out)) and report["state"] != "done":
            begun = report["from_run"]
            raise InputError(f"{folder} was begun from {begun}, and {serving.run} serves now. Give another --out.")
        of_before = () if report["state"] == "done" else ("stage", "share", "reason")
        return {key: value for key, value in report.items() if key not in of_before}
    folder.mkdir(parents=True, exist_ok=True)
    report = {"state": "reading", "run": out.name, "from_run": serving.run, "from_version": serving.version}
    write_json(folder / REPORT, report)
    return report


def _recipe(old: AllRec, config: RefreshConfig) -> Recipe:
    """The serving run's recipe, refitted on everything, with what was changed."""
    return load_recipe(str(old.run.path / RECIPE), ("refit=all", *config.sets))


def _dataset(store: Store, tenant: str, catalogue: Catalogue, folder: Path, is_refreshed: bool) -> Dataset:
    """The data set of the refresh: read from the store once, so that a refresh that goes on has the same."""
    prepared = folder / "dataset"
    if not is_dataset(prepared):
        num_events = write_source(store, tenant, catalogue, folder / "source", is_refreshed)
        if num_events == 0:
            raise InputError(f"the store has no event of tenant {tenant!r}, so nothing is new. Refresh when there are.")
        options = PrepareConfig(
            name=f"{tenant} with {num_events} events", text_columns=("body",), items="all", wording=catalogue.wording,
            max_rejected=0.0,
        )  # fmt: skip
        prepare(folder / "source", prepared, config=options)
    return load_dataset(prepared)


def write_source(store: Store, tenant: str, catalogue: Catalogue, folder: Path, is_refreshed: bool = False) -> int:
    """Writes the run's histories with the store's events behind them, and all items; returns how many events are new.

    Events of items that neither the run nor the store knows are left out, and so are the run's histories of users who
    were erased. A run that was refreshed has earlier events in its histories, which are not told again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    added = [item for item in _items(store, tenant) if not catalogue.has_item(item.item_id) and text_of(item.fields)]
    known = {*catalogue.item_ids, *(item.item_id for item in added)}
    events = sorted(
        (event for event in _events(store, tenant) if event.item_id in known), key=lambda event: event.timestamp
    )
    erased = store.erased_digests(tenant)
    histories = {
        user_id: [catalogue.item_ids[item] for item in catalogue.history(user)]
        for user, user_id in enumerate(catalogue.user_ids)
        if digest_of(user_id) not in erased
    }
    own: dict[str, list[str]] = {}
    for event in events:
        own.setdefault(event.user_id, []).append(event.item_id)
    if is_refreshed:
        own = {user_id: [*behind(histories.get(user_id, []), items)] for user_id, items in own.items()}
    pairs = [
        (user_id, item_id)
        for user_id in {**histories, **own}
        for item_id in (*histories.get(user_id, ()), *own.get(user_id, ()))
    ]
    _write_lines(
        folder / "interactions.jsonl",
        ({"user_id": user_id, "item_id": item_id, "position": place} for place, (user_id, item_id) in enumerate(pairs)),
    )
    genres = catalogue.genres or [[] for _ in catalogue.item_ids]
    columns = zip(catalogue.item_ids, catalogue.titles, catalogue.texts, genres, strict=True)
    rows = [dict(zip(("item_id", "title", "body", "genres"), row, strict=True)) for row in columns]
    rows += [
        {"item_id": item.item_id, "title": item.fields.get("title"), "body": text_of(item.fields), "genres": []}
        for item in added
    ]
    _write_lines(folder / "items.jsonl", rows)
    return sum(len(items) for items in own.values())


def _write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with open(file, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def _events(store: Store, tenant: str) -> Iterator[Event]:
    cursor = 0
    while page := store.events(tenant, cursor=cursor, limit=PAGE):
        cursor = page[-1][0]
        yield from (event for _, event in page)


def _items(store: Store, tenant: str) -> Sequence[Item]:
    return store.items_changed(tenant, since_version=0)[1]


def newest(dataset: Dataset, catalogue: Catalogue, num_users: int) -> list[tuple[list[str], str]]:
    """The newest item of users who have events, and the ids before it, oldest first.

    Only test targets count that the run that serves cannot have seen: those behind the history that it has.

    Args:
        dataset: of the refresh.
        catalogue: of the run that serves.
        num_users: at most; a fixed sample of them.
    """
    targets, asked = dataset.targets["test"], []
    for user, position, item in zip(targets.users, targets.positions, targets.items, strict=True):
        known = catalogue.user_or_none(dataset.user_ids[user])
        if position >= (0 if known is None else len(catalogue.history(known))):
            before = dataset.history(int(user))[:position]
            asked.append(([dataset.item_ids[one] for one in before], dataset.item_ids[item]))
    order = seeds.rng(0, "refresh", "users").permutation(len(asked))[:num_users]
    return [asked[row] for row in np.sort(order)]


def compared(old: AllRec, new: AllRec, asked: Sequence[tuple[list[str], str]], margin: float) -> dict[str, Any]:
    """NDCG@10 over the whole catalogue of both runs, their paired difference, and whether the new one may serve.

    Args:
        old: the run that serves.
        new: is asked with the parts that did not see the targets.
        asked: ids of a history, and the target's.
        margin: may be lost, at the lower end of the 95% interval.
    """
    if len(asked) < LEAST_USERS:
        return {"users": len(asked), "published": False, "reason": f"fewer than {LEAST_USERS} users to compare on"}
    gains = [gains_at(ranks(model, asked), K) for model in (old.model, new.measured)]
    difference: Float[ndarray, "users"] = gains[1] - gains[0]
    # Users of one history and one target are one observation.
    numbers: dict[tuple[object, ...], int] = {}
    clusters = np.array([numbers.setdefault((*history, target), len(numbers)) for history, target in asked])
    interval = bootstrap_interval(difference, seeds.rng(0, "refresh", "interval"), clusters)
    is_fit = bool(interval.low >= -margin)
    return {
        "users": len(asked), "ndcg": {"old": float(gains[0].mean()), "new": float(gains[1].mean())},
        "difference": float(difference.mean()), "ci95": list(interval), "margin": margin, "published": is_fit,
        "reason": "not worse by more than the margin" if is_fit else "it may be worse by more than the margin",
    }  # fmt: skip


def ranks(model: TrainedModel, asked: Sequence[tuple[list[str], str]]) -> Int[ndarray, "users"]:
    """Place of each target among the ten best, from 0, repeats allowed, without the language model; else ten.

    Args:
        model: ranks its catalogue; items that it does not have are not in a history, and never found.
        asked: ids of a history, and the target's.
    """
    catalogue = model.catalogue
    histories = [
        np.array([one for one in catalogue.positions_of(ids) if one is not None], np.int64) for ids, _ in asked
    ]
    targets = np.array([ABSENT if one is None else one for one in catalogue.positions_of([one for _, one in asked])])
    found = np.full(len(asked), K)
    for scored in model.best_of_catalogue(histories, K, with_history=True, use_llm=False):
        best = np.take_along_axis(scored.items, scored.best(K), axis=1)
        is_target = best == targets[scored.rows, None]
        found[scored.rows] = np.where(is_target.any(axis=1), is_target.argmax(axis=1), K)
    return found
