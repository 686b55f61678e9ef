"""The page at ``/``: server-rendered, works without scripts; forms are protected by a token in a cookie."""

import hmac
import secrets
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.templating import Jinja2Templates

from allrec.serving import page
from allrec.serving.access import COOKIE, READ_PAGE, WRITE_PAGE, Caller
from allrec.serving.answers import described
from allrec.serving.bodies import ItemBodies, ItemBody
from allrec.serving.data_routes import embedded, service_of
from allrec.serving.page import View
from allrec.serving.problems import ProblemError
from allrec.serving.service import Service

FOLDER = Path(__file__).parent
TEMPLATES = Jinja2Templates(FOLDER / "templates")
CSRF = "allrec_csrf"
LONGEST = 256
router = APIRouter(include_in_schema=False)
Text = Annotated[str, Query(max_length=LONGEST)]


@router.get("/")
def show(
    request: Request,
    user: Text = "",
    history: Annotated[list[str] | None, Query(max_length=100)] = None,
    search: Text = "",
    query: Annotated[str, Query(max_length=2_000)] = "",
    item: Text = "",
    caller: Caller = READ_PAGE,
) -> Response:
    """The page."""
    view = View(user, [one[:LONGEST] for one in history or []], search, query, item)
    token = request.cookies.get(CSRF) or secrets.token_urlsafe(32)
    context = context_of(service_of(request), view, caller.tenant)
    context["state"] = page.state_of(service_of(request), request.app.state.figures)
    answer: HTMLResponse = TEMPLATES.TemplateResponse(request, "page.html", context | {"csrf": token})
    answer.set_cookie(CSRF, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


def context_of(service: Service, view: View, tenant: str) -> dict[str, Any]:
    """Everything that the template shows."""
    snapshot = service.tenant(tenant).snapshot
    history = page.history_of(service, snapshot, view, tenant)
    # Each item once, at its latest place.
    latest = list(dict.fromkeys(reversed(history)))[:12][::-1]
    return {
        "view": view,
        "run": Path(snapshot.served.run).name,
        "version": snapshot.served.version,
        "counts": (snapshot.num_items, len(snapshot.model.catalogue.user_ids), len(snapshot.added.item_ids)),
        "users": page.some_users(service, snapshot, tenant),
        "history": described(snapshot, latest, [0.0] * len(latest)),
        "columns": page.columns_of(service, snapshot, history, tenant) if history else [],
        "found": page.search_titles(snapshot, view.search) if view.search else [],
        "by_query": page.by_query(snapshot, view.query) if view.query else [],
        "item": page.item_view(service, snapshot, view.item, tenant) if view.item else None,
        "experiments": page.experiments_of(service.store, tenant),
        "figures": page.figures_of(snapshot),
        "measured": page.MEASURED,
        "with_item": lambda item_id: "/?" + urlencode(
            {"user": view.user, "history": [*view.history, item_id], "search": view.search}, doseq=True
        ),
        "without_last": "/?" + urlencode({"user": view.user, "history": view.history[:-1]}, doseq=True),
    }  # fmt: skip


@router.post("/items")
async def add_item(request: Request, caller: Caller = WRITE_PAGE) -> Response:
    """Adds an item by the page's form, and shows its neighbours and to whom it would go."""
    form = await form_of(request)
    title = form.get("title", "").strip()
    if not title:
        raise ProblemError(422, "/title: the item needs a title, by which it enters.")
    fields = {name: form[name].strip() for name in ("title", "description", "category") if form.get(name, "").strip()}
    item_id = form.get("item_id", "").strip()[:LONGEST] or f"new-{secrets.token_hex(4)}"
    body = ItemBodies(items=[ItemBody(item_id=item_id, fields=fields)])

    def put() -> None:
        service = service_of(request)
        items = embedded(service.tenant(caller.tenant).snapshot, body)
        service.store.put_items(caller.tenant, items, keep_availability=True)

    await run_in_threadpool(put)
    return RedirectResponse("/?" + urlencode({"item": item_id}) + "#item", 303)


@router.get("/login")
def show_login(request: Request) -> Response:
    """Asks for an API key, where one is needed."""
    token = request.cookies.get(CSRF) or secrets.token_urlsafe(32)
    answer: HTMLResponse = TEMPLATES.TemplateResponse(request, "login.html", {"csrf": token})
    answer.set_cookie(CSRF, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@router.post("/login")
async def login(request: Request) -> Response:
    """Keeps an API key in a cookie that scripts cannot read and other sites cannot send."""
    form = await form_of(request)
    known = await run_in_threadpool(request.app.state.store.keys.check, form.get("key", ""))
    if known is None:
        raise ProblemError(401, "no valid API key.")
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, form["key"], httponly=True, samesite="strict", secure=secure, max_age=86_400)
    return answer


async def form_of(request: Request) -> dict[str, str]:
    """A form's fields, once its token was found to be that of the cookie.

    Raises:
        ProblemError: the form came from elsewhere, or the page is too old.
    """
    body = (await request.body()).decode("utf-8", "replace")
    try:
        form = {name: values[0] for name, values in parse_qs(body, max_num_fields=20).items()}
    except ValueError:
        raise ProblemError(422, "the form has more fields than the page's.") from None
    cookie = request.cookies.get(CSRF, "")
    if not cookie or not hmac.compare_digest(cookie.encode(), form.get("csrf", "").encode()):
        raise ProblemError(403, "the form is not of this page, or the page is too old. Load it again.")
    return form


@router.get("/static/{name}")
def static(name: str) -> Response:
    """The page's style."""
    if name != "page.css":
        raise ProblemError(404, f"no file {name!r}.")
    return Response((FOLDER / "static" / name).read_bytes(), media_type="text/css")
