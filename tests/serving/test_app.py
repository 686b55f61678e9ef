"""The routes: what they answer, what they refuse, and that the next request sees what was acknowledged."""

import json

import pytest
from starlette.testclient import TestClient

from allrec.errors import InputError
from allrec.serving.app import ServeConfig, create_app


def client_of(run, tmp_path, **settings):
    config = ServeConfig(run, f"sqlite:///{tmp_path}/store.db", with_llm=False, cache=tmp_path / "cache", **settings)
    return TestClient(create_app(config), base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture
def client(run, tmp_path):
    with client_of(run, tmp_path) as client:
        yield client


def good(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(body):
    return [item["item_id"] for item in body["items"]]


def event(number, user, item, **more):
    return {"event_id": f"e{number}", "user_id": user, "item_id": item, "kind": "view", "timestamp": number, **more}


def test_a_users_recommendations_equal_those_of_the_library(client, system):
    for user in system.model.catalogue.user_ids[:5]:
        expected = system.recommend(user=user, k=10, use_llm=False)
        for body in (
            good(client.post("/v1/recommendations", json={"user_id": user})),
            good(client.get(f"/v1/users/{user}/recommendations")),
        ):
            assert ids(body) == [one.item_id for one in expected]
            assert [item["score"] for item in body["items"]] == pytest.approx([one.score for one in expected], rel=1e-5)
            assert (body["scorer"], body["fallback"], body["model_version"]) == ("fusion", None, 1)


def test_pages_go_on_where_the_last_one_ended_without_what_was_hidden_since(client, system):
    user = system.model.catalogue.user_ids[0]
    whole = good(client.post("/v1/recommendations", json={"user_id": user, "k": 30}))
    first = good(client.post("/v1/recommendations", json={"user_id": user, "k": 10}))
    hidden = ids(whole)[12]
    good(client.patch(f"/v1/items/{hidden}", json={"is_hidden": True}))
    second = good(client.post("/v1/recommendations", json={"page": first["next_page"]}))
    assert ids(first) == ids(whole)[:10]
    assert ids(second) == [item for item in ids(whole)[10:21] if item != hidden]
    assert second["recommendation_id"] == first["recommendation_id"]
    for page in ("nonsense", first["next_page"][:-8], "e30="):
        answer = client.post("/v1/recommendations", json={"page": page})
        assert answer.status_code == 400
        assert "got a page that is none" in answer.json()["detail"]


def test_reasons_and_contributions_explain_each_item(client, system):
    body = good(
        client.post("/v1/recommendations", json={"user_id": system.model.catalogue.user_ids[0], "with_reason": True})
    )
    for item in body["items"]:
        assert item["reason"]
        assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-3)


def test_a_scenario_and_an_experiment_set_what_a_request_leaves_out(client, system):
    kept = system.model.catalogue.item_ids[::7]
    good(client.put("/v1/scenarios/few", json={"filter": f"item_id in {json.dumps(kept)}", "k": 3}))
    body = good(client.post("/v1/recommendations", json={"user_id": "new", "scenario": "few"}))
    assert len(ids(body)) == 3
    assert set(ids(body)) <= set(kept)
    assert len(ids(good(client.post("/v1/recommendations", json={"scenario": "few", "k": 2})))) == 2
    groups = {"a": {"share": 1}, "b": {"share": 1, "scenario": "few"}}
    good(client.put("/v1/experiments/test", json={"groups": groups}))
    sizes = {}
    for number in range(20):
        asked = {"user_id": f"user-{number}", "experiment": "test"}
        body, again = (good(client.post("/v1/recommendations", json=asked)) for _ in range(2))
        assert body["experiment_group"] == again["experiment_group"]
        sizes.setdefault(body["experiment_group"], set()).add(len(ids(body)))
    assert sizes == {"a": {10}, "b": {3}}
    client.app.state.recorder.close()
    clicked = {"item_id": ids(body)[0], "recommendation_id": body["recommendation_id"], "kind": "click"}
    good(client.post("/v1/feedback", json={"feedback": [clicked | {"timestamp": 1.0, "user_id": "user-19"}]}))
    shown = good(client.get("/v1/experiments/test"))
    assert sum(group["num_answers"] for group in shown["groups"].values()) == 40
    clicks = {name: group["rates"]["click_rate"] for name, group in shown["groups"].items()}
    mine = body["experiment_group"]
    assert clicks[mine] == pytest.approx(1 / shown["groups"][mine]["num_answers"])
    assert "one look" in shown["note"]
    for asked in ({"scenario": "fewer"}, {"experiment": "other", "user_id": "u"}):
        assert client.post("/v1/recommendations", json=asked).status_code == 404


def test_an_event_an_item_and_a_hidden_item_count_in_the_next_request(client, system):
    item_ids = system.model.catalogue.item_ids
    assert good(client.post("/v1/recommendations", json={"user_id": "new"}))["scorer"] == "popular"
    events = {"events": [event(number, "new", item) for number, item in enumerate(item_ids[:3])]}
    assert good(client.post("/v1/events", json=events)) == {"received": 3, "new": 3}
    assert good(client.post("/v1/events", json=events)) == {"received": 3, "new": 0}
    body = good(client.post("/v1/recommendations", json={"user_id": "new"}))
    assert ids(body) == [one.item_id for one in system.recommend(history=item_ids[:3], use_llm=False)]
    good(client.patch(f"/v1/items/{ids(body)[0]}", json={"is_in_stock": False}))
    assert ids(body)[0] not in ids(good(client.post("/v1/recommendations", json={"user_id": "new", "k": 57})))
    fields = {"title": system.model.catalogue.titles[5], "price": 9.5, "category": "Extra"}
    good(client.post("/v1/items", json={"items": [{"item_id": "fresh/1", "fields": fields}]}))
    body = good(client.post("/v1/recommendations", json={"user_id": "new", "filter": "price < 10.0"}))
    assert ids(body) == ["fresh/1"]
    assert body["items"][0]["is_cold"]
    assert item_ids[5] in ids(good(client.post("/v1/items/fresh/1/similar", json={})))
    assert len(good(client.get("/v1/items/fresh/1/users?k=5"))["users"]) == 5
    assert good(client.get("/v1/items/fresh/1"))["fields"]["price"] == 9.5
    assert ids(good(client.get("/v1/latest"))) == ["fresh/1"]


def test_items_sent_again_do_not_bring_a_hidden_one_back(client):
    fields = {"title": "rose cream", "price": 1.0}
    for _ in range(2):
        good(client.post("/v1/items", json={"items": [{"item_id": "x", "fields": fields}]}))
        good(client.patch("/v1/items/x", json={"is_hidden": True}))
    good(client.post("/v1/items", json={"items": [{"item_id": "x", "fields": fields}]}))
    body = good(client.post("/v1/recommendations", json={"user_id": "u", "filter": "price < 10.0"}))
    assert ids(body) == []


def test_texts_lists_and_counts(client, system):
    catalogue = system.model.catalogue
    body = good(client.post("/v1/recommendations", json={"query": catalogue.texts[4], "k": 3}))
    assert body["scorer"] == "text"
    assert catalogue.item_ids[4] in ids(body)
    listed = [*catalogue.item_ids[:8], "unknown"]
    body = good(client.post("/v1/rankings", json={"items": listed, "user_id": catalogue.user_ids[1]}))
    expected = system.rank(listed[:8], user=catalogue.user_ids[1], use_llm=False)
    assert ids(body) == [one.item_id for one in expected]
    assert body["left_out"] == ["unknown"]
    popular = good(client.get("/v1/popular?k=3"))
    assert popular["scorer"] == "popular in training"
    assert ids(popular) == [one.item_id for one in system.recommend(history=[], k=3)]
    now = __import__("time").time()
    rows = [event(f"{user}", f"u{user}", catalogue.item_ids[9]) | {"timestamp": now - 5} for user in range(3)]
    good(client.post("/v1/events", json={"events": rows}))
    assert ids(good(client.get("/v1/popular"))) == [catalogue.item_ids[9]]
    assert ids(good(client.get("/v1/trending"))) == [catalogue.item_ids[9]]
    assert ids(good(client.get("/v1/popular?category=none"))) == []


def test_a_users_data_are_shown_and_erased_and_everything_moves(client, run, tmp_path, system):
    user = "somebody"
    good(client.post("/v1/events", json={"events": [event(1, user, system.model.catalogue.item_ids[0])]}))
    good(client.put(f"/v1/users/{user}", json={"fields": {"country": "DE"}}))
    shown = good(client.get(f"/v1/users/{user}"))
    assert (shown["fields"], len(shown["events"]), shown["trained_on"]) == ({"country": "DE"}, 1, [])
    lines = client.get("/v1/export").text.splitlines()
    (tmp_path / "other").mkdir()
    with client_of(run, tmp_path / "other") as other:
        body = "\n".join(lines)
        assert good(other.post("/v1/import", content=body))["read"]["event"] == 1
        assert good(other.get(f"/v1/users/{user}"))["events"] == shown["events"]
        rest = other.get("/v1/export", params={"cursor": json.loads(lines[0])["cursor"]}).text.splitlines()
        assert len(rest) == len(lines) - 1
    assert good(client.delete(f"/v1/users/{user}"))["erased"]["events"] == 1
    shown = good(client.get(f"/v1/users/{user}"))
    assert (shown["fields"], shown["events"]) == (None, [])


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/recommendations", {"k": 0}, 422, "/body/k: "),
        ("POST", "/v1/recommendations", {"kk": 1}, 422, "/body/kk: "),
        ("POST", "/v1/recommendations", {"filter": "prize < 1"}, 400, "unknown field 'prize'"),
        ("POST", "/v1/recommendations", {"user_id": "u", "page": "x"}, 422, "page stands alone"),
        ("POST", "/v1/events", {"events": [{"event_id": "1"}]}, 422, "/body/events/0/user_id: "),
        ("POST", "/v1/items", {"items": [{"item_id": "1", "fields": {"a": "x" * 30_000}}]}, 422, "20000"),
        ("POST", "/v1/items/unknown/similar", {}, 404, "unknown item 'unknown'"),
        ("POST", "/v1/import", {"kind": "nothing"}, 400, "line 1"),
        ("GET", "/v1/export?cursor=x", None, 400, "got the cursor"),
        ("GET", "/v1/nothing", None, 404, "Not Found"),
        ("GET", "/v1/popular?kk=3", None, 422, "unknown parameter 'kk': did you mean 'k'"),
        ("POST", "/v1/recommendations", {"scenario": "home"}, 404, "unknown scenario 'home': there is none."),
        ("PUT", "/v1/scenarios/s", {"filter": "price <"}, 400, "does not compile"),
        ("POST", "/v1/models", {"run": "../../etc"}, 422, "/body/run"),
        ("POST", "/v1/models", {"run": "missing"}, 404, "no run 'missing'"),
        ("POST", "/v1/models/roll-back", None, 409, "no earlier model version"),
    ],
)
def test_what_is_refused_is_a_problem_document(client, method, path, body, status, words):
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert words in problem["detail"]
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_an_error_of_the_service_shows_no_trace(client, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(client.app.state.store, "popular", fail)
    answer = client.get("/v1/popular", headers={"X-Request-ID": "abc"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "abc"


def test_a_body_beyond_the_limit_is_refused(run, tmp_path):
    with client_of(run, tmp_path, largest_body=1000) as client:
        assert client.post("/v1/import", content="x" * 1001).status_code == 413
        chunks = (b"x" * 600 for _ in range(2))
        assert client.post("/v1/import", content=chunks).status_code == 413


def test_keys_have_scopes_and_a_tenant_and_are_limited(run, tmp_path):
    with client_of(run, tmp_path, needs_key=True, rate=0.001, burst=4) as client:
        keys = client.app.state.store.keys
        store = client.app.state.store
        store.put_tenant("other", run=str(run))
        header = lambda *scopes, tenant="default": {  # noqa: E731
            "Authorization": f"Bearer {keys.create(tenant, scopes=scopes)}"
        }
        assert client.get("/v1/popular").status_code == 401
        assert client.get("/v1/popular", headers={"Authorization": "Bearer allrec_x"}).status_code == 401
        reader = header("read")
        good(client.get("/v1/popular", headers=reader))
        assert client.post("/v1/events", json={"events": [event(1, "u", "i")]}, headers=reader).status_code == 403
        writer = header("write", tenant="other")
        good(client.post("/v1/events", json={"events": [event(1, "u", "i")]}, headers=writer))
        assert store.num_events("other") == 1
        assert store.num_events("default") == 0
        good(client.get("/v1/keys", headers=header("admin")))
        answers = [client.get("/v1/popular", headers=reader) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        good(client.get("/v1/popular", headers=header("read")))


def test_without_keys_pages_of_other_sites_may_not_ask_and_only_loopback_may_listen(client, tmp_path):
    assert client.get("/v1/popular", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/popular", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/v1/popular", headers={"Origin": "http://localhost"}).status_code == 200
    with pytest.raises(InputError, match="without API keys"):
        ServeConfig(tmp_path, host="0.0.0.0")


def test_a_run_is_published_checked_and_rolled_back(client, run, system):
    other = run.parent / "second"
    if not other.exists():
        system.save_pretrained(other)
    body = good(client.post("/v1/models", json={"run": "second"}))
    assert (body["version"], body["overlap_at_10"]) == (2, 1.0)
    assert good(client.post("/v1/models/roll-back"))["version"] == 1
    versions = good(client.get("/v1/models"))["versions"]
    assert [one["withdrawn_at"] is None for one in versions] == [True, False]


def test_operators_see_health_figures_and_answers_on_record(client, system):
    assert client.get("/healthz").text == "ok"
    assert good(client.get("/readyz")) == {"status": "ready", "language_model": "none"}
    body = good(client.post("/v1/recommendations", json={"user_id": system.model.catalogue.user_ids[0], "k": 4}))
    figures = client.get("/metrics").text
    assert 'allrec_answers_total{scorer="fusion"} 1.0' in figures
    assert 'allrec_request_seconds_count{route="/v1/recommendations",status="200"} 1.0' in figures
    client.app.state.recorder.close()
    answer = client.app.state.store.answer("default", body["recommendation_id"])
    assert list(answer.item_ids) == ids(body)
    assert (answer.model_version, answer.scorer, answer.user_id) == (1, "fusion", system.model.catalogue.user_ids[0])


def test_the_routes_are_described(client):
    described = good(client.get("/openapi.json"))
    assert {"/v1/recommendations", "/v1/events", "/v1/items", "/v1/experiments/{name}"} <= {*described["paths"]}
