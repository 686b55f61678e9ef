"""Routes that recommend: for a user, a history or a text; similar items, users for an item, lists, counts."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from time import monotonic, time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from allrec.errors import InputError, nearest
from allrec.serving import service as serving
from allrec.serving.access import KNOWN, READ, Caller
from allrec.serving.answers import Page, body_of, described, new_id, page_of
from allrec.serving.bodies import BOOST, FILTER, Id, Rank, Recommend, Similar, UserId, settings_of
from allrec.serving.lookups import audiences_of, by_text, encoder_of, ranked_list, similar
from allrec.serving.problems import ProblemError, unknown_item
from allrec.serving.ranking import Ranked, Wanted, diversified, mask_of, multiplied
from allrec.serving.replies import PROBLEMS, Audiences, Listed, Ranking, Recommendations
from allrec.serving.service import Answered, Service
from allrec.serving.snapshots import Snapshot
from allrec.serving.store import Answer
from allrec.serving.store_settings import group_of
from allrec.serving.tracing import step

router = APIRouter(prefix="/v1", tags=["recommend"], responses=PROBLEMS, dependencies=[KNOWN])
OWN = ("filter", "boost", "diversity", "with_history")
MONTH = 30 * 86_400.0
COUNTED = 1_000
"""Items that popular, trending and latest look through; all where a category is asked for, which keeps few."""


@router.post("/recommendations", response_model=Recommendations)
async def recommend(request: Request, body: Recommend, caller: Caller = READ) -> JSONResponse:
    """The best items for a user, for a bare history or for a text, or the next page of an answer."""
    if body.page is not None:
        return JSONResponse(await run_in_threadpool(_next_page, _service(request), Page.unpack(body.page), caller))
    return JSONResponse(await recommended(request, body, caller))


@router.get("/users/{user_id:path}/recommendations", response_model=Recommendations)
async def recommend_user(
    request: Request,
    user_id: Annotated[UserId, Path()],
    k: Annotated[int, Query(ge=1, le=100, examples=[5])] = 10,
    filter: Annotated[str | None, Query(max_length=1_000, examples=[FILTER])] = None,
    boost: Annotated[str | None, Query(max_length=1_000, examples=[BOOST])] = None,
    caller: Caller = READ,
) -> JSONResponse:
    """The best items for a user, by address alone."""
    body = Recommend(user_id=user_id, k=k, filter=filter, boost=boost)
    return JSONResponse(await recommended(request, body, caller))


async def recommended(request: Request, body: Recommend, caller: Caller) -> dict[str, Any]:
    """What is answered to a body."""
    service, begin = _service(request), monotonic()
    group = None
    if body.scenario is not None or body.experiment is not None:
        body, group = await run_in_threadpool(_with_scenario, service, body, caller.tenant)
    asked = serving.Request(
        caller.tenant, body.user_id, None if body.history is None else tuple(body.history), body.item_id,
        {"k": body.k, **{name: getattr(body, name) for name in OWN}}, tuple(body.exclude), body.budget_ms / 1e3, begin,
    )  # fmt: skip
    with step("ranking"):
        answered = await asyncio.wrap_future(service.submit(asked))
    if isinstance(answered, InputError):
        raise answered
    figures = request.app.state.figures
    figures.step.labels("ranking").observe(monotonic() - begin)
    if body.query is not None:
        is_for_somebody = body.user_id is not None or bool(body.history)
        with step("text"), figures.step.labels("text").time():
            answered = await run_in_threadpool(_by_text, answered, body.query, is_for_somebody)
    elif asked.budget > 0:
        with step("language model"), figures.step.labels("language model").time():
            answered = await run_in_threadpool(service.with_llm, answered, asked)
        figures.llm.labels("ordered" if answered.llm == "ordered" else "left out").inc()
    write = partial(body_of, answered, new_id(), user_id=body.user_id, with_reason=body.with_reason, group=group)
    if body.with_reason:
        with step("reasons"), figures.step.labels("reasons").time():
            found = await run_in_threadpool(write)
    else:
        found = write()
    _note(request, caller, body, found)
    return found


def _next_page(service: Service, page: Page, caller: Caller) -> dict[str, Any]:
    """A further page, under the user's fields of now; they are not in the token, which whoever asks can read."""
    snapshot, settings = service.tenant(caller.tenant).snapshot, page.settings
    asked = serving.Request(caller.tenant, settings.get("user_id"), settings={"filter": settings.get("filter")})
    return page_of(snapshot, page, service.user_fields(snapshot, asked))


def _by_text(answered: Answered, query: str, is_for_somebody: bool) -> Answered:
    """The answer to a text; a user's or a history's own ranking takes part in its order."""
    snapshot, wanted = answered.snapshot, answered.wanted
    mask = mask_of(snapshot, wanted, time())
    mask = np.ones(snapshot.num_items, bool) if mask is None else mask
    if not wanted.with_history and wanted.history:
        mask[list(wanted.history)] = False
    is_personal = answered.scorer in ("fusion", "cf")
    personal, fallback = answered.ranked if is_personal else None, answered.fallback if is_for_somebody else None
    ranked = by_text(snapshot, encoder_of(snapshot.served).encode([query]), mask, personal)
    ranked = multiplied(snapshot, wanted, ranked) if wanted.boost is not None else ranked
    ranked = diversified(snapshot, ranked, wanted.diversity) if wanted.diversity > 0 else ranked
    if not is_personal and fallback is not None:
        fallback = f"{fallback.partition(':')[0]}: the text alone"
    scorer = f"text and {answered.scorer}" if is_personal else "text"
    return replace(answered, ranked=ranked, scorer=scorer, fallback=fallback)


def _with_scenario(service: Service, body: Recommend, tenant: str) -> tuple[Recommend, str | None]:
    """The body with a scenario's settings behind its own, and the user's group of its experiment."""
    name, group = body.scenario, None
    if body.experiment is not None:
        experiments = service.store.experiments(tenant)
        if body.experiment not in experiments:
            raise ProblemError(
                404, f"unknown experiment {body.experiment!r}: {nearest(body.experiment, [*experiments])}."
            )
        experiment = experiments[body.experiment]
        if experiment.is_running:
            group = group_of(experiment, str(body.user_id))
            name = experiment.groups[group].get("scenario") or name
    if name is None:
        return body, group
    scenarios = service.store.scenarios(tenant)
    if name not in scenarios:
        raise ProblemError(404, f"unknown scenario {name!r}: {nearest(name, [*scenarios])}.")
    settings = settings_of(name, scenarios[name]).model_dump(exclude_unset=True)
    own = body.model_dump(exclude_unset=True)
    return Recommend(**{**settings, **own}), group


def _note(request: Request, caller: Caller, body: Recommend, found: dict[str, Any]) -> None:
    """Counts an answer, and hands it to the recorder."""
    figures = request.app.state.figures
    figures.answers.labels(found["scorer"]).inc()
    if found["fallback"]:
        figures.fallbacks.inc()
    num_cold = sum(item["is_cold"] for item in found["items"])
    figures.items.labels("cold").inc(num_cold)
    figures.items.labels("warm").inc(len(found["items"]) - num_cold)
    if found["items"] and found["scorer"] in ("fusion", "cf"):
        figures.first_score.observe(found["items"][0]["score"])
    given = tuple(item["item_id"] for item in found["items"])
    request.app.state.recorder.add(
        caller.tenant,
        Answer(
            found["recommendation_id"], body.user_id, given, found["model_version"], found["scorer"], time(),
            found["fallback"], body.experiment if found["experiment_group"] else None, found["experiment_group"],
        ),
    )  # fmt: skip


@router.post("/items/{item_id:path}/similar", response_model=Listed)
def similar_items(
    request: Request, item_id: Annotated[Id, Path()], body: Similar, caller: Caller = READ
) -> JSONResponse:
    """Items nearest to one, by who chose them and by text; also for one that was added a moment ago."""
    snapshot = _service(request).tenant(caller.tenant).snapshot
    item = _item(snapshot, item_id)
    exclude = frozenset(snapshot.positions(body.exclude).tolist())
    mask = mask_of(snapshot, Wanted((), filter=body.filter, exclude=exclude), time())
    ranked = similar(snapshot, item, np.ones(snapshot.num_items, bool) if mask is None else mask)
    return _listed(request, caller, snapshot, ranked, body.k, "similar")


@router.get("/items/{item_id:path}/users", response_model=Audiences)
def users_for_item(
    request: Request,
    item_id: Annotated[Id, Path()],
    k: Annotated[int, Query(ge=1, le=1_000, examples=[5])] = 10,
    caller: Caller = READ,
) -> JSONResponse:
    """Users of the run to whom an item would go, likeliest first; also for one that was added a moment ago.

    Who had the item already, or was erased, is not among them; of a run's users the first 20,000 are looked through.
    """
    snapshot = _service(request).tenant(caller.tenant).snapshot
    is_left_out = _service(request).left_out_of(caller.tenant, item_id)
    found = audiences_of(snapshot.served).of(snapshot, _item(snapshot, item_id), k, is_left_out)
    users = [{"user_id": user, "score": score} for user, score in zip(*found, strict=True)]
    head = {"model_version": snapshot.served.version, "scorer": "joint", "fallback": None}
    return JSONResponse({"recommendation_id": new_id(), **head, "users": users})


@router.post("/rankings", response_model=Ranking)
def rank(request: Request, body: Rank, caller: Caller = READ) -> JSONResponse:
    """Given items, best first. Those that are unknown or unavailable are named and left out."""
    service = _service(request)
    snapshot = service.tenant(caller.tenant).snapshot
    history = None if body.history is None else tuple(body.history)
    users = service.user_histories(snapshot, caller.tenant, [] if body.user_id is None else [body.user_id])
    known, fallback = serving.history_of(snapshot, serving.Request(caller.tenant, body.user_id, history), users)
    available = snapshot.available(time())
    items = snapshot.positions(list(dict.fromkeys(body.items)))
    items = items[available[items]]
    ranked = ranked_list(snapshot, known, items) if len(items) else Ranked(items, np.zeros(0))
    given = {snapshot.model.catalogue.item_ids[item] for item in items.tolist()}
    missing = [item_id for item_id in dict.fromkeys(body.items) if item_id not in given]
    own = "cf" if snapshot.model.fused_ranker is None else "fusion"
    given_to = {"user_id": body.user_id, "fallback": fallback}
    scorer = own if known else "popular"
    return _listed(request, caller, snapshot, ranked, len(items), scorer, more={"left_out": missing}, **given_to)


K = Annotated[int, Query(ge=1, le=100, examples=[5])]
Category = Annotated[str | None, Query(max_length=200, examples=["Skin Care"])]


@router.get("/popular", response_model=Listed)
def popular(request: Request, k: K = 10, category: Category = None, caller: Caller = READ) -> JSONResponse:
    """Items by how many users had them in the last 30 days, and behind them, scored 0, by training interactions.

    Where nobody had any, training interactions are the scores.
    """
    service, now = _service(request), time()
    snapshot, fallback = service.tenant(caller.tenant).snapshot, None
    scores = dict(service.store.popular(caller.tenant, since=now - MONTH, limit=_looked_through(category)))
    found = _kept(snapshot, scores, category, now)
    if len(found.items) < k:
        fallback = "too few items had events: by training interactions"
        found = _filled(snapshot, found, k, category, now)
    return _listed(request, caller, snapshot, found, k, "popular", fallback=fallback)


@router.get("/trending", response_model=Listed)
def trending(request: Request, k: K = 10, category: Category = None, caller: Caller = READ) -> JSONResponse:
    """Items that get more events today than is usual for them."""
    service, now = _service(request), time()
    snapshot = service.tenant(caller.tenant).snapshot
    scores = dict(service.store.trending(caller.tenant, now=now, limit=_looked_through(category)))
    return _listed(request, caller, snapshot, _kept(snapshot, scores, category, now), k, "trending")


@router.get("/latest", response_model=Listed)
def latest(request: Request, k: K = 10, category: Category = None, caller: Caller = READ) -> JSONResponse:
    """Items by when they were added, the newest first; scores are seconds since 1970-01-01 UTC."""
    service, now = _service(request), time()
    snapshot = service.tenant(caller.tenant).snapshot
    added = service.store.latest_items(caller.tenant, limit=_looked_through(category))
    scores = {item.item_id: item.created_at for item in added if item.created_at}
    return _listed(request, caller, snapshot, _kept(snapshot, scores, category, now), k, "latest")


def _looked_through(category: str | None) -> int | None:
    return COUNTED if category is None else None


def _filled(snapshot: Snapshot, found: Ranked, k: int, category: str | None, now: float) -> Ranked:
    """Items with, behind them, those of most training interactions, up to k; these score 0 behind others."""
    counts, available, known = snapshot.model.catalogue.train_counts, snapshot.available(now), {*found.items.tolist()}
    order = (int(item) for item in np.argsort(-counts, kind="stable") if available[item] and item not in known)
    kept = (item for item in order if category is None or _is_of(snapshot.items.fields[item], category))
    more = np.array(list(islice(kept, k - len(known))), np.int64)
    scores = np.zeros(len(more)) if known else counts[more].astype(np.float64)
    return Ranked(np.concatenate([found.items, more]), np.concatenate([found.scores, scores]))


def _kept(snapshot: Snapshot, scores: Mapping[str, float], category: str | None, now: float) -> Ranked:
    """Available items of a category in the order of ``scores``."""
    available = snapshot.available(now)
    places = [item for item in snapshot.positions(list(scores)).tolist() if available[item]]
    if category is not None:
        places = [item for item in places if _is_of(snapshot.items.fields[item], category)]
    ids = snapshot.model.catalogue.item_ids
    return Ranked(np.array(places, np.int64), np.array([float(scores[ids[item]]) for item in places]))


def _is_of(fields: Any, category: str) -> bool:
    genres = fields.get("genres")
    return fields.get("category") == category or (isinstance(genres, list) and category in genres)


def _listed(
    request: Request,
    caller: Caller,
    snapshot: Snapshot,
    ranked: Ranked,
    k: int,
    scorer: str,
    *,
    user_id: str | None = None,
    fallback: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """Answers with the first k items, and hands the answer to the recorder."""
    rows = described(snapshot, ranked.items[:k].tolist(), ranked.scores[:k].tolist())
    answer = Answer(
        new_id(), user_id, tuple(row["item_id"] for row in rows), snapshot.served.version, scorer, time(), fallback
    )
    request.app.state.recorder.add(caller.tenant, answer)
    head = {name: getattr(answer, name) for name in ("recommendation_id", "model_version", "scorer", "fallback")}
    return JSONResponse({**head, **(more or {}), "items": rows})


def _item(snapshot: Snapshot, item_id: str) -> int:
    found: Sequence[int] = snapshot.positions([item_id]).tolist()
    if not found:
        raise unknown_item(item_id)
    return found[0]


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
