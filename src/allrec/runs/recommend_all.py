"""Recommendations for every user of a run, into files, by any engine: ``AllRec.recommend`` for all of them.

A part of the users is a file; so is what is recommended to them. Each is named by what decides it, so a job that was
killed goes on where it was, and no user comes twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from allrec import storage
from allrec.alignment.text_cache import default_cache
from allrec.data.recommendations import parts_of_users, read_histories, write_histories, write_recommendations
from allrec.errors import InputError
from allrec.files import sha256_file, sha256_text
from allrec.hybrid.index import build_index, read_index
from allrec.hybrid.ranking import FusedRanker, Scored
from allrec.hybrid.similarity import Occurrences
from allrec.parallel import Engine, Needs, OnProgress, ThisProcess, no_progress
from allrec.runs.run_folder import REFIT, RunFolder, open_run, refitted_run
from allrec.runs.trained_model import TrainedModel
from allrec.shards import Shard, ShardTask

USERS_A_PART = 4_096
"""Users of one file: seconds of work without a language model, and what a kill costs at most, a worker."""
REQUEST, DONE = "request.json", "recommendations.json"
"""What is being made, written first; and what was made, written last."""
USERS, SHARED, PARTS = "users", "shared", "parts"
"""Folders of what workers read, until all is made."""
FORMAT_VERSION = 1
NOT_SERVED = ("evaluate", REFIT)
"""Stages of a run that change nothing of what it recommends itself."""


class Best(NamedTuple):
    """The best items of some users, a row each, best first.

    Attributes:
        users: rows of the task.
        items: positions.
        ranks: from 0.
        scores: what orders them.
        contributions: what each evidence, and last the language model, adds; nan where it adds nothing, and None
            without a fusion.
    """

    users: Int[ndarray, "rows"]
    items: Int[ndarray, "rows"]
    ranks: Int[ndarray, "rows"]
    scores: Float[ndarray, "rows"]
    contributions: Float[ndarray, "rows evidence"] | None


def best_rows(model: TrainedModel, scored: Scored, k: int) -> Best:
    """The k best of every row of a ranking."""
    places = scored.best(k)
    items = np.take_along_axis(scored.items, places, axis=1)
    rows, ranks = np.nonzero(items >= 0)
    scores = np.take_along_axis(scored.scores, places, axis=1)
    ranker = model.ranker
    parts = ranker.contribution_table(scored, places, "catalogue") if isinstance(ranker, FusedRanker) else None
    return Best(
        rows + scored.rows.start, items[rows, ranks], ranks, scores[rows, ranks].astype(np.float64),
        None if parts is None else parts[rows, ranks],
    )  # fmt: skip


@dataclass(frozen=True)
class Shared:
    """Files that one process makes and all workers read, in place of what each would work out of all users.

    Attributes:
        occurrences: path or URL of ``Occurrences``; None without a fusion.
        indexes: the name of each search that uses an index, and its path or URL.
    """

    occurrences: str | None = None
    indexes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RecommendUsers(ShardTask):
    """Makes recommendations of a file of histories.

    Attributes:
        out: folder or URL of the files.
        run: path or URL of the run.
        request: what decides the recommendations beside the users: ``request_of``.
        device: where the language model answers.
        shared: what is not read from the run.
    """

    out: str
    run: str
    request: str
    device: str | None = None
    shared: Shared = Shared()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """See ``ShardTask``."""
        known: dict[str, Any] = json.loads(self.request)
        return known

    def make(self, shard: Shard, path: Path) -> None:
        """See ``ShardTask``."""
        with storage.local_file(shard.location) as file:
            users = read_histories(file)
        sequences = np.split(users.items, users.offsets[1:-1])
        recipe, model = self.recipe, loaded(self)
        if fingerprint(model.run) != recipe["run"]:
            raise InputError(f"{self.run} has changed since this job began. Begin anew with another --out.")
        ranked = model.best_of_catalogue(sequences, recipe["k"], use_llm=recipe["use_llm"])
        found = [best_rows(model, scored, recipe["k"]) for scored in ranked]
        columns = [np.concatenate(one) for one in zip(*(part[:4] for part in found), strict=True)]
        rows, items, ranks, scores = columns
        contributions: dict[str, ndarray] = {}
        if isinstance(model.ranker, FusedRanker):
            values = np.concatenate([part.contributions for part in found if part.contributions is not None])
            contributions = dict(zip(model.ranker.contribution_names, values.T, strict=True))
        user_ids, item_ids = [users.user_ids[row] for row in rows], [model.catalogue.item_ids[item] for item in items]
        write_recommendations(path, user_ids, item_ids, ranks, scores, contributions)


_loaded: dict[tuple[Any, ...], TrainedModel] = {}


def loaded(task: RecommendUsers) -> TrainedModel:
    """What a run serves without its users, loaded once a process; once more where the run has changed since."""
    key = _key(task)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(open_run(task.run), task.device, task.shared)
    return _loaded[key]


def _key(task: RecommendUsers) -> tuple[Any, ...]:
    return task.run, task.recipe["run"], task.device, task.shared


def _load(run: RunFolder, device: str | None, shared: Shared) -> TrainedModel:
    occurrences = None
    if shared.occurrences is not None:
        occurrences = Occurrences.load(storage.local_copy(shared.occurrences, default_cache().with_name("runs")))
    model = TrainedModel.load_without_users(refitted_run(run) or run, occurrences, device)
    for name, location in shared.indexes:
        model.evidence.searches[name].adopt(read_index(location))
    return model


def fingerprint(run: RunFolder) -> str:
    """A hash of all that was trained or added in a run; to evaluate it again changes nothing."""
    noted = run.manifest["stages"]
    stages = {name: noted[name].get("sha256") for name in noted if name not in NOT_SERVED}
    known = {"stages": stages, "added": run.manifest.get("added", []), "llm": run.manifest["llm"]}
    known["recipe"] = run.manifest.get("recipe_sha256")
    return sha256_text(json.dumps(known, sort_keys=True))


def recommend_all(
    model: TrainedModel,
    run: str,
    out: Path | str,
    *,
    k: int = 10,
    use_llm: bool = True,
    engine: Engine | None = None,
    gpus: float | None = None,
    users_a_part: int = USERS_A_PART,
    on_progress: OnProgress = no_progress,
) -> dict[str, Any]:
    """Writes the k best items of every user as Parquet files; a job that was stopped goes on where it was.

    Args:
        model: what a run serves.
        run: that run's path or URL, which workers read.
        out: folder or URL; new, or of the same job.
        k: items a user.
        use_llm: False leaves the language model out.
        engine: where it is done; this process where None. The bytes do not depend on it.
        gpus: accelerators of a task, or a share of one; None is one where the language model reads and this process
            has one.
        users_a_part: users of one file; scores may depend on it in the last digits.
        on_progress: sees the share of the users that are done, and ``users``.

    Returns:
        What ``recommendations.json`` holds: ``request``, ``users``, and ``parts`` in the users' order.

    Raises:
        InputError: k below 1, a number of accelerators that no task can have, or a folder of another job.
    """
    if k < 1:
        raise InputError(f"got k = {k}, expected at least 1.")
    out, catalogue, use_llm = str(out), model.catalogue, use_llm and model.has_llm
    device, needs = _place(model.device, use_llm, gpus)
    request = {
        "format": FORMAT_VERSION, "run": fingerprint(model.run), "k": k, "use_llm": use_llm,
        "users_a_part": users_a_part,
    }  # fmt: skip
    done = _begin(out, request)
    if done is not None:
        return done
    num_users, parts = len(catalogue.user_ids), list[str]()
    on_progress(0.0, {"users": 0.0})
    shared = Shared() if engine is None else _share(model, out, engine, min(users_a_part, num_users))
    task = RecommendUsers(storage.join(out, PARTS), run, json.dumps(request), device, shared)
    if engine is None:
        engine = ThisProcess()
        _loaded[_key(task)] = model
    for part in engine.map(task, _shards(out, model, users_a_part), needs):
        parts.append(part)
        users = min(num_users, len(parts) * users_a_part)
        on_progress(users / num_users, {"users": float(users)})
    done = {"request": request, "users": num_users, "parts": [Path(part).name for part in parts]}
    done["bytes"] = [storage.size(part) for part in parts]
    storage.remove_leftovers(task.out)
    storage.write_json(storage.join(out, DONE), done)
    _remove(out, USERS, SHARED)
    return done


def _remove(out: str, *folders: str) -> None:
    """Removes folders of a job that nothing needs any more."""
    for folder in folders:
        storage.remove(storage.join(out, folder))


def _begin(out: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Notes what is to be made, and returns what has been made where all is done already."""
    noted = storage.join(out, REQUEST)
    if storage.exists(noted):
        earlier = storage.read_json(noted)
        if not isinstance(earlier, dict):
            raise InputError(f"{noted} is damaged, expected an object. Give another --out.")
        different = [name for name in request if earlier.get(name) != request[name]]
        if different:
            raise InputError(
                f"{out} holds recommendations of another job: {', '.join(different)} differ. Give another --out."
            )
    elif storage.is_used(out):
        raise InputError(f"{out} is in use and holds no recommendations, expected a new or empty folder. Give another.")
    else:
        storage.write_json(noted, request)
    done = storage.join(out, DONE)
    return _whole(out, dict(storage.read_json(done))) if storage.exists(done) else None


def _whole(out: str, done: dict[str, Any]) -> dict[str, Any] | None:
    """What has been made, if every part is there with all of its bytes; others are removed, to be made again."""
    parts = [storage.join(storage.join(out, PARTS), name) for name in done["parts"]]
    sizes = done.get("bytes") or [storage.size(part) for part in parts]
    damaged = [part for part, size in zip(parts, sizes, strict=True) if size is None or storage.size(part) != size]
    for part in damaged:
        storage.remove(part)
    return None if damaged else done


def _place(device: str, use_llm: bool, gpus: float | None) -> tuple[str, Needs]:
    """Where a task computes, and what it asks its engine for; unasked, an accelerator is for a language model alone."""
    if gpus is not None and (not gpus >= 0 or (gpus > 1 and gpus % 1)):
        raise InputError(f"got {gpus} accelerators a task, expected a share from 0 to 1 or a whole number.")
    has_gpu = device.startswith("cuda")
    if gpus is None:
        gpus = 1.0 if use_llm and has_gpu else 0.0
    if gpus > 0:
        return device if has_gpu else "cuda", Needs(gpus=gpus)
    return "cpu" if has_gpu else device, Needs()


def _share(model: TrainedModel, out: str, engine: Engine, num_queries: int) -> Shared:
    """Writes what all workers read where it is not there yet; ``num_queries`` is the users of a part."""
    if not isinstance(model.ranker, FusedRanker):
        return Shared()
    folder = storage.join(out, SHARED)
    occurrences = storage.join(folder, "occurrences.safetensors")
    if not storage.exists(occurrences):
        with storage.whole_file(occurrences) as path:
            model.occurrences.save(path)
    searches = {name: one for name, one in model.evidence.searches.items() if one.uses_index(num_queries)}
    built = {name: build_index(one.items, folder, engine=engine) for name, one in searches.items()}
    return Shared(occurrences, tuple(built.items()))


def _shards(out: str, model: TrainedModel, size: int) -> Iterator[Shard]:
    """Files of histories, written where they are not there yet, just before they are needed."""
    for number, histories in enumerate(parts_of_users(model.catalogue, size)):
        location = storage.join(storage.join(out, USERS), f"{number:06d}.parquet")
        if not storage.exists(location):
            with storage.whole_file(location) as path:
                write_histories(path, histories)
        with storage.local_file(location) as path:
            sha256 = sha256_file(path)
        yield Shard(location, sha256)
