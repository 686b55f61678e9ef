"""The store: everything that the service knows beyond the run, of every tenant, in one database."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Self

from allrec.errors import InputError
from allrec.files import atomic_path
from allrec.serving.database import Database
from allrec.serving.keys import Keys
from allrec.serving.records import Answer, Event, Experiment, Feedback, Item, ModelVersion, Scenario, User
from allrec.serving.store_items import UnavailableCache
from allrec.serving.transfer import TransferStore

__all__ = ["Answer", "Event", "Experiment", "Feedback", "Item", "ModelVersion", "Scenario", "Store", "User"]


class Store(TransferStore):
    """Every method takes the tenant first and sees that tenant's rows alone. Safe to share between threads.

    Attributes:
        keys: the API keys.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with Store.open(f"sqlite:///{folder}/store.db") as store:
        ...         added = store.add_events("shop", [Event("e1", user_id="u", item_id="i", kind="view", timestamp=0)])
        ...         history = store.history("shop", "u", limit=10)
        >>> added, [event.item_id for event in history]
        (1, ['i'])
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.unavailable_cache = UnavailableCache()
        self.keys = Keys(database)

    @classmethod
    def open(cls, url: str) -> "Store":
        """Opens a store, which is made where there is none, and brings it to the newest schema.

        Args:
            url: ``sqlite:///path`` or ``postgresql+psycopg://user@host/name``.

        Raises:
            InputError: another kind of database, one that cannot be reached, or one that a newer allrec wrote.
        """
        database = Database(url)
        try:
            database.migrate()
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Closes every connection; the store cannot be used afterwards."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def back_up(self, path: Path | str) -> None:
        """Copies a SQLite store to a file while it is in use: one moment's state, whole or not at all.

        To restore, stop the service and put the copy in the store's place, without the ``-wal`` and ``-shm`` files.

        Raises:
            InputError: the store is on PostgreSQL, which has ``pg_dump`` for it.
        """
        if self.database.path is None:
            raise InputError("back_up copies SQLite stores; for PostgreSQL take pg_dump --format=custom.")
        with (
            atomic_path(path) as temporary,
            closing(sqlite3.connect(self.database.path)) as source,
            closing(sqlite3.connect(temporary)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
