"""The routes: what they answer, what they refuse, and that the next request sees what was acknowledged."""

import base64
import json
import zlib

import pytest
from starlette.testclient import TestClient
from tests.remedies import advises

from allrec.errors import InputError
from allrec.serving.app import ServeConfig, create_app, print_new_key
from allrec.serving.service import Retention
from allrec.serving.store import Event, Store


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
    assert popular["fallback"] == "too few items had events: by training interactions"
    assert [item["score"] for item in popular["items"]] == sorted(catalogue.train_counts.tolist())[:-4:-1]
    assert ids(popular) == [one.item_id for one in system.recommend(history=[], k=3)]
    now = __import__("time").time()
    rows = [event(f"{user}", f"u{user}", catalogue.item_ids[9]) | {"timestamp": now - 5} for user in range(3)]
    good(client.post("/v1/events", json={"events": rows}))
    popular = good(client.get("/v1/popular"))
    assert [(item["item_id"], item["score"] > 0) for item in popular["items"][:2]] == [
        (catalogue.item_ids[9], True),
        (ids(good(client.get("/v1/popular")))[1], False),
    ]
    assert (len(ids(popular)), good(client.get("/v1/popular?k=1"))["fallback"]) == (10, None)
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


def test_pages_of_an_origin_that_is_let_in_may_send_json_and_keys(run, tmp_path):
    origin = {"Origin": "http://shop.example"}
    asked = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization,content-type"}
    with client_of(run, tmp_path, origins=("http://shop.example",)) as client:
        answer = client.options("/v1/users/u", headers=origin | asked)
        assert answer.status_code == 200, answer.text
        assert answer.headers["access-control-allow-origin"] == "http://shop.example"
        assert client.options("/v1/users/u", headers={"Origin": "http://evil.example"} | asked).status_code == 400
        good(client.put("/v1/users/u", json={"fields": {}}, headers=origin | {"Sec-Fetch-Site": "cross-site"}))
        foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
        assert client.put("/v1/users/u", json={"fields": {}}, headers=foreign).status_code == 403


def test_a_users_fields_are_not_in_the_token_of_a_page_and_count_as_they_are_now(client, system):
    item_ids = system.model.catalogue.item_ids
    good(client.put("/v1/users/u", json={"fields": {"kept": item_ids, "secret": "diabetes"}}))
    asked = {"user_id": "u", "k": 5, "filter": "item_id in user.kept"}
    body = good(client.post("/v1/recommendations", json=asked))
    token = zlib.decompress(base64.urlsafe_b64decode(body["next_page"])).decode()
    assert "diabetes" not in token
    following = ids(good(client.post("/v1/recommendations", json={"page": body["next_page"]})))
    assert len(following) == 5
    good(client.put("/v1/users/u", json={"fields": {"kept": following[1:3]}}))
    assert ids(good(client.post("/v1/recommendations", json={"page": body["next_page"]}))) == following[1:3]
    good(client.delete("/v1/users/u"))
    assert ids(good(client.post("/v1/recommendations", json={"page": body["next_page"]}))) == []


def test_a_text_is_answered_by_the_settings_of_the_request(client, system):
    catalogue = system.model.catalogue
    asked = {"query": catalogue.texts[4], "k": 8}
    plain = good(client.post("/v1/recommendations", json=asked))
    assert (plain["scorer"], plain["fallback"]) == ("text", None)
    spread = good(client.post("/v1/recommendations", json=asked | {"diversity": 1.0}))
    assert ids(spread)[0] == ids(plain)[0]
    assert ids(spread) != ids(plain)
    last = json.dumps(ids(plain)[-1])
    boosted = good(client.post("/v1/recommendations", json=asked | {"boost": f"item_id == {last} ? 100.0 : 1.0"}))
    assert ids(boosted)[0] == ids(plain)[-1]
    assert ids(boosted)[1:] == ids(plain)[:-1]
    slight = good(client.post("/v1/recommendations", json=asked | {"boost": f"item_id == {last} ? 1.0001 : 1.0"}))
    assert ids(slight)[0] == ids(plain)[0]
    reasoned = good(client.post("/v1/recommendations", json=asked | {"with_reason": True}))
    assert {item["reason"] for item in reasoned["items"]} == {"its text fits the query"}
    nobody = good(client.post("/v1/recommendations", json=asked | {"user_id": "nobody"}))
    assert (nobody["scorer"], nobody["fallback"]) == ("text", "the user has no history: the text alone")
    known = good(client.post("/v1/recommendations", json=asked | {"user_id": catalogue.user_ids[0]}))
    assert (known["scorer"], known["fallback"]) == ("text and fusion", None)


def test_a_scenario_is_kept_while_a_running_experiment_gives_it(client):
    good(client.put("/v1/scenarios/few", json={"k": 3}))
    groups = {"a": {"share": 1}, "b": {"share": 1, "scenario": "few"}}
    good(client.put("/v1/experiments/test", json={"groups": groups}))
    answer = client.delete("/v1/scenarios/few")
    assert answer.status_code == 409
    advises(answer.json()["detail"], "gives scenario {} to a group. End it first.")
    good(client.put("/v1/experiments/test", json={"groups": groups, "is_running": False}))
    good(client.delete("/v1/scenarios/few"))


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("scenario", {"name": "s", "settings": {"k": 100_000}}, "cannot be used: k: "),
        ("scenario", {"name": "s", "settings": {"zap": 1}}, "cannot be used: zap: "),
        ("item", {"item_id": "i", "fields": {"a": "x" * 30_000}}, "have 30009 bytes"),
        ("item", {"item_id": "i", "fields": {"title": "\ud800 rose"}}, "cannot be stored"),
    ],
)
def test_an_import_takes_what_a_request_could_have_set(client, kind, row, words):
    answer = client.post("/v1/import", content=json.dumps({"kind": kind, "row": row}))
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("line 1: ")
    assert words in answer.json()["detail"]
    good(client.post("/v1/recommendations", json={"user_id": "u"}))


def test_a_scenario_of_an_earlier_day_that_no_longer_holds_is_told(client):
    client.app.state.store.put_scenario("default", "old", settings={"zap": 1})
    answer = client.post("/v1/recommendations", json={"scenario": "old"})
    assert answer.status_code == 400
    advises(answer.json()["detail"], "scenario {} has settings that cannot be used: {}: {}. Set it anew.")
    good(client.put("/v1/scenarios/old", json={"k": 3}))
    assert len(ids(good(client.post("/v1/recommendations", json={"scenario": "old"})))) == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "pointer"),
    [
        ("POST", "/v1/recommendations", {"filter": "prize < 1"}, "/body/filter"),
        ("POST", "/v1/recommendations", {"boost": "popularity <"}, "/body/boost"),
        ("POST", "/v1/recommendations", {"filter": "popularity"}, "/body/filter"),
        ("GET", "/v1/users/u/recommendations?boost=prize", None, "/query/boost"),
        ("PUT", "/v1/scenarios/s", {"boost": "prize"}, "/body/boost"),
        ("POST", "/v1/items", {"items": [{"item_id": "1", "fields": {"a": "x" * 30_000}}]}, "/body/items/0/fields"),
        ("PUT", "/v1/users/u", {"fields": {"a": "x" * 30_000}}, "/body/fields"),
    ],
)
def test_a_problem_points_at_the_field(client, method, path, body, pointer):
    answer = client.request(method, path, json=body)
    assert answer.status_code in (400, 422)
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_an_edited_item_of_the_run_is_no_new_one_and_a_list_for_a_title_is_a_text(client, system):
    old = system.model.catalogue.item_ids[0]
    good(client.post("/v1/items", json={"items": [{"item_id": old, "fields": {"title": ["Rose", "cream"]}}]}))
    assert ids(good(client.get("/v1/latest"))) == []
    body = good(client.post("/v1/recommendations", json={"user_id": "u", "filter": f"item_id == {json.dumps(old)}"}))
    assert body["items"][0]["title"] == "Rose, cream"
    assert good(client.patch(f"/v1/items/{old}", json={"is_hidden": True}))["is_known"]
    assert not good(client.patch("/v1/items/mistyped", json={"is_hidden": True}))["is_known"]


def test_lists_are_on_record_and_steps_have_figures(client, system):
    catalogue = system.model.catalogue
    asked = {"items": catalogue.item_ids[:4], "user_id": catalogue.user_ids[0]}
    ranked, popular = good(client.post("/v1/rankings", json=asked)), good(client.get("/v1/popular?k=2"))
    good(client.post("/v1/recommendations", json={"query": catalogue.texts[4], "with_reason": True}))
    figures = client.get("/metrics").text
    for step in ("ranking", "text", "reasons"):
        assert f'allrec_step_seconds_count{{step="{step}"}} 1.0' in figures
    client.app.state.recorder.close()
    store = client.app.state.store
    for body, user in ((ranked, catalogue.user_ids[0]), (popular, None)):
        answer = store.answer("default", body["recommendation_id"])
        assert (list(answer.item_ids), answer.user_id, answer.scorer) == (ids(body), user, body["scorer"])
    users = good(client.get(f"/v1/items/{catalogue.item_ids[0]}/users?k=1"))
    assert (len(users["recommendation_id"]), users["scorer"], users["fallback"]) == (32, "joint", None)


def test_a_key_is_made_for_any_tenant(run, tmp_path, capsys):
    config = ServeConfig(run, f"sqlite:///{tmp_path}/store.db", needs_key=True)
    print_new_key(config, "shop")
    key = capsys.readouterr().out.strip()
    with Store.open(config.store_url) as store:
        assert store.keys.check(key) == ("shop", frozenset({"admin"}))
    with pytest.raises(InputError, match="no point first"):
        print_new_key(config, "..")


def test_what_is_too_old_goes_for_every_tenant(run, tmp_path):
    with client_of(run, tmp_path) as client:
        store, service = client.app.state.store, client.app.state.service
        for tenant in ("default", "shop"):
            store.add_events(tenant, [Event("e", "u", "i", "view", 0.0)])
        retention = Retention(service, 1.0)
        assert retention.sweep(10 * 86_400.0) == 2
        retention.close()
        assert [store.num_events(tenant) for tenant in ("default", "shop")] == [0, 0]
