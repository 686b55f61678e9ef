"""The page in Chromium: whoever cannot see, point or spare a wide screen can use it, in light and in dark."""

import shutil
import threading
from contextlib import contextmanager
from time import monotonic, sleep

import httpx
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from tests.serving.test_app import event

from allrec.serving.app import ServeConfig, create_app

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
PAGES = {
    "first": "/",
    "user": "/?user={user}",
    "search": "/?search=a&history={item}&history={other}",
    "text": "/?query=a light cream",
    "item": "/?item={item}",
    "unknown": "/?user=nobody&search=nothing-like-it&item=none",
}


@contextmanager
def listening(config):
    """A service in a thread of its own; gives its address and its application."""
    app = create_app(config)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = monotonic() + 60
    while not server.started:
        assert monotonic() < end
        sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", app
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service(run, system, tmp_path_factory):
    """A service with an added item and an experiment that has answers; gives its address and what pages are about."""
    folder, catalogue = tmp_path_factory.mktemp("browsed"), system.model.catalogue
    config = ServeConfig(run, f"sqlite:///{folder}/store.db", with_llm=False, cache=folder / "cache")
    with listening(config) as (address, app):
        # Not by playwright, which runs once at a time: the browser may be there already.
        with httpx.Client(base_url=address) as asking:
            groups = {"now": {"share": 1}, "diverse": {"share": 1}}
            asking.put("/v1/experiments/home", json={"groups": groups})
            asking.post("/v1/events", json={"events": [event(1, "u", catalogue.item_ids[0])]})
            asking.post("/v1/items", json={"items": [{"item_id": "new", "fields": {"title": "rose " * 60}}]})
            for number in range(8):
                asking.post("/v1/recommendations", json={"user_id": f"u{number}", "experiment": "home"})
        app.state.recorder.close()
        user, (item, other) = catalogue.user_ids[0], catalogue.item_ids[:2]
        yield address, {"user": user, "item": item, "other": other}


@pytest.fixture(scope="module")
def keyed(run, tmp_path_factory):
    """A service that asks for a key; gives its address and a key."""
    folder = tmp_path_factory.mktemp("keyed")
    config = ServeConfig(run, f"sqlite:///{folder}/store.db", with_llm=False, needs_key=True, cache=folder / "cache")
    with listening(config) as (address, app):
        yield address, app.state.store.keys.create("default", scopes=["read"])


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def opened(browser, size="desktop", scheme="light"):
    """A page in a window of its own; fails where anything on it could not be loaded or run."""
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: faults.append(request.url))
    yield page
    context.close()
    assert faults == []


def check(page, place):
    """No violations of accessibility, and nothing wider than the window."""
    violations = Axe().run(page).response["violations"]
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in violations] == [], place
    wide, window = page.evaluate("[document.scrollingElement.scrollWidth, window.innerWidth]")
    assert wide <= window, place


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_accessible(service, browser, size, scheme):
    address, known = service
    with opened(browser, size, scheme) as page:
        for name, path in PAGES.items():
            page.goto(address + path.format(**known))
            check(page, (name, size, scheme))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_login_is_accessible_and_opens_the_page(keyed, browser, size, scheme):
    address, key = keyed
    with opened(browser, size, scheme) as page:
        page.goto(address)
        assert page.url == f"{address}/login"
        check(page, ("login", size, scheme))
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/")
        assert page.get_by_role("heading", name="Recommendations").is_visible()


def focused(page):
    return page.evaluate(
        "(e => ({tag: e.tagName, text: e.textContent.trim(), name: e.name || '', href: e.getAttribute('href'),"
        " outline: getComputedStyle(e).outlineStyle}))(document.activeElement)"
    )


def tab_to(page, is_it, most=80):
    """Presses Tab until what has the focus is it; every stop shows its focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = focused(page)
        assert stop["outline"] not in ("none", ""), stop
        if is_it(stop):
            return stop
    raise AssertionError("the keyboard does not lead there")


def test_the_keyboard_alone_leads_from_a_user_to_an_item_and_its_neighbours(service, browser):
    address, known = service
    with opened(browser) as page:
        page.goto(address)
        assert tab_to(page, lambda stop: True)["text"] == "To the recommendations"
        page.keyboard.press("Enter")
        tab_to(page, lambda stop: stop["name"] == "user")
        page.keyboard.type(known["user"])
        page.keyboard.press("Enter")
        page.wait_for_url("**/?user=*")
        assert page.get_by_role("heading", name="All together").is_visible()
        link = tab_to(page, lambda stop: (stop["href"] or "").startswith("/?item="))
        page.keyboard.press("Enter")
        page.wait_for_url("**/?item=*")
        assert page.get_by_role("heading", name="Similar items").is_visible()
        assert page.locator("#item strong").inner_text() == link["text"]


def test_an_item_is_added_with_the_keyboard(service, browser):
    address, _ = service
    with opened(browser, "phone") as page:
        page.goto(address)
        tab_to(page, lambda stop: stop["name"] == "title")
        page.keyboard.type("Rose hand cream")
        page.keyboard.press("Enter")
        page.wait_for_url("**/?item=new-*")
        assert page.locator("#item strong").inner_text() == "Rose hand cream"
        assert page.get_by_role("heading", name="Users to whom it would go").is_visible()
