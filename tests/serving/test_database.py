"""Opening, migrating, backing up, and many at once."""

import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import postgres
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from allrec.errors import InputError
from allrec.serving.schema import metadata
from allrec.serving.store import Event, Item, Store


def views(prefix, count):
    return [Event(f"{prefix}{number}", "u", "i", "view", float(number)) for number in range(count)]


def test_the_migrations_make_the_schema(store):
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_key_begins_with_the_tenant_in_every_table_and_index():
    for table in metadata.tables.values():
        assert next(iter(table.primary_key)).name == "tenant"
        firsts = {next(iter(index.columns)).name for index in table.indexes if index.name != "api_keys_digest"}
        assert firsts <= {"tenant"}


def test_a_store_of_a_newer_version_is_refused(store, url):
    with store.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InputError, match=r"does not know.*9999.*Upgrade"):
        Store.open(url)


def test_what_was_stored_is_there_when_opened_again(store, url):
    store.add_events("t", views("e", 3))
    with Store.open(url) as other:
        assert other.num_events("t") == 3


@pytest.mark.parametrize("url", ["", "mysql://localhost/x", "sqlite://", "sqlite:///:memory:", "no address"])
def test_another_kind_of_database_is_refused(url):
    with pytest.raises(InputError, match="expected sqlite:///PATH or postgresql"):
        Store.open(url)


def test_a_server_that_is_not_there_is_said_without_its_password():
    with pytest.raises(InputError, match="cannot be opened") as caught:
        Store.open("postgresql://user:secret@127.0.0.1:1/name")
    assert "secret" not in str(caught.value)


def test_processes_that_open_a_new_store_together_wait_for_each_other(url):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store.open(url), range(4)))
    stores[0].add_events("t", views("e", 1))
    assert [store.num_events("t") for store in stores] == [1] * 4
    for store in stores:
        store.close()


def test_events_and_items_of_many_writers_become_visible_in_their_order(store, url):
    """A reader that goes on from the last number it saw misses nothing, whoever commits when."""
    stores = [Store.open(url) for _ in range(3)]

    def write(number):
        for step in range(15):
            stores[number].add_events("t", views(f"{number}-{step}-", 2))
            stores[number].put_items("t", [Item(f"{number}-{step}")])

    seen, items, cursor, version = [], [], 0, 0
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        is_over = False
        while not is_over:
            is_over = all(writer.done() for writer in writers)
            found = store.events("t", cursor=cursor, limit=1000)
            seen += [event.event_id for _, event in found]
            cursor = found[-1][0] if found else cursor
            version, changed = store.items_changed("t", since_version=version)
            items += [item.item_id for item in changed]
    for writer in writers:
        writer.result()
    assert len(seen) == len(set(seen)) == 3 * 15 * 2
    assert len(items) == len(set(items)) == 3 * 15
    for other in stores:
        other.close()


def test_one_store_is_shared_by_threads(store):
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda number: store.add_events("t", views(f"{number % 4}-", 5)), range(16)))
    assert sum(added) == store.num_events("t") == 4 * 5


def test_an_acknowledged_event_is_on_disk(store):
    with store.database.read() as connection:
        if store.database.is_sqlite:
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
            assert found == ["wal", 2]
        else:
            assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"


def test_a_server_that_answers_early_is_set_right(server):
    url = server.create("hasty")
    Store.open(url).close()
    with Store.open(url) as store, store.database.write() as connection:
        connection.execute(text("ALTER DATABASE hasty SET synchronous_commit = off"))
    with Store.open(url) as store, store.database.read() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"


def test_a_back_up_holds_one_moment_and_is_restored_by_putting_it_back(tmp_path):
    place, copy = tmp_path / "store.db", tmp_path / "copies" / "store.db"
    with Store.open(f"sqlite:///{place}") as store:
        store.add_events("t", views("e", 10))
        store.back_up(copy)
        store.add_events("t", views("later", 10))
        store.back_up(copy.with_name("second.db"))
    assert sorted(path.name for path in copy.parent.iterdir()) == ["second.db", "store.db"]
    for ending in ("", "-wal", "-shm"):
        Path(f"{place}{ending}").unlink(missing_ok=True)
    place.write_bytes(copy.read_bytes())
    with Store.open(f"sqlite:///{place}") as store:
        assert store.num_events("t") == 10
        assert store.add_events("t", views("later", 10)) == 10
    with sqlite3.connect(copy.with_name("second.db")) as second:
        assert second.execute("SELECT count(*) FROM events").fetchone() == (20,)
    second.close()


def test_a_server_is_backed_up_and_restored_by_its_own_programs(server, tmp_path):
    url = server.create("backed_up")
    with Store.open(url) as store:
        store.add_events("t", views("e", 10))
        with pytest.raises(InputError, match="pg_dump"):
            store.back_up("x")
        plain = url.replace("+psycopg", "")
        dump = [postgres.binaries() / "pg_dump", "--format=custom", f"--file={tmp_path}/store.dump", plain]
        subprocess.run(dump, check=True, capture_output=True)
        store.add_events("t", views("later", 10))
    restored = server.create("restored")
    command = [postgres.binaries() / "pg_restore", f"--dbname={restored.replace('+psycopg', '')}", "--exit-on-error"]
    subprocess.run([*command, tmp_path / "store.dump"], check=True, capture_output=True)
    with Store.open(restored) as store:
        assert store.num_events("t") == 10
        assert store.add_events("t", views("later", 10)) == 10
        assert store.events("t", cursor=10, limit=1)[0][1].event_id == "later0", "cursors go on where they were"
