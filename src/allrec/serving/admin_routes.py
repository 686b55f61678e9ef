"""Routes of administrators: scenarios, experiments, model versions, keys; and those of operators."""

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from allrec.errors import InputError, nearest
from allrec.runs.run_folder import MANIFEST
from allrec.serving.access import ADMIN, KNOWN, READ, Caller
from allrec.serving.bodies import ExperimentBody, KeyBody, KeyId, Name, Publish, Settings
from allrec.serving.data_routes import service_of
from allrec.serving.experiments import experiment_result
from allrec.serving.problems import ProblemError
from allrec.serving.ranking import RequestRanker, Wanted, mask_of
from allrec.serving.refresh import reports
from allrec.serving.replies import (
    PROBLEM,
    PROBLEMS,
    ExperimentShown,
    KeyMade,
    KeyNamed,
    KeysShown,
    Named,
    Published,
    Ready,
    Refreshes,
    Scenarios,
    Version,
    Versions,
)
from allrec.serving.service import Service
from allrec.serving.snapshots import Snapshot, load_checked
from allrec.serving.store import Experiment, ModelVersion

router = APIRouter(prefix="/v1", tags=["administer"], responses=PROBLEMS, dependencies=[KNOWN])
operating = APIRouter(tags=["operate"], responses={503: PROBLEMS[503]})
TESTED_USERS = 20
FIGURE = 'allrec_answers_total{scorer="fusion"} 12.0\n'


@router.put("/scenarios/{name}", response_model=Named)
def put_scenario(
    request: Request, name: Annotated[Name, Path()], body: Settings, caller: Caller = ADMIN
) -> JSONResponse:
    """Sets a scenario; every worker takes it from the next request on. Its expressions are compiled here first."""
    service = service_of(request)
    expressions = service.tenant(caller.tenant).snapshot.expressions
    if body.filter is not None:
        expressions.compiled("filter", body.filter)
    if body.boost is not None:
        expressions.compiled("boost", body.boost)
    service.store.put_scenario(caller.tenant, name, settings=body.model_dump(exclude_unset=True))
    return JSONResponse({"name": name})


@router.get("/scenarios", response_model=Scenarios)
def show_scenarios(request: Request, caller: Caller = READ) -> JSONResponse:
    """All scenarios."""
    return JSONResponse({"scenarios": service_of(request).store.scenarios(caller.tenant)})


@router.delete("/scenarios/{name}", response_model=Named, responses={409: PROBLEM})
def delete_scenario(request: Request, name: Annotated[Name, Path()], caller: Caller = ADMIN) -> JSONResponse:
    """Deletes a scenario that no running experiment gives to a group."""
    store = service_of(request).store
    users = [one.name for one in store.experiments(caller.tenant).values() if one.is_running and one.gives(name)]
    if users:
        raise ProblemError(409, f"experiment {users[0]!r} gives scenario {name!r} to a group. End it first.")
    if not store.delete_scenario(caller.tenant, name):
        raise ProblemError(404, f"unknown scenario {name!r}.")
    return JSONResponse({"name": name})


@router.put("/experiments/{name}", response_model=Named)
def put_experiment(
    request: Request, name: Annotated[Name, Path()], body: ExperimentBody, caller: Caller = ADMIN
) -> JSONResponse:
    """Sets an experiment: each user is in one group, by a hash of user and name, and gets its scenario."""
    store = service_of(request).store
    known = store.scenarios(caller.tenant)
    for group, settings in body.groups.items():
        if settings.scenario is not None and settings.scenario not in known:
            raise ProblemError(404, f"group {group!r} has the unknown scenario {settings.scenario!r}. Set it first.")
    groups = {group: settings.model_dump(exclude_none=True) for group, settings in body.groups.items()}
    store.put_experiment(caller.tenant, Experiment(name, groups, body.is_running))
    return JSONResponse({"name": name})


@router.get("/experiments/{name}", response_model=ExperimentShown)
def show_experiment(request: Request, name: Annotated[Name, Path()], caller: Caller = READ) -> JSONResponse:
    """Click and conversion rates of an experiment's groups, and their differences with intervals, for one look."""
    store = service_of(request).store
    if name not in store.experiments(caller.tenant):
        raise ProblemError(404, f"unknown experiment {name!r}.")
    return JSONResponse(asdict(experiment_result(store, caller.tenant, name)))


@router.get("/models", response_model=Versions)
def show_models(request: Request, caller: Caller = READ) -> JSONResponse:
    """What serves, in the store and in this worker, and what served before."""
    service = service_of(request)
    history = service.store.model_history(caller.tenant)
    loaded = service.tenant(caller.tenant).snapshot.served.version
    return JSONResponse({"loaded": loaded, "versions": [_version(one) for one in history]})


@router.get("/refreshes", response_model=Refreshes)
def show_refreshes(request: Request, caller: Caller = ADMIN) -> JSONResponse:
    """How far each refresh is whose folder lies among the runs, and how it ended."""
    return JSONResponse({"refreshes": reports(service_of(request).runs_of(caller.tenant))})


@router.post("/models", response_model=Published)
def publish(request: Request, body: Publish, caller: Caller = ADMIN) -> JSONResponse:
    """Loads a run beside the one that serves, checks it, and lets every worker switch to it without a dropped request.

    Checked are the checksums of its files, that it answers some users as when it was published first, and that it
    answers the users of the run that serves: finite scores, as many items as the run before. How many of the first ten
    are the same is told, and refuses nothing.
    """
    service = service_of(request)
    runs = service.runs_of(caller.tenant)
    path = runs / body.run
    if not (path / MANIFEST).is_file():
        known = sorted(file.parent.name for file in runs.glob(f"*/{MANIFEST}"))
        raise ProblemError(404, f"no run {body.run!r} among those of the tenant: {nearest(body.run, known)}.")
    overlap = tested(service, caller.tenant, load_checked(str(path), 0))
    version = service.store.publish(caller.tenant, run=str(path))
    return JSONResponse({**_version(version), "overlap_at_10": overlap})


def tested(service: Service, tenant: str, new: Snapshot) -> float | None:
    """The mean share of the first ten items that two runs have in common, for users of the one that serves.

    Raises:
        InputError: the new one answers fewer items, or with scores that are not finite.
    """
    if service.store.serving(tenant) is None:
        return None
    old = service.tenant(tenant).snapshot
    ids = old.model.catalogue
    shares = []
    for user in range(min(TESTED_USERS, len(ids.user_ids))):
        history = [ids.item_ids[item] for item in ids.history(user)]
        first, second = (_answered(snapshot, history) for snapshot in (old, new))
        if not np.isfinite(second[1]).all() or len(second[0]) < min(len(first[0]), new.num_items - len(history)):
            raise InputError(
                f"the run answers user {ids.user_ids[user]!r} with {len(second[0])} items, the one that serves with "
                f"{len(first[0])}. Evaluate it before it is published: allrec evaluate."
            )
        shares.append(len({*first[0]} & {*second[0]}) / max(1, len(first[0])))
    return float(np.mean(shares)) if shares else None


def _answered(snapshot: Snapshot, history: list[str]) -> tuple[list[str], Any]:
    wanted = Wanted(tuple(snapshot.positions(history).tolist()))
    (ranked,) = RequestRanker().rank(snapshot, [wanted], [mask_of(snapshot, wanted, 0.0)])
    return [snapshot.model.catalogue.item_ids[item] for item in ranked.items[:10]], ranked.scores[:10]


@router.post("/models/roll-back", response_model=Version, responses={409: PROBLEM})
def roll_back(request: Request, caller: Caller = ADMIN) -> JSONResponse:
    """Lets every worker switch back to the version before."""
    try:
        return JSONResponse(_version(service_of(request).store.roll_back(caller.tenant)))
    except InputError as error:
        raise ProblemError(409, str(error)) from None


def _version(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version, "run": version.run.rpartition("/")[2],
        "published_at": version.published_at, "withdrawn_at": version.withdrawn_at,
    }  # fmt: skip


@router.post("/keys", response_model=KeyMade)
def create_key(request: Request, body: KeyBody, caller: Caller = ADMIN) -> JSONResponse:
    """Makes an API key of the tenant. Its text is in this answer alone."""
    return JSONResponse({"key": service_of(request).store.keys.create(caller.tenant, scopes=body.scopes)})


@router.get("/keys", response_model=KeysShown)
def show_keys(request: Request, caller: Caller = ADMIN) -> JSONResponse:
    """The tenant's keys, without their texts."""
    entries = service_of(request).store.keys.entries(caller.tenant)
    rows = [
        {"key_id": one.key_id, "scopes": sorted(one.scopes), "created_at": one.created_at, "revoked_at": one.revoked_at}
        for one in entries
    ]
    return JSONResponse({"keys": rows})


@router.delete("/keys/{key_id}", response_model=KeyNamed)
def revoke_key(request: Request, key_id: Annotated[KeyId, Path()], caller: Caller = ADMIN) -> JSONResponse:
    """Makes a key invalid from the next request on."""
    if not service_of(request).store.keys.revoke(caller.tenant, key_id=key_id):
        raise ProblemError(404, f"no valid key has the id {key_id!r}.")
    return JSONResponse({"key_id": key_id})


@operating.get(
    "/healthz", response_class=PlainTextResponse, responses={200: {"content": {"text/plain": {"example": "ok"}}}}
)
def healthz() -> PlainTextResponse:
    """Whether the process lives."""
    return PlainTextResponse("ok")


@operating.get("/readyz", response_model=Ready)
def readyz(request: Request) -> Response:
    """Whether requests are answered: the run is loaded, and the store can be read. The language model may be down."""
    service = service_of(request)
    for tenant in service.tenants:
        service.store.items_version(tenant)
    llm = "none" if service.llm is None else "ready" if service.llm.is_ready else "not ready"
    return JSONResponse({"status": "ready", "language_model": llm})


@operating.get(
    "/metrics", response_class=PlainTextResponse, responses={200: {"content": {"text/plain": {"example": FIGURE}}}}
)
def metrics(request: Request) -> Response:
    """Figures for Prometheus. Keep this path from the public where a proxy stands before the service."""
    service, figures = service_of(request), request.app.state.figures
    figures.waiting.set(service.batcher.num_waiting)
    for name, tenant in service.tenants.items():
        figures.kept.labels(name).set(tenant.ranker.num_kept)
        figures.ranked.labels(name).set(tenant.ranker.num_ranked)
        figures.model.labels(name).set(tenant.snapshot.served.version)
    return Response(figures.text(), media_type="text/plain; version=0.0.4")
