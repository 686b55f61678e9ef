"""Under load: many clients at once, a model switch without a failed request, and the language model by HTTP."""

from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep, time

import pytest
from starlette.testclient import TestClient
from tests.serving.test_app import client_of, event, good, ids

from allrec.serving.app import ServeConfig, create_app
from allrec.serving.service import Retention, published_run
from allrec.serving.store import Event, Store


def test_many_at_once_are_answered_as_each_alone_while_the_model_is_switched(run, tmp_path, system):
    other = run.parent / "switched"
    if not other.exists():
        system.save_pretrained(other)
    users = system.model.catalogue.user_ids[:8]
    expected = {user: [one.item_id for one in system.recommend(user=user, use_llm=False)] for user in users}
    with client_of(run, tmp_path) as client, ThreadPoolExecutor(8) as pool:

        def ask(user):
            return user, client.post("/v1/recommendations", json={"user_id": user})

        seen, end = set(), monotonic() + 60
        published = pool.submit(client.post, "/v1/models", json={"run": "switched"})
        while seen != {1, 2}:
            assert monotonic() < end
            for user, answer in pool.map(ask, users):
                body = good(answer)
                assert ids(body) == expected[user]
                seen.add(body["model_version"])
        assert published.result().status_code == 200
        assert client.app.state.service.batcher.largest_seen > 1


def test_the_language_model_orders_within_a_budget_and_the_answer_says_so(run, tmp_path, system):
    config = ServeConfig(run, f"sqlite:///{tmp_path}/store.db", cache=tmp_path / "cache")
    with TestClient(create_app(config), base_url="http://localhost") as client:
        user = system.model.catalogue.user_ids[0]
        early = good(client.post("/v1/recommendations", json={"user_id": user, "budget_ms": 1}))
        assert early["scorer"] == "fusion"
        assert "language model" in early["llm"]
        end = monotonic() + 90
        while good(client.get("/readyz"))["language_model"] != "ready":
            assert monotonic() < end
            sleep(0.1)
        read = good(client.post("/v1/recommendations", json={"user_id": user, "budget_ms": 10_000}))
        assert (read["scorer"], read["llm"]) == ("llm", "ordered")
        assert ids(read) == [one.item_id for one in system.recommend(user=user)]
        assert "Not shown" not in client.get(f"/?user={user}").text


def test_what_is_too_old_is_deleted(run, tmp_path):
    with client_of(run, tmp_path) as client:
        now = time()
        old, new = event("old", "u", "i"), event("new", "u", "i")
        good(client.post("/v1/events", json={"events": [old | {"timestamp": now - 9e5}, new | {"timestamp": now}]}))
        retention = Retention(client.app.state.service, days=1)
        assert retention.sweep(now) == 1
        retention.close()
        assert [one["event_id"] for one in good(client.get("/v1/users/u"))["events"]] == ["enew"]


def test_the_run_of_the_command_line_serves_where_the_store_has_never_seen_it(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    assert published_run(store, "/runs/a").run == "/runs/a"
    store.publish("default", run="/runs/b")
    assert published_run(store, "/runs/a").run == "/runs/b"
    assert published_run(store, "/runs/c").run == "/runs/c"
    assert published_run(store, "/runs/b").version == 3
    store.close()


@pytest.mark.parametrize("num_events", [5_000])
def test_a_batch_of_events_is_taken_whole(run, tmp_path, num_events):
    with client_of(run, tmp_path) as client:
        events = [event(number, f"u{number % 7}", "i") for number in range(num_events)]
        assert good(client.post("/v1/events", json={"events": events}))["new"] == num_events
        assert client.post("/v1/events", json={"events": [*events, event(-1, "u", "i")]}).status_code == 422
        (latest,) = client.app.state.store.history("default", "u0", limit=1)
        assert isinstance(latest, Event)
        assert latest.timestamp == max(number for number in range(num_events) if number % 7 == 0)
