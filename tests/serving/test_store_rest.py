"""Users, answers, settings, keys: the same on SQLite and on PostgreSQL."""

from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import select

from allrec.errors import InputError
from allrec.serving.records import Erasure
from allrec.serving.schema import api_keys
from allrec.serving.store import Answer, Event, Experiment, Feedback, Item, Store, User
from allrec.serving.store_settings import group_of

ANSWER = Answer("r1", "u", ("a", "b"), 3, "fusion", 5.0, "session: no such user", "buttons", "large")
CLICK = Feedback("r1", "a", "click", 6.0, "u")
VIEW = Event("e1", "u", "a", "view", 7.0, recommendation_id="r1")
HALVES = Experiment("buttons", {"small": {"share": 1, "scenario": "old"}, "large": {"share": 1}}, created_at=1.0)


def fill(store, tenant):
    store.add_events(tenant, [VIEW, replace(VIEW, event_id="e2", user_id="v")])
    store.put_items(tenant, [Item("a", {"title": tenant}, embedding=b"\0\1\2\3", encoder="x", created_at=1.0)])
    store.put_users(tenant, [User("u", {"tier": "gold"}), User("v", {})])
    store.add_answers(tenant, [ANSWER, replace(ANSWER, recommendation_id="r2", user_id="v", item_ids=())])
    store.add_feedback(tenant, [CLICK, replace(CLICK, kind="impression"), replace(CLICK, item_id="b", user_id="v")])
    store.add_erasures(tenant, [Erasure("d" * 64, 3.0)])
    store.put_scenario(tenant, "home", settings={"filter": "price < 20.0"})
    store.put_experiment(tenant, HALVES)


def test_answers_and_feedback_are_recorded_once(store):
    assert store.add_answers("t", [ANSWER]) == 1
    assert store.add_answers("t", [replace(ANSWER, scorer="other"), replace(ANSWER, recommendation_id="r2")]) == 1
    assert store.answer("t", "r1") == ANSWER
    assert store.answer("t", "r3") is None
    assert store.add_feedback("t", [CLICK, CLICK, replace(CLICK, kind="impression", timestamp=5.5)]) == 2
    assert store.feedback("t", "r1") == [replace(CLICK, kind="impression", timestamp=5.5), CLICK]
    assert store.add_answers("t", []) == store.add_feedback("t", []) == 0


def test_feedback_of_another_kind_is_refused(store):
    with pytest.raises(InputError, match="got feedback of the kind 'hover', expected one of impression, click"):
        store.add_feedback("t", [replace(CLICK, kind="hover")])


def test_old_answers_and_feedback_are_dropped(store):
    fill(store, "t")
    store.add_answers("t", [replace(ANSWER, recommendation_id="new", created_at=6.0)])
    assert store.drop_answers("t", before=6.0) == 2
    assert store.drop_answers("t", before=6.5) == 1 + 3
    assert store.show_user("t", "u")["feedback"] == []


def test_everything_about_a_user_is_shown_and_erased(store):
    fill(store, "t")
    shown = store.show_user("t", "u")
    assert shown["fields"] == {"tier": "gold"}
    assert [event["event_id"] for event in shown["events"]] == ["e1"]
    assert [answer["recommendation_id"] for answer in shown["answers"]] == ["r1"]
    assert len(shown["feedback"]) == 2
    assert store.erase_user("t", "u") == {"users": 1, "events": 1, "answers": 1, "feedback": 2}
    assert store.show_user("t", "u") == {"user_id": "u", "fields": None, "events": [], "answers": [], "feedback": []}
    assert '"u"' not in "".join(store.export("t"))
    assert len(store.history("t", "v", limit=5)) == 1
    assert store.erased("t", ["v", "u", "nobody"]) == {"u"}
    assert store.erased("other", ["u"]) == set()


def test_feedback_that_names_nobody_is_of_the_user_who_was_answered(store):
    fill(store, "t")
    store.add_feedback(
        "t", [replace(CLICK, item_id="c", user_id=None), replace(CLICK, recommendation_id="r2", user_id=None)]
    )
    assert {entry["item_id"] for entry in store.show_user("t", "u")["feedback"]} == {"a", "c"}
    assert store.erase_user("t", "u")["feedback"] == 3
    assert [entry.user_id for entry in store.feedback("t", "r1")] == ["v"]
    assert len(store.feedback("t", "r2")) == 1


def test_who_was_erased_stays_erased_where_an_export_goes(store):
    fill(store, "a")
    store.erase_user("a", "u")
    store.load("b", store.export("a"))
    assert store.is_erased("b", "u")
    assert not store.is_erased("b", "v")


def test_a_lone_surrogate_in_a_field_is_refused(store):
    line = '{"kind": "item", "row": {"item_id": "i", "fields": {"title": "\\ud800 rose"}}}'
    with pytest.raises(InputError, match="got fields of item 'i', expected texts"):
        store.load("t", [line])
    assert store.items_version("t") == 0


def test_every_tenant_with_rows_is_known_by_name(store):
    store.add_events("events", [VIEW])
    store.publish("published", run="runs/a")
    store.put_items("items", [Item("a", {"title": "A"})])
    assert set(store.tenant_names()) == {"events", "published", "items"}


def test_a_users_fields_are_replaced(store):
    store.put_user("t", "u", fields={"tier": "gold", "age": 3})
    store.put_user("t", "u", fields={"tier": "silver"})
    assert store.user_fields("t", "u") == {"tier": "silver"}
    assert store.user_fields("t", "nobody") is None


def test_scenarios_are_set_read_and_deleted(store):
    store.put_scenario("t", "home", settings={"k": 5})
    store.put_scenario("t", "home", settings={"k": 6})
    assert store.scenarios("t") == {"home": {"k": 6}}
    assert store.delete_scenario("t", "home")
    assert not store.delete_scenario("t", "home")


def test_a_published_run_serves_until_it_is_rolled_back(store, url):
    other = Store.open(url)
    assert other.serving("t") is None
    first = store.put_tenant("t", run="runs/a")
    assert store.put_tenant("t", run="runs/a") == first, "a restart publishes nothing"
    second, third = store.publish("t", run="runs/b"), store.publish("t", run="runs/c")
    assert other.serving("t") == third
    assert other.roll_back("t", version=third.version) == second
    assert store.roll_back("t", version=third.version) == second, "two that find one version bad go back by one"
    assert store.serving("t") == second
    fourth = store.publish("t", run="runs/d")
    assert [version.version for version in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert store.roll_back("t") == second
    assert store.roll_back("t") == first
    with pytest.raises(InputError, match="no earlier model version"):
        store.roll_back("t")
    assert [version.withdrawn_at is None for version in store.model_history("t")] == [True, False, False, False]
    other.close()


def test_the_settings_version_grows_with_every_change_and_no_read(store):
    changes = [
        lambda: store.put_tenant("t", run="runs/a"),
        lambda: store.publish("t", run="runs/b"),
        lambda: store.roll_back("t"),
        lambda: store.put_scenario("t", "home", settings={}),
        lambda: store.delete_scenario("t", "home"),
        lambda: store.put_experiment("t", HALVES),
    ]
    seen = [store.settings_version("t")]
    for change in changes:
        change()
        seen.append(store.settings_version("t"))
    assert seen == sorted(set(seen))
    store.put_tenant("t", run="runs/a")
    fill(store, "other")
    assert (store.serving("t").run, store.settings_version("t")) == ("runs/a", seen[-1])


def test_groups_follow_their_shares_and_never_change():
    third = Experiment("x", {"a": {"share": 1}, "b": {"share": 2}})
    counts = Counter(group_of(third, f"u{number}") for number in range(9000))
    # Standard deviation of a count: (9000 · 1/3 · 2/3) ** .5 = 45.
    assert abs(counts["a"] - 3000) < 4 * 45
    assert counts["a"] + counts["b"] == 9000
    assert group_of(third, "u1") == group_of(third, "u1")
    others = [group_of(replace(third, name="y"), f"u{number}") for number in range(50)]
    assert others != [group_of(third, f"u{number}") for number in range(50)], "experiments split independently"


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"a": {"share": 1}},
        {"a": {"share": 1}, "b": {"share": 0}},
        {"a": {"share": 1}, "b": {}},
        {"a": 1, "b": 2},
    ],
)
def test_an_experiment_that_compares_nothing_is_refused(store, groups):
    with pytest.raises(InputError, match="expected"):
        store.put_experiment("t", Experiment("x", groups))


def test_an_experiment_is_changed_and_keeps_its_start(store):
    store.put_experiment("t", HALVES)
    store.put_experiment("t", replace(HALVES, is_running=False, created_at=9.0))
    assert store.experiments("t") == {"buttons": replace(HALVES, is_running=False)}


def test_a_key_opens_its_tenant_until_it_is_revoked(store):
    plain = store.keys.create("t", scopes=["write", "read", "read"])
    assert store.keys.check(plain) == ("t", frozenset({"read", "write"}))
    entry = store.keys.entries("t")[0]
    assert not store.keys.revoke("other", key_id=entry.key_id)
    assert store.keys.check(plain) is not None
    assert store.keys.revoke("t", key_id=entry.key_id)
    assert store.keys.check(plain) is None
    assert not store.keys.revoke("t", key_id=entry.key_id)


def test_a_key_is_not_stored_and_nothing_but_it_passes(store):
    plain = store.keys.create("t", scopes=["admin"])
    with store.database.read() as connection:
        row = str(connection.execute(select(api_keys)).all())
    assert plain not in row
    assert plain.rsplit("_", 1)[-1] not in row
    for wrong in ("", plain[:-1], plain + "x", plain.upper(), "allrec_\ud800", "allrec_" + "x" * 10_000):
        assert store.keys.check(wrong) is None


@pytest.mark.parametrize("scopes", [[], ["root"], ["read", "root"]])
def test_a_key_has_known_scopes(store, scopes):
    with pytest.raises(InputError, match="expected some of read, write, admin"):
        store.keys.create("t", scopes=scopes)


def everything(store, tenant):
    return {
        "events": [event for _, event in store.events(tenant, limit=100)],
        "items": [replace(item, version=0) for item in store.items_changed(tenant, since_version=0)[1]],
        "histories": {user: store.history(tenant, user, limit=100) for user in ("u", "v")},
        "fields": {user: store.user_fields(tenant, user) for user in ("u", "v")},
        "known items": {name: replace(item, version=0) for name, item in store.get_items(tenant, ["a"]).items()},
        "users": {user: store.show_user(tenant, user) for user in ("u", "v")},
        "answers": [store.answer(tenant, name) for name in ("r1", "r2")],
        "feedback": store.feedback(tenant, "r1"),
        "scenarios": store.scenarios(tenant),
        "experiments": store.experiments(tenant),
    }


def test_tenants_never_see_each_other(store):
    empty = everything(store, "b")
    fill(store, "a")
    assert everything(store, "b") == empty
    assert (store.popular("b", since=0, limit=5), store.trending("b", now=8.0, limit=5)) == ([], [])
    assert (store.latest_items("b", limit=5), store.unavailable("b", now=0), list(store.export("b"))) == ([], set(), [])
    assert store.erase_user("b", "u") == {"users": 0, "events": 0, "answers": 0, "feedback": 0}
    assert (store.drop_events("b", before=99.0), store.drop_answers("b", before=99.0)) == (0, 0)
    fill(store, "b")
    full = everything(store, "a")
    store.erase_user("b", "u")
    store.set_availability("b", ["a"], is_hidden=True)
    store.put_scenario("b", "home", settings={})
    assert everything(store, "a") == full
    assert full["items"][0].fields == {"title": "a"}


def test_what_was_exported_is_what_is_loaded(store):
    fill(store, "a")
    lines = list(store.export("a"))
    counts = {
        "scenario": 1,
        "experiment": 1,
        "erasure": 1,
        "user": 2,
        "item": 1,
        "answer": 2,
        "feedback": 3,
        "event": 2,
    }
    for _ in range(2):  # a second time changes nothing
        assert store.load("b", [*lines, "\n"]) == counts
        assert everything(store, "b") == everything(store, "a")
    assert [line.split('"cursor"')[0] for line in store.export("b")] == [line.split('"cursor"')[0] for line in lines]


def test_an_export_goes_on_after_any_of_its_lines(store):
    fill(store, "a")
    lines = list(store.export("a"))
    cursors = [line.split('"cursor": "')[1].rstrip('"}') for line in lines]
    for place, cursor in enumerate(cursors):
        assert list(store.export("a", cursor=cursor)) == lines[place + 1 :]
        assert list(store.export("a", cursor=cursor, limit=2)) == lines[place + 1 : place + 3]
    store.add_events("a", [replace(VIEW, event_id="later")])
    assert [line for line in store.export("a", cursor=cursors[-1]) if "later" in line] != []


def test_an_export_is_longer_than_a_page(store):
    store.add_events("a", [replace(VIEW, event_id=f"e{number}") for number in range(2500)])
    assert store.load("b", store.export("a"))["event"] == 2500
    assert store.events("b", limit=3000)[-1][1].event_id == "e2499"


@pytest.mark.parametrize("cursor", ["", "x", "bnVsbA==", "WyJldmVudCJd", "WyJldmVudCIsICJhIl0=", "\ud800"])
def test_a_cursor_of_no_export_is_refused(store, cursor):
    with pytest.raises(InputError, match="expected that of an export's last line"):
        list(store.export("a", cursor=cursor))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"kind": "event"}',
        '{"kind": "key", "row": {}}',
        '{"kind": "user", "row": {"user_id": "u", "x": 1}}',
        '{"kind": "item", "row": {"item_id": "i", "embedding": "*", "encoder": "e"}}',
        "[" * 100_000,
    ],
)
def test_a_line_of_no_export_is_named_by_its_number(store, line):
    with pytest.raises(InputError, match="line 2: "):
        store.load("a", ['{"kind": "user", "row": {"user_id": "u", "fields": {}}}', line])
