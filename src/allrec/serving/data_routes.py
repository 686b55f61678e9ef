"""Routes that take and give data: events, items, users, feedback, export and import."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from allrec.errors import InputError
from allrec.serving.access import ADMIN, KNOWN, READ, WRITE, Caller
from allrec.serving.bodies import (
    FIELD_BYTES,
    Availability,
    Events,
    FeedbackBody,
    Fields,
    Id,
    ItemBodies,
    UserId,
    settings_of,
)
from allrec.serving.lookups import encoder_of
from allrec.serving.problems import ProblemError, unknown_item
from allrec.serving.replies import (
    PROBLEMS,
    Erased,
    Imported,
    ItemChanged,
    ItemShown,
    ItemsReceived,
    Received,
    UserNamed,
    UserShown,
)
from allrec.serving.service import Service
from allrec.serving.snapshots import Snapshot, text_of
from allrec.serving.store import Event, Feedback, Item

router = APIRouter(prefix="/v1", tags=["data"], responses=PROBLEMS, dependencies=[KNOWN])
DEEPEST = 8
"""Levels of lists and objects in an item's or a user's fields."""
NESTED = 20


def service_of(request: Request) -> Service:
    """The process's service."""
    service: Service = request.app.state.service
    return service


@router.post("/events", response_model=Received)
def add_events(request: Request, body: Events, caller: Caller = WRITE) -> JSONResponse:
    """Stores events, at most once each by ``event_id``. With the answer they are on disk, and they count at once."""
    events = [Event(**one.model_dump()) for one in body.events]
    num_new = service_of(request).store.add_events(caller.tenant, events)
    return JSONResponse({"received": len(events), "new": num_new})


@router.post("/feedback", response_model=Received)
def add_feedback(request: Request, body: FeedbackBody, caller: Caller = WRITE) -> JSONResponse:
    """Stores impressions and clicks of recommendations, at most once each."""
    entries = [Feedback(**one.model_dump()) for one in body.feedback]
    num_new = service_of(request).store.add_feedback(caller.tenant, entries)
    return JSONResponse({"received": len(entries), "new": num_new})


@router.post("/items", response_model=ItemsReceived)
def put_items(request: Request, body: ItemBodies, caller: Caller = WRITE) -> JSONResponse:
    """Adds items, or replaces the fields of those that are there; what is hidden stays hidden.

    A new item enters by its title and description, and is recommendable with the next request of every worker. One
    without a text is stored, and recommended once it has one.
    """
    service = service_of(request)
    for place, one in enumerate(body.items):
        check_size(one.fields, f"item {one.item_id!r}", f"/body/items/{place}/fields")
    snapshot = service.tenant(caller.tenant).snapshot
    version = service.store.put_items(caller.tenant, embedded(snapshot, body), keep_availability=True)
    return JSONResponse({"received": len(body.items), "version": version})


def embedded(snapshot: Snapshot, body: ItemBodies) -> list[Item]:
    """Items with the embeddings of their texts; those of the run itself need none."""
    base = snapshot.served.model.catalogue
    texts = {
        one.item_id: text for one in body.items
        if not base.has_item(one.item_id) and (text := text_of(one.fields)) is not None
    }  # fmt: skip
    vectors = encoder_of(snapshot.served).encode(list(texts.values())) if texts else None
    found = {} if vectors is None else dict(zip(texts, vectors.numpy(), strict=True))
    # An item of the run is not added by its new fields: it was there before anything was.
    return [
        Item(one.item_id, one.fields, created_at=0.0 if base.has_item(one.item_id) else None)
        if one.item_id not in found
        else Item(one.item_id, one.fields, embedding=found[one.item_id].tobytes(), encoder=snapshot.served.encoder)
        for one in body.items
    ]


@router.patch("/items/{item_id:path}", response_model=ItemChanged)
def set_availability(
    request: Request, item_id: Annotated[Id, Path()], body: Availability, caller: Caller = WRITE
) -> JSONResponse:
    """Hides an item, takes it out of stock, lets it expire, or the reverse. After the answer nobody is given it.

    An item may be hidden before it is added; ``is_known`` says whether the run or the store has it.
    """
    service = service_of(request)
    version = service.store.set_availability(caller.tenant, [item_id], **body.model_dump())
    snapshot = service.tenant(caller.tenant).snapshot
    known = snapshot.known.get(item_id)
    is_known = snapshot.served.model.catalogue.has_item(item_id) or (known is not None and bool(known.fields))
    return JSONResponse({"item_id": item_id, "version": version, "is_known": is_known})


@router.get("/items/{item_id:path}", response_model=ItemShown)
def show_item(request: Request, item_id: Annotated[Id, Path()], caller: Caller = READ) -> JSONResponse:
    """What is known of an item."""
    snapshot = service_of(request).tenant(caller.tenant).snapshot
    known = snapshot.known.get(item_id)
    places = snapshot.positions([item_id]).tolist()
    if not places and known is None:
        raise unknown_item(item_id)
    fields = snapshot.items.fields[places[0]] if places else known.fields if known else {}
    state = {"is_hidden": False, "is_in_stock": True, "expires_at": None}
    if known is not None:
        state = {name: getattr(known, name) for name in state}
    return JSONResponse({"item_id": item_id, "fields": fields, **state, "is_recommendable": bool(places)})


@router.put("/users/{user_id:path}", response_model=UserNamed)
def put_user(
    request: Request, user_id: Annotated[UserId, Path()], body: Fields, caller: Caller = WRITE
) -> JSONResponse:
    """Sets a user's fields, which filters and boosts read as ``user``."""
    check_size(body.fields, f"user {user_id!r}", "/body/fields")
    service_of(request).store.put_user(caller.tenant, user_id, fields=body.fields)
    return JSONResponse({"user_id": user_id})


@router.get("/users/{user_id:path}", response_model=UserShown)
def show_user(request: Request, user_id: Annotated[UserId, Path()], caller: Caller = ADMIN) -> JSONResponse:
    """Everything that is stored about a user, and the run's history of the user."""
    service = service_of(request)
    catalogue = service.tenant(caller.tenant).snapshot.model.catalogue
    user = catalogue.user_or_none(user_id)
    is_erased = service.store.is_erased(caller.tenant, user_id)
    trained = [] if user is None or is_erased else [catalogue.item_ids[item] for item in catalogue.history(user)]
    return JSONResponse(service.store.show_user(caller.tenant, user_id) | {"trained_on": trained})


@router.delete("/users/{user_id:path}", response_model=Erased)
def erase_user(request: Request, user_id: Annotated[UserId, Path()], caller: Caller = ADMIN) -> JSONResponse:
    """Erases everything that is stored about a user.

    What the run that serves was trained on of the user is not used from now on, and goes with the next refresh.
    """
    return JSONResponse({"erased": service_of(request).store.erase_user(caller.tenant, user_id)})


class JsonLines(StreamingResponse):
    """Lines of JSON, one after the other."""

    media_type = "application/x-ndjson"


LINE = '{"kind": "user", "row": {"user_id": "A1YJEY40YUW4SE", "fields": {"country": "DE"}}}'
CURSOR = "WyJ1c2VyIiwgIkExWUpFWTQwWVVXNFNFIl0="
LINES: dict[str, Any] = {JsonLines.media_type: {"schema": {"type": "string"}, "example": LINE}}


@router.get("/export", response_class=JsonLines, responses={200: {"content": LINES}})
def export(
    request: Request,
    cursor: Annotated[str | None, Query(max_length=1_000, examples=[CURSOR])] = None,
    limit: Annotated[int | None, Query(ge=1, le=1_000_000, examples=[1_000])] = None,
    caller: Caller = ADMIN,
) -> JsonLines:
    """Everything of the tenant as JSON lines, each with the cursor to go on after it."""
    lines = service_of(request).store.export(caller.tenant, cursor=cursor, limit=limit)
    # The first line is read here, so that a bad cursor is answered by a problem document.
    first = next(lines, None)

    def every() -> Iterator[str]:
        if first is not None:
            yield first + "\n"
        for line in lines:
            yield line + "\n"

    return JsonLines(every())


@router.post("/import", response_model=Imported, openapi_extra={"requestBody": {"required": True, "content": LINES}})
async def load(request: Request, caller: Caller = ADMIN) -> JSONResponse:
    """Takes the lines of an export; sent again, they change nothing, so an import that broke off is just repeated.

    Items, users' fields, scenarios and experiments are then as the lines say, those that were changed since as well.
    """
    body = await request.body()
    try:
        lines = body.decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"got a body that is no UTF-8: {error}. Send the lines of an export.") from None
    counts = await run_in_threadpool(service_of(request).store.load, caller.tenant, lines, check_record)
    return JSONResponse({"read": counts})


def check_record(kind: str, record: Any) -> None:
    """Raises InputError for a line of an import whose settings or fields a request could not have set."""
    if kind == "scenario":
        settings_of(record.name, record.settings)
    elif kind in ("item", "user") and (fault := fault_of(record.fields)):
        raise InputError(f"the fields of {kind} {getattr(record, f'{kind}_id')!r} {fault}")


def check_size(fields: dict[str, Any], what: str, place: str) -> None:
    """Raises ProblemError for fields that are too large, too deep, or hold what cannot be stored."""
    if fault := fault_of(fields):
        detail = f"the fields of {what} {fault}"
        raise ProblemError(422, detail, errors=[{"pointer": place, "detail": detail}])


def fault_of(fields: Any) -> str | None:
    """What is wrong with an item's or a user's fields, if anything is."""
    try:
        size = len(json.dumps(fields, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, TypeError, RecursionError) as error:
        return f"cannot be stored: {error}."
    if size > FIELD_BYTES or depth_of(fields) > DEEPEST:
        return f"have {size} bytes, expected {FIELD_BYTES} and {DEEPEST} levels at most."
    return None


def depth_of(value: Any, level: int = 0) -> int:
    """Levels of lists and objects in a value; those below ``NESTED`` are not counted."""
    if level >= NESTED or not isinstance(value, (dict, list)):
        return level
    inner = value.values() if isinstance(value, dict) else value
    return max((depth_of(one, level + 1) for one in inner), default=level + 1)
