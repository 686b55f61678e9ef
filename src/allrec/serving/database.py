"""One engine a process on SQLite or PostgreSQL: transactions that are on disk when they end, and the migrations."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, Table, create_engine, event, func, literal, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, OperationalError

from allrec.errors import InputError
from allrec.serving.schema import counters

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_MILLISECONDS = 30_000
ASKED_TOGETHER = 1_000  # users a query
MIGRATION_LOCK = 0x616C6C72  # any number that no other program takes as an advisory lock of this database
COUNTING = {"preserve_rowcount": True}  # of inserts, which SQLAlchemy drops otherwise
EXPECTED = "expected sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME"


class Database:
    """Transactions on one database. Safe to share between threads.

    Args:
        url: ``sqlite:///path`` (a file, which is made) or ``postgresql+psycopg://user@host/name``.

    Raises:
        InputError: the address names another database, or the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        address = _address(url)
        self.is_sqlite = address.get_backend_name() == "sqlite"
        # SQLite takes one writer at a time; a lock queues this process's threads, where SQLite itself would poll.
        self._turn: Any = Lock() if self.is_sqlite else nullcontext()
        self._engine = _sqlite_engine(address) if self.is_sqlite else _postgresql_engine(address)
        self._writer = self._engine.execution_options(is_writing=True)
        # SQLite's driver is in this mode already, see _sqlite_engine.
        options = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reader = self._engine.execution_options(**options)
        self.path = Path(address.database or "") if self.is_sqlite else None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """For reading: each statement sees what was committed before it began.

        Without a transaction around them, which would cost two more round trips to a server.
        """
        with self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is on disk when the block ends well, and leaves nothing behind when not."""
        with self._turn, self._writer.begin() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """An insert with ``on_conflict_do_nothing`` and ``on_conflict_do_update`` of this database's dialect."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def insert_new(self, connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> int:
        """Inserts rows whose keys are not there yet, and says how many. Every row has the same columns."""
        if not rows:
            return 0
        if self.is_sqlite:
            each = sqlite.insert(table).on_conflict_do_nothing()
            return int(connection.execute(each, rows, execution_options=COUNTING).rowcount)
        # One statement with an array a column: as fast as many rows get in, and the server counts what was new.
        columns = [table.c[name] for name in rows[0]]
        arrays = [
            # One dimension: a list is one JSON value of its row.
            literal([row[column.name] for row in rows], postgresql.ARRAY(column.type, dimensions=1))
            for column in columns
        ]
        values = func.unnest(*arrays).table_valued(*(column.name for column in columns)).render_derived()
        insert = postgresql.insert(table).from_select(columns, select(*values.c))
        return int(connection.execute(insert.on_conflict_do_nothing(), execution_options=COUNTING).rowcount)

    def migrate(self) -> None:
        """Brings the tables to the newest schema. Processes that start together wait for each other.

        Raises:
            InputError: a newer allrec wrote this database, or it cannot be reached.
        """
        config = AlembicConfig()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self.write() as connection:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": MIGRATION_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise InputError(
                f"the store has a schema that this allrec does not know: {error}. Upgrade allrec."
            ) from None
        except OperationalError as error:
            raise InputError(f"the store cannot be opened: {error.orig}. {EXPECTED}.") from None

    def take_numbers(self, connection: Connection, tenant: str, name: str, count: int) -> int:
        """Takes ``count`` numbers of a tenant's counter; returns the first. Others wait until the transaction ends."""
        insert = self.insert(counters).values(tenant=tenant, name=name, value=count)
        upsert = insert.on_conflict_do_update(
            index_elements=["tenant", "name"], set_={"value": counters.c.value + count}
        ).returning(counters.c.value)
        last = int(connection.execute(upsert).scalar_one())
        return last - count + 1

    def close(self) -> None:
        """Closes every connection. A SQLite file is then whole without its ``-wal`` file."""
        self._engine.dispose()


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError:
        raise InputError(f"got a database address that is none, {EXPECTED}.") from None
    kind = address.get_backend_name()
    if kind == "sqlite" and address.database not in (None, "", ":memory:"):
        Path(str(address.database)).parent.mkdir(parents=True, exist_ok=True)
        return address
    if kind == "postgresql":
        return address.set(drivername="postgresql+psycopg")
    shown = address.render_as_string(hide_password=True)
    raise InputError(f"got the database {shown!r}, {EXPECTED}. A database in memory would not outlive its process.")


def _sqlite_engine(address: URL) -> Engine:
    engine = create_engine(address, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MILLISECONDS}"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A writer takes its lock at once: one that read first and wrote later could be refused.
        if connection.get_execution_options().get("is_writing", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql_engine(address: URL) -> Engine:
    engine = create_engine(address, pool_pre_ping=True, pool_size=8, max_overflow=8)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        # An acknowledged event is on disk, whatever the server's default is; a stricter setting stays.
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) WHERE "
                "current_setting('synchronous_commit') IN ('off', 'local')"
            )
        connection.commit()

    return engine
