"""The store against a few lines of plain Python, on both databases, for whatever is put in."""

from itertools import count

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allrec.serving.store import Event, Item

TENANTS = count()
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ids = st.one_of(
    st.sampled_from(["a", "b", "c"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=256),
)
times = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(-1e12, 1e12))
events = st.builds(
    Event, event_id=ids, user_id=ids, item_id=ids, kind=st.sampled_from(["view", "own kind"]), timestamp=times,
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False), recommendation_id=st.none() | ids,
)  # fmt: skip
batches = st.lists(st.lists(events, max_size=6), max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
items = st.builds(
    Item, item_id=ids, fields=st.dictionaries(st.text(), json_values, max_size=3), is_hidden=st.booleans(),
    is_in_stock=st.booleans(), expires_at=st.none() | times, created_at=times,
)  # fmt: skip


def fresh():
    """A tenant of its own for each example."""
    return f"t{next(TENANTS)}"


def first_of_each(written):
    """What a store of the written batches holds, in the order of arrival."""
    held = {}
    for batch in written:
        for event in batch:
            held.setdefault(event.event_id, event)
    return list(held.values())


@FEW
@given(written=batches)
def test_events_are_held_once_whatever_is_sent_again(store, written):
    tenant, other = fresh(), fresh()
    held = first_of_each(written)
    assert sum(store.add_events(tenant, batch) for batch in written) == len(held)
    assert sum(store.add_events(tenant, batch) for batch in reversed(written)) == 0
    assert [event for _, event in store.events(tenant, limit=100)] == held
    assert store.events(other, limit=100) == []


@FEW
@given(written=batches, limit=st.integers(1, 5), since=times)
def test_histories_and_popularity_are_those_of_the_events(store, written, limit, since):
    tenant = fresh()
    held = first_of_each(written)
    for batch in written:
        store.add_events(tenant, batch)
    latest = {}
    for user in {event.user_id for event in held}:
        own = sorted((event for event in held if event.user_id == user), key=lambda event: event.timestamp)
        latest[user] = own[-limit:]
        assert store.history(tenant, user, limit=limit) == latest[user]
    assert store.histories(tenant, [*latest, "nobody"], limit=limit) == latest
    fans = {}
    for event in held:
        if event.timestamp >= since:
            fans.setdefault(event.item_id, set()).add(event.user_id)
    # Ties by the id's bytes, which both databases order the same.
    order = sorted(fans, key=lambda item: (-len(fans[item]), item.encode()))
    assert store.popular(tenant, since=since, limit=limit) == [(item, len(fans[item])) for item in order][:limit]


@FEW
@given(written=batches, before=times)
def test_retention_keeps_what_is_not_older(store, written, before):
    tenant = fresh()
    held = first_of_each(written)
    for batch in written:
        store.add_events(tenant, batch)
    kept = [event for event in held if event.timestamp >= before]
    assert store.drop_events(tenant, before=before) == len(held) - len(kept)
    assert [event for _, event in store.events(tenant, limit=100)] == kept


@FEW
@given(written=st.lists(items, max_size=8), now=times)
def test_items_and_what_is_unavailable_are_those_that_were_put_last(store, written, now):
    tenant = fresh()
    store.put_items(tenant, written)
    last = {item.item_id: item for item in written}
    _, changed = store.items_changed(tenant, since_version=0)
    assert {item.item_id: item.fields for item in changed} == {name: item.fields for name, item in last.items()}
    assert store.unavailable(tenant, now=now) == {
        name
        for name, item in last.items()
        if item.is_hidden or not item.is_in_stock or (item.expires_at is not None and item.expires_at <= now)
    }


@FEW
@given(written=batches, added=st.lists(items, max_size=8))
def test_an_export_that_is_loaded_exports_the_same(store, written, added):
    source, target = fresh(), fresh()
    for batch in written:
        store.add_events(source, batch)
    store.put_items(source, added)
    lines = list(store.export(source))
    store.load(target, lines)
    rows = [[line.rpartition(', "cursor"')[0] for line in store.export(tenant)] for tenant in (source, target)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(first_of_each(written)) + len({item.item_id for item in added})
