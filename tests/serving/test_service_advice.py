"""What the service's messages advise, done as it is written."""

import json
import re
import shutil
import subprocess
from functools import partial
from time import sleep

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError
from tests.llm.test_llm_advice import extra
from tests.remedies import advises, program, refused
from tests.serving.test_app import client_of, event, good, ids
from tests.serving.test_serving_page import shown, token_of

from allrec.cli import commands
from allrec.serving import admin_routes, database
from allrec.serving.app import ServeConfig, create_app
from allrec.serving.expressions import LONGEST
from allrec.serving.refresh import RefreshConfig, refresh
from allrec.serving.store import Event, Store


@pytest.fixture
def client(run, tmp_path):
    with client_of(run, tmp_path) as client:
        yield client


def refusal(answer, status):
    """The detail of an answer that refuses."""
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


# Starting


def test_the_extra_is_installed(monkeypatch):
    def lacking():
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    with refused("{} is not installed. Install it: pip install 'allrec[serve]'"), commands._of_the_service():
        lacking()
    needed = {
        "fastapi",
        "uvicorn",
        "sqlalchemy",
        "alembic",
        "psycopg",
        "jinja2",
        "prometheus-client",
        "cel-expr-python",
    }
    assert needed <= extra("serve")
    with commands._of_the_service():
        __import__("fastapi")


def test_keys_are_given_or_loopback_listened_at(run):
    with refused("Give --keys, or listen at 127.0.0.1."):
        ServeConfig(run, host="0.0.0.0")
    assert ServeConfig(run, host="0.0.0.0", needs_key=True).needs_key
    assert ServeConfig(run, host="127.0.0.1").host == "127.0.0.1"


def test_a_store_of_a_newer_version_is_opened_by_that_version(tmp_path, monkeypatch):
    url, newer = f"sqlite:///{tmp_path}/store.db", tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, newer)
    latest = max(path.name[1:5] for path in (newer / "versions").glob("v*.py"))
    (newer / "versions" / "v9999_next.py").write_text(
        f'revision = "9999"\ndown_revision = "{latest}"\n\n\ndef upgrade():\n    pass\n'
    )
    with monkeypatch.context() as upgraded:
        upgraded.setattr(database, "MIGRATIONS", newer)
        Store.open(url).close()
    with refused("the store has a schema that this allrec does not know: {}. Upgrade allrec."):
        Store.open(url)
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    Store.open(url).close()


def test_another_address_of_the_store_is_given(tmp_path):
    with refused("the store cannot be opened: {}. {}."):
        Store.open("postgresql+psycopg://user@127.0.0.1:1/store")
    Store.open(f"sqlite:///{tmp_path}/store.db").close()


def test_a_postgresql_store_is_backed_up_by_its_own_program(server, tmp_path):
    url = server.create("backed")
    with Store.open(url) as store, refused("for PostgreSQL take pg_dump --format=custom."):
        store.back_up(tmp_path / "copy")
    plain = url.replace("+psycopg", "")
    file = tmp_path / "store.dump"
    done = subprocess.run(["pg_dump", "--format=custom", f"--file={file}", plain], capture_output=True, check=False)
    if done.returncode and not shutil.which("pg_dump"):
        pytest.skip("pg_dump is not installed here")
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size > 0


# Requests


def test_the_header_is_sent(run, tmp_path):
    with client_of(run, tmp_path, needs_key=True) as client:
        advises(refusal(client.get("/v1/popular"), 401), "expected the header Authorization: Bearer KEY.")
        key = client.app.state.store.keys.create("default", scopes=["read"])
        good(client.get("/v1/popular", headers={"Authorization": f"Bearer {key}"}))


def test_the_wait_is_waited(run, tmp_path):
    with client_of(run, tmp_path, rate=5.0, burst=1) as client:
        good(client.get("/v1/popular"))
        detail = refusal(client.get("/v1/popular"), 429)
        advises(detail, "got more than {} requests a second. Wait {} s.")
        sleep(float(re.search(r"Wait (\S+) s", detail)[1]) + 0.01)
        good(client.get("/v1/popular"))


def test_a_page_elsewhere_asks_with_a_key(client, run, tmp_path):
    foreign = {"Origin": "http://shop.example"}
    detail = refusal(client.get("/v1/popular", headers=foreign), 403)
    advises(detail, "without API keys only pages of this service itself may ask. Start it with --keys.")
    with client_of(run, tmp_path, needs_key=True) as keyed:
        key = keyed.app.state.store.keys.create("default", scopes=["read"])
        good(keyed.get("/v1/popular", headers=foreign | {"Authorization": f"Bearer {key}"}))


def test_a_groups_scenario_is_set_first(client):
    groups = {"groups": {"a": {"share": 1}, "b": {"share": 1, "scenario": "few"}}}
    detail = refusal(client.put("/v1/experiments/test", json=groups), 404)
    advises(detail, "group {} has the unknown scenario {}. Set it first.")
    good(client.put("/v1/scenarios/few", json={"k": 3}))
    good(client.put("/v1/experiments/test", json=groups))


def test_a_page_that_is_none_is_left_out(client):
    detail = refusal(client.post("/v1/recommendations", json={"page": "nonsense"}), 400)
    advises(detail, "expected next_page of an answer. Ask without it to begin anew.")
    assert ids(good(client.post("/v1/recommendations", json={})))


def test_an_unknown_item_is_added(client):
    shown_item, similar = client.get("/v1/items/new"), client.post("/v1/items/new/similar", json={})
    advises(refusal(shown_item, 404), "unknown item {}. Add it: POST /v1/items.")
    advises(refusal(similar, 404), "unknown item {}. Add it: POST /v1/items.")
    good(client.post("/v1/items", json={"items": [{"item_id": "new", "fields": {"title": "rose cream"}}]}))
    assert good(client.get("/v1/items/new"))["is_recommendable"]
    assert ids(good(client.post("/v1/items/new/similar", json={})))


def test_an_import_takes_the_lines_of_an_export(client, run, tmp_path):
    good(client.post("/v1/events", json={"events": [event(1, "u", "i")]}))
    advises(refusal(client.post("/v1/import", content=b"\xff"), 400), "Send the lines of an export.")
    assert good(client.post("/v1/import", content=client.get("/v1/export").content))["read"]["event"] == 1
    detail = refusal(client.get("/v1/export", params={"cursor": "x"}), 400)
    advises(detail, "expected that of an export's last line. Begin without one.")
    last = json.loads(client.get("/v1/export").text.splitlines()[-1])["cursor"]
    assert client.get("/v1/export", params={"cursor": last}).text == ""


def test_less_is_sent_at_once(run, tmp_path):
    with client_of(run, tmp_path, largest_body=1000) as client:
        many = {"events": [event(number, "u", "i") for number in range(20)]}
        advises(
            refusal(client.post("/v1/events", json=many), 413), "got a body of more than {} bytes. Send less at once."
        )
        good(client.post("/v1/events", json={"events": many["events"][:2]}))


def test_the_form_is_loaded_again(client):
    detail = refusal(client.post("/items", data={"title": "rose cream"}), 403)
    advises(detail, "the form is not of this page, or the page is too old. Load it again.")
    answer = client.post("/items", data={"csrf": token_of(shown(client)), "title": "rose cream"})
    assert answer.status_code == 200


def test_a_busy_store_is_tried_again(client, monkeypatch):
    with monkeypatch.context() as busy:

        def locked(*_, **__):
            raise OperationalError("SELECT", {}, Exception("database is locked"))

        busy.setattr(client.app.state.store, "popular", locked)
        detail = refusal(client.get("/v1/popular"), 503)
    advises(detail, "The store could not be reached or was busy. Try again.")
    good(client.get("/v1/popular"))


# Expressions


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("popularity > 1 ||" * 200 + " true", "popularity > 1"),
        ("[1].all(x, x > 0)", "popularity in [1, 2]"),
        ("(" * 40 + "popularity > 1.0" + ")" * 40, "popularity in [1.0, 2.0]"),
        ("popularity <", "popularity < 20.0"),
        ("popularity", "popularity > 0"),
    ],
)
def test_an_expression_is_mended(client, text, mended):
    answer = client.post("/v1/recommendations", json={"filter": text})
    assert answer.status_code in (400, 422), answer.text
    good(client.post("/v1/recommendations", json={"filter": mended}))


def test_expressions_say_how_they_are_mended(client):
    compiled = partial(client.app.state.service.tenant("default").snapshot.expressions.compiled, "filter")
    with refused("expected at most {}. Shorten it."):
        compiled("true || " * LONGEST + "true")
    with refused("expected an expression that does not loop. Use 'in' or size()."):
        compiled("[1].all(x, x > 0)")
    with refused("Use 'in [...]' in place of long chains."):
        compiled("(" * 40 + "true" + ")" * 40)
    with refused("the expression does not compile: {}. Expected CEL, such as: price < 20.0"):
        compiled("popularity <")
    for text in ("true || true", "popularity in [1.0, 2.0]", "size([1]) > 0", "popularity < 20.0"):
        assert compiled(text).text == text


def test_a_field_comes_with_an_item(client):
    asked = {"filter": 'category == "Skin Care" && price < 20.0'}
    detail = refusal(client.post("/v1/recommendations", json=asked), 400)
    advises(detail, "unknown field {}: {}. Fields come with items: POST /v1/items.")
    fields = {"title": "Hand Cream", "category": "Skin Care", "price": 9.5}
    good(client.post("/v1/items", json={"items": [{"item_id": "cream", "fields": fields}]}))
    assert ids(good(client.post("/v1/recommendations", json=asked))) == ["cream"]


def test_a_filter_is_compared_with_something(client):
    detail = refusal(client.post("/v1/recommendations", json={"filter": "popularity"}), 400)
    advises(detail, "the filter {} gave {}, expected true or false. Compare it with something.")
    good(client.post("/v1/recommendations", json={"filter": "popularity > 0"}))


# Models


def test_a_run_is_evaluated_before_it_is_published(client, run, system, monkeypatch):
    other = run.parent / "unready"
    if not other.exists():
        system.save_pretrained(other)
    with monkeypatch.context() as poor:
        poor.setattr(admin_routes, "_answered", lambda snapshot, history: ([], np.array([np.nan])))
        detail = refusal(client.post("/v1/models", json={"run": "unready"}), 400)
    advises(detail, "Evaluate it before it is published: allrec evaluate.")
    program("evaluate", other, run.parent / "dataset")
    assert good(client.post("/v1/models", json={"run": "unready"}))["version"] == 2


def test_another_run_is_published_before_one_goes_back(client, run, system):
    other = run.parent / "second"
    if not other.exists():
        system.save_pretrained(other)
    detail = refusal(client.post("/v1/models/roll-back"), 409)
    advises(detail, "has no earlier model version to go back to. Publish another run.")
    good(client.post("/v1/models", json={"run": "second"}))
    assert good(client.post("/v1/models/roll-back"))["version"] == 1


def test_a_tenant_without_a_run_publishes_one(run, tmp_path, system):
    with client_of(run, tmp_path, needs_key=True) as client:
        key = client.app.state.store.keys.create("shop", scopes=["admin"])
        header = {"Authorization": f"Bearer {key}"}
        detail = refusal(client.get("/v1/popular", headers=header), 400)
        advises(detail, "tenant {} has no run. Publish one: POST /v1/models.")
        answer = client.post("/v1/models", json={"run": run.name}, headers=header)
        assert answer.status_code == 404, "the runs beside the command line's are the default tenant's"
        if not (own := run.parent / "shop" / "run").exists():
            system.save_pretrained(own)
        good(client.post("/v1/models", json={"run": "run"}, headers=header))
        good(client.get("/v1/popular", headers=header))


def test_a_refresh_begins_once_something_serves_and_has_happened(run, tmp_path, system):
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    quick = RefreshConfig(cache=run.parent / "cache", sets=("llm.enabled=false",))
    with refused("so none can be made anew. Publish one first: allrec serve."):
        refresh(store, "default", tmp_path / "one", quick)
    create_app(ServeConfig(run, f"sqlite:///{tmp_path}/store.db", with_llm=False))
    with refused("so nothing is new. Refresh when there are."):
        refresh(store, "default", tmp_path / "one", quick)
    items = system.model.catalogue.item_ids
    store.add_events("default", [Event(f"e{n}", f"u{n % 5}", items[n], "view", float(n)) for n in range(20)])
    (tmp_path / "two.refresh").mkdir()
    begun = {"state": "reading", "run": "two", "from_run": "/elsewhere", "from_version": 1}
    (tmp_path / "two.refresh" / "refresh.json").write_text(json.dumps(begun))
    with refused("was begun from {}, and {} serves now. Give another --out."):
        refresh(store, "default", tmp_path / "two", quick)
    assert refresh(store, "default", tmp_path / "three", quick)["state"] == "done"
    store.close()
