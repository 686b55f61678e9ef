"""Whatever is sent, no route fails: every answer is as ``/openapi.json`` describes it; tenants stay apart."""

import json
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.serving.test_app import client_of, event, good, ids

QUICK, LONG = 12, 640
"""Requests that each route is sent as described; half as many again are sent otherwise than described."""
IMPORT = "POST /v1/import"
UNTOLD = {
    "POST /v1/recommendations", "GET /v1/users/{user_id}/recommendations", "POST /v1/items/{item_id}/similar",
    "PUT /v1/scenarios/{name}", "GET /v1/export", IMPORT,
}  # fmt: skip
"""Routes that refuse some texts that are as described: expressions, pages, cursors and lines of an export."""
LEAST_ACCEPTED = 0.3
HOSTILE = [
    "1.2",
    "true",
    "1 / 0 > 1",
    "title + title == title",
    "user.a",
    "\0",
    "\ud800",
    "'; drop table items",
    "[" * 99,
]


@schemathesis.serializer("application/x-ndjson")
def lines_of(context, value):
    """Lines of text, as they are."""
    return str(value).encode("utf-8", "surrogatepass")


def without_lifespan(app):
    """The application for callers that would end it after each call."""

    async def answer(scope, receive, send):
        if scope["type"] != "lifespan":
            return await app(scope, receive, send)
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})
        return None

    return answer


class Asker:
    """A service with a key, and what its routes answered; ``ask`` sends so many requests to each route."""

    def __init__(self, client, header, known):
        self.client, self.header, self.known, self.statuses = client, header, known, Counter()
        self.line = client.get("/v1/export", headers=self.header).text.partition("\n")[0]
        self.description = schemathesis.openapi.from_asgi("/openapi.json", without_lifespan(client.app))
        self.description.config.generation.update(with_security_parameters=False)
        hook = self.description.hook
        hook("map_path_parameters")(lambda context, path_parameters: self.with_known_ids(path_parameters))
        hook("map_body")(lambda context, body: self.with_an_exported_line(context, body))

    def with_known_ids(self, path_parameters):
        """Every other id is one that the service knows."""
        return {
            name: self.known.get(name, value) if zlib.crc32(repr(value).encode()) % 2 else value
            for name, value in (path_parameters or {}).items()
        }

    def with_an_exported_line(self, context, body):
        """Every other import is one of a line that was exported."""
        is_import = context.operation.label == IMPORT
        return self.line if is_import and zlib.crc32(repr(body).encode()) % 2 else body

    def ask(self, num_requests):
        """Fails with the request where an answer is not as described."""
        for operation in (found.ok() for found in self.description.get_all_operations()):
            for mode, number in (
                (schemathesis.GenerationMode.POSITIVE, num_requests),
                (schemathesis.GenerationMode.NEGATIVE, num_requests // 2),
            ):
                self._ask(operation, mode, number)

    def _ask(self, operation, mode, number):
        if mode is schemathesis.GenerationMode.NEGATIVE and operation.label == IMPORT:
            return  # a text is a text, whatever it was made of

        @settings(
            max_examples=number,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            answer = case.call(headers=self.header, base_url="http://localhost")
            self.statuses[answer.status_code] += 1
            assert "Traceback (most recent call last)" not in answer.text
            excluded = [positive_data_acceptance] if operation.label in UNTOLD else []
            case.validate_response(answer, headers=self.header, excluded_checks=excluded)

        try:
            check()
        except Unsatisfiable:
            # Without a query and a body there is nothing to send otherwise than described.
            assert mode is schemathesis.GenerationMode.NEGATIVE, operation.label
            assert not operation.query, operation.label
            assert not operation.body, operation.label

    @property
    def accepted(self):
        """The share of requests that were accepted."""
        return sum(count for status, count in self.statuses.items() if status < 300) / self.statuses.total()


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    with client_of(run, tmp_path_factory.mktemp("any"), needs_key=True) as client:
        yield client


@pytest.fixture(scope="module")
def header(client):
    return {"Authorization": f"Bearer {client.app.state.store.keys.create('default', scopes=['admin'])}"}


@pytest.fixture
def asker(client, header, system):
    catalogue = system.model.catalogue
    return Asker(client, header, {"item_id": catalogue.item_ids[0], "user_id": catalogue.user_ids[0], "name": "home"})


def test_a_few_requests_of_every_route_are_answered_as_described(asker):
    asker.ask(QUICK)
    assert asker.statuses.total() > 300
    assert asker.accepted >= LEAST_ACCEPTED, asker.statuses


@pytest.mark.soak
def test_20_000_requests_are_answered_as_described(asker):
    asker.ask(LONG)
    assert asker.statuses.total() >= 20_000, asker.statuses
    assert asker.accepted >= LEAST_ACCEPTED, asker.statuses


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["filter", "boost", "query", "user_id", "page"])
def test_hostile_texts_are_answered_or_refused(client, header, name, text):
    body = json.dumps({name: text}).encode()
    headers = header | {"Content-Type": "application/json"}
    answer = client.post("/v1/recommendations", content=body, headers=headers)
    assert answer.status_code in (200, 400, 422), answer.text


def headers_of(client, run, tenants):
    """Tenants are entered, and each gets an administrator's key."""
    store, header = client.app.state.store, {}
    for tenant in tenants:
        store.put_tenant(tenant, run=str(run))
        header[tenant] = {"Authorization": f"Bearer {store.keys.create(tenant, scopes=['admin'])}"}
    return header


@pytest.mark.parametrize("num_requests", [200, pytest.param(1_000, marks=pytest.mark.soak)])
def test_crossing_requests_of_two_tenants_see_their_own_alone(run, tmp_path, system, num_requests):
    """Both know the same users and items, had different ones, hide different ones, and ask at once."""
    item_ids = system.model.catalogue.item_ids
    own = {"default": item_ids[::2], "other": item_ids[1::2]}
    with client_of(run, tmp_path, needs_key=True) as client, ThreadPoolExecutor(8) as pool:
        header = headers_of(client, run, own)
        for tenant, kept in own.items():
            for item in sorted(set(item_ids) - set(kept)):
                good(client.patch(f"/v1/items/{item}", json={"is_hidden": True}, headers=header[tenant]))
            added = {"item_id": f"of-{tenant}", "fields": {"title": "rose cream", "whose": tenant}}
            good(client.post("/v1/items", json={"items": [added]}, headers=header[tenant]))

        def ask(number):
            tenant, user = ("default", "other")[number % 2], f"u{number // 2 % 25}"
            mine, given = header[tenant], {*own[tenant], f"of-{tenant}"}
            seen = event(number, user, own[tenant][number % len(own[tenant])])
            assert good(client.post("/v1/events", json={"events": [seen]}, headers=mine))["new"] == 1
            body = {"user_id": user, "k": 100, "with_history": True}
            assert set(ids(good(client.post("/v1/recommendations", json=body, headers=mine)))) <= given
            body |= {"filter": f'whose == "{tenant}"'}
            assert ids(good(client.post("/v1/recommendations", json=body, headers=mine))) == [f"of-{tenant}"]
            shown = good(client.get(f"/v1/users/{user}", headers=mine))
            assert {one["item_id"] for one in shown["events"]} <= given
            return tenant, user

        sent = Counter(pool.map(ask, range(num_requests)))
        for (tenant, user), number in sent.items():
            assert len(good(client.get(f"/v1/users/{user}", headers=header[tenant]))["events"]) == number
        for tenant, other in (("default", "other"), ("other", "default")):
            assert f"of-{other}" not in client.get("/v1/export", headers=header[tenant]).text


def test_tenants_see_nothing_of_each_other(run, tmp_path, system):
    item_ids = system.model.catalogue.item_ids
    with client_of(run, tmp_path, needs_key=True) as client:
        header = headers_of(client, run, ("default", "other"))
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
