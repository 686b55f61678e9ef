"""Whatever is sent, no route fails: every answer is what was asked for or a problem document; tenants stay apart."""

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving.test_app import client_of, event, good, ids

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.text(max_size=12) | st.sampled_from(["i1", "\0", "\ud800", "a/b", "..", "'; drop table items", "%00"])
NUMBERS = st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from([1, 10, 0.5])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
EXPRESSIONS = TEXTS | st.sampled_from(
    ["popularity > 1", "1.2", "true", "1 / 0 > 1", "title + title == title", "user.a"]
)
NAMES = st.sampled_from(["a", "b", "view"])
GOOD_EVENT = {"event_id": NAMES, "user_id": NAMES, "item_id": NAMES, "kind": NAMES, "timestamp": st.just(1.5)}
WILD_EVENT = dict.fromkeys(GOOD_EVENT, TEXTS) | {"timestamp": NUMBERS}
GOOD_GROUPS = st.fixed_dictionaries(dict.fromkeys(("a", "b"), st.just({"share": 1})))
FIELDS = {
    "user_id": TEXTS, "item_id": TEXTS, "history": st.lists(TEXTS, max_size=3), "k": NUMBERS, "filter": EXPRESSIONS,
    "boost": EXPRESSIONS, "diversity": NUMBERS, "query": TEXTS, "exclude": st.lists(TEXTS, max_size=3),
    "with_reason": st.booleans(), "page": TEXTS, "scenario": TEXTS, "items": st.lists(TEXTS, max_size=3),
    "fields": st.dictionaries(TEXTS, ANYTHING, max_size=3), "is_hidden": st.booleans(), "expires_at": NUMBERS,
    "groups": GOOD_GROUPS | st.dictionaries(TEXTS, st.fixed_dictionaries({"share": NUMBERS}), max_size=3),
    "events": st.lists(st.fixed_dictionaries(GOOD_EVENT), min_size=1, max_size=3)
    | st.lists(st.fixed_dictionaries(WILD_EVENT), max_size=3),
}  # fmt: skip
ROUTES = {
    ("POST", "/v1/recommendations"): (
        "user_id", "history", "k", "filter", "boost", "diversity", "query", "exclude", "with_reason", "page",
    ),
    ("POST", "/v1/rankings"): ("items", "user_id", "history"),
    ("POST", "/v1/events"): ("events",),
    ("POST", "/v1/items/{id}/similar"): ("k", "filter", "exclude"),
    ("PATCH", "/v1/items/{id}"): ("is_hidden", "expires_at"),
    ("PUT", "/v1/users/{id}"): ("fields",),
    ("PUT", "/v1/scenarios/{id}"): ("k", "filter", "boost"),
    ("PUT", "/v1/experiments/{id}"): ("groups",),
    ("GET", "/v1/users/{id}/recommendations"): (),
    ("GET", "/v1/items/{id}"): (),
    ("GET", "/v1/items/{id}/users"): (),
    ("DELETE", "/v1/users/{id}"): (),
}  # fmt: skip


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    with client_of(run, tmp_path_factory.mktemp("any")) as client:
        yield client


@pytest.mark.parametrize("route", list(ROUTES), ids=lambda route: " ".join(route))
def test_no_request_makes_a_route_fail(client, route, system):
    statuses, known = set(), [system.model.catalogue.item_ids[0], system.model.catalogue.user_ids[0]]

    @QUICK
    @given(st.data())
    def check(data):
        method, path = route
        path = path.replace(
            "{id}", quote(data.draw(TEXTS | st.sampled_from(known)).encode("utf-8", "replace"), safe="") or "x"
        )
        wanted = {name: FIELDS[name] for name in ROUTES[route]}
        body = data.draw(st.fixed_dictionaries({}, optional=wanted) | ANYTHING if data.draw(st.integers(0, 9)) == 0
                         else st.fixed_dictionaries({}, optional=wanted))  # fmt: skip
        headers = {"content-type": "application/json"}
        sent = json.dumps(body).encode() if ROUTES[route] else None
        answer = client.request(method, path, content=sent, headers=headers)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, (path, body, answer.text)
        assert "Traceback" not in answer.text
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert {"title", "status", "detail", "request_id"} <= {*answer.json()}

    check()
    assert 200 in statuses


def test_tenants_see_nothing_of_each_other(run, tmp_path, system):
    item_ids = system.model.catalogue.item_ids
    with client_of(run, tmp_path, needs_key=True) as client:
        store = client.app.state.store
        header = {}
        for tenant in ("default", "other"):
            store.put_tenant(tenant, run=str(run))
            header[tenant] = {"Authorization": f"Bearer {store.keys.create(tenant, scopes=['admin'])}"}
        mine, theirs = header["default"], header["other"]
        for number in range(20):
            item = item_ids[number]
            new = {"item_id": f"new-{number}", "fields": {"title": "rose cream", "secret": number}}
            good(client.post("/v1/events", json={"events": [event(number, f"u{number}", item)]}, headers=theirs))
            good(client.patch(f"/v1/items/{item}", json={"is_hidden": True}, headers=theirs))
            if number % 10 == 0:
                good(client.post("/v1/items", json={"items": [new]}, headers=theirs))
            body = good(client.post("/v1/recommendations", json={"user_id": f"u{number}", "k": 100}, headers=mine))
            assert body["scorer"] == "popular"
            assert set(ids(body)) == set(item_ids)
            assert client.get("/v1/items/new-0", headers=mine).status_code == 404
            assert good(client.get(f"/v1/users/u{number}", headers=mine))["events"] == []
            assert item not in ids(good(client.post("/v1/recommendations", json={"k": 100}, headers=theirs)))
        assert "secret" not in client.get("/v1/export", headers=mine).text
        asked = {"filter": "secret >= 0"}
        assert client.post("/v1/recommendations", json=asked, headers=mine).status_code == 400
        assert ids(good(client.post("/v1/recommendations", json=asked, headers=theirs))) == ["new-0", "new-10"]
