"""The store does the same on SQLite and on PostgreSQL."""

from dataclasses import replace

import numpy as np
import pytest

from allrec.errors import InputError
from allrec.serving.store import Event, Item, Store


def event(number, user="u", item="i", at=None, **values):
    values = {"kind": "view", **values}
    return Event(f"e{number}", user_id=user, item_id=item, timestamp=float(number if at is None else at), **values)


def test_an_event_is_added_once_and_the_first_of_an_id_stays(store):
    assert store.add_events("t", [event(1), event(2), event(1, item="other")]) == 2
    assert store.add_events("t", [event(2, item="other"), event(3)]) == 1
    assert [found.item_id for found in store.history("t", "u", limit=10)] == ["i"] * 3
    assert store.num_events("t") == 3


def test_an_event_comes_back_as_it_was(store):
    full = event(7, kind="rating", value=4.5, recommendation_id="r1", user='ü"; DROP TABLE events; --', at=1.5e9 + 0.25)
    store.add_events("t", [full, event(8)])
    assert store.history("t", full.user_id, limit=1) == [full]
    assert store.history("t", "u", limit=1) == [event(8)]


def test_a_history_is_the_latest_events_oldest_first(store):
    store.add_events("t", [event(number, item=f"i{number}") for number in (3, 1, 4, 2)])
    store.add_events("t", [event(9, item="same time, later arrival", at=4)])
    found = store.history("t", "u", limit=3)
    assert [entry.item_id for entry in found] == ["i3", "i4", "same time, later arrival"]
    assert store.history("t", "nobody", limit=3) == []


def test_events_are_read_on_from_a_cursor(store):
    store.add_events("t", [event(number) for number in range(5)])
    first = store.events("t", limit=2)
    rest = store.events("t", cursor=first[-1][0], limit=10)
    assert [found.event_id for _, found in first + rest] == [f"e{number}" for number in range(5)]
    assert store.events("t", cursor=rest[-1][0], limit=10) == []


def test_no_event_is_added_where_one_of_them_cannot_be_stored(store):
    for bad in (
        event(2, user=""),
        event(2, item="x" * 257),
        event(2, user="a\0b"),
        event(2, user="\ud800"),
        event(2, kind="k" * 65),
        event(2, value=float("nan")),
        event(2, at=float("inf")),
        replace(event(2), timestamp=None),
        replace(event(2), value=10**400),
    ):
        with pytest.raises(InputError, match="expected"):
            store.add_events("t", [event(1), bad])
    assert store.num_events("t") == 0


@pytest.mark.parametrize("tenant", ["", "a b", "x" * 65, "ä", "a/b"])
def test_a_tenants_name_is_short_and_plain(store, tenant):
    with pytest.raises(InputError, match="tenant"):
        store.add_events(tenant, [event(1)])


def test_popular_counts_users_and_not_events(store):
    many = [event(number, user="one", item="often") for number in range(5)]
    some = [event(10 + number, user=f"u{number}", item="by two") for number in range(2)]
    old = [event(20 + number, user=f"u{number}", item="old", at=-1) for number in range(9)]
    store.add_events("t", many + some + old)
    assert store.popular("t", since=0.0, limit=5) == [("by two", 2), ("often", 1)]
    assert store.popular("t", since=-1.0, limit=1) == [("old", 9)]


def test_trending_compares_a_window_with_those_before_it(store):
    steady = [event(number, item="steady", at=number) for number in range(80)]
    rising = [event(100 + number, item="rising", at=71 + number) for number in range(9)]
    fallen = [event(200 + number, item="fallen", at=number) for number in range(30)]
    store.add_events("t", steady + rising + fallen + [event(300, item="future", at=1000)])
    found = store.trending("t", now=80.0, limit=5, window=10.0, num_windows=7)
    # (70, 80] holds steady's 71..79; its windows before, (0, 70], hold 70 of 7 windows.
    assert found == [("rising", 9 / 1**0.5)]
    assert store.trending("t", now=80.0, limit=0, window=10.0) == []


def test_old_events_are_dropped(store):
    store.add_events("t", [event(number) for number in range(10)])
    store.add_events("other", [event(0)])
    assert store.drop_events("t", before=4.0) == 4
    assert [found.timestamp for found in store.history("t", "u", limit=20)] == [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert store.drop_events("t", before=4.0) == 0
    assert store.num_events("other") == 1


def test_an_item_comes_back_as_it_was_and_its_version_grows(store):
    embedding = np.arange(4, dtype=np.float32).tobytes()
    fields = {"title": "Tea \0", "price": 3.5, "tags": ["x"]}
    full = Item("a", fields, True, False, 9.5, embedding, "minilm", 1.0)
    first = store.put_items("t", [full, Item("b", {"title": "B"}, created_at=2.0)])
    version, found = store.items_changed("t", since_version=0)
    assert found == [replace(full, version=1), Item("b", {"title": "B"}, created_at=2.0, version=2)]
    assert version == first == store.items_version("t") == 2
    assert store.put_items("t", [Item("a", {"title": "new"})]) == 3
    version, found = store.items_changed("t", since_version=2)
    assert (version, [(item.item_id, item.fields) for item in found]) == (3, [("a", {"title": "new"})])
    assert found[0].created_at == 1.0, "a change does not make an item new"
    assert store.items_changed("t", since_version=3) == (3, [])


def test_users_of_an_item_are_those_with_an_event(store):
    store.add_events("t", [event(1), event(2, "v"), event(3, "v"), event(4, "w", "other")])
    store.add_events("other", [event(4, "x")])
    assert store.users_of("t", "i") == {"u", "v"}


def test_items_changed_is_read_in_pieces(store):
    store.put_items("t", [Item(f"i{number}", {"n": number}) for number in range(5)])
    version, first = store.items_changed("t", since_version=0, limit=3)
    _, rest = store.items_changed("t", since_version=version, limit=3)
    assert [item.item_id for item in first + rest] == [f"i{number}" for number in range(5)]


def test_latest_items_come_newest_first(store):
    store.put_items("t", [Item(name, {"title": name}, created_at=at) for name, at in (("a", 1), ("c", 3), ("b", 2))])
    store.set_availability("t", ["of the run"], is_hidden=True)
    assert [item.item_id for item in store.latest_items("t", limit=2)] == ["c", "b"]
    assert [item.item_id for item in store.latest_items("t", limit=None)] == ["c", "b", "a"]


def test_what_is_unavailable_is_known_to_every_process_at_once(store, url):
    other = Store.open(url)
    assert other.unavailable("t", now=0.0) == set()
    store.set_availability("t", ["hidden", "both"], is_hidden=True)
    assert other.unavailable("t", now=0.0) == {"hidden", "both"}
    store.set_availability("t", ["sold out", "both"], is_in_stock=False)
    store.set_availability("t", ["both"], is_hidden=False)
    assert other.unavailable("t", now=0.0) == {"hidden", "sold out", "both"}
    store.set_availability("t", ["hidden"], is_hidden=False)
    store.set_availability("t", ["both"], is_in_stock=True)
    assert other.unavailable("t", now=0.0) == {"sold out"}
    other.close()


def test_an_item_expires_at_its_time_and_not_before(store):
    store.set_availability("t", ["a"], expires_at=10.0)
    store.set_availability("t", ["b"], expires_at=20.0)
    assert [store.unavailable("t", now=now) for now in (9.9, 10.0, 20.0)] == [set(), {"a"}, {"a", "b"}]
    store.set_availability("t", ["a"], never_expires=True)
    assert store.unavailable("t", now=20.0) == {"b"}


def test_a_catalogue_that_is_sent_again_brings_no_hidden_item_back(store):
    store.put_items("t", [Item("a", {"title": "old"})])
    store.set_availability("t", ["a"], is_hidden=True)
    store.put_items("t", [Item("a", {"title": "new"}), Item("b", is_in_stock=False)], keep_availability=True)
    assert store.unavailable("t", now=0.0) == {"a", "b"}
    assert store.get_items("t", ["a", "none"])["a"].fields == {"title": "new"}
    store.put_items("t", [Item("a", {"title": "new"})])
    assert store.unavailable("t", now=0.0) == {"b"}


@pytest.mark.parametrize(
    "bad",
    [
        Item(""),
        Item("a", {"x": float("nan")}),
        Item("a", {"x": object()}),
        Item("a", []),
        Item("a", is_hidden=None),
        Item("a", embedding=b"123", encoder="e"),
        Item("a", embedding=b"1234"),
        Item("a", expires_at=float("nan")),
    ],
)
def test_an_item_that_cannot_be_stored_is_refused(store, bad):
    with pytest.raises(InputError, match="expected"):
        store.put_items("t", [Item("good"), bad])
    assert store.items_version("t") == 0
