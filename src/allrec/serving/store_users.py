"""What the store knows of a user: fields of one's own, shown and erased on request."""

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from time import time
from typing import Any

from sqlalchemy import ColumnElement, Table, delete, select

from allrec.serving.database import ASKED_TOGETHER, Database
from allrec.serving.records import (
    Answer,
    Erasure,
    Event,
    Feedback,
    User,
    check_fields,
    check_number,
    check_tenant,
    check_text,
)
from allrec.serving.schema import answers, erasures, events, feedback, users

PERSONAL: dict[str, tuple[Table, Any]] = {
    "events": (events, Event),
    "answers": (answers, Answer),
    "feedback": (feedback, Feedback),
}


class UserStore:
    """The part of the store that holds users."""

    database: Database

    def put_user(self, tenant: str, user_id: str, *, fields: dict[str, Any]) -> None:
        """Sets a user's fields; those it had are replaced."""
        self.put_users(tenant, [User(user_id, fields)])

    def put_users(self, tenant: str, changed: Sequence[User]) -> None:
        """Sets the fields of several users in one transaction."""
        check_tenant(tenant)
        for user in changed:
            check_text(user.user_id, "user_id")
            check_fields(user.fields, f"fields of user {user.user_id!r}")
        # In one order, so that two callers never wait for each other.
        rows = sorted(({"tenant": tenant, **asdict(user)} for user in changed), key=lambda row: row["user_id"])
        insert = self.database.insert(users)
        upsert = insert.on_conflict_do_update(
            index_elements=["tenant", "user_id"], set_={"fields": insert.excluded.fields}
        )
        if rows:
            with self.database.write() as connection:
                connection.execute(upsert, rows)

    def user_fields(self, tenant: str, user_id: str) -> dict[str, Any] | None:
        """A user's fields, None where none were set."""
        query = select(users.c.fields).where(users.c.tenant == tenant, users.c.user_id == user_id)
        with self.database.read() as connection:
            return connection.execute(query).scalar()

    def show_user(self, tenant: str, user_id: str) -> dict[str, Any]:
        """Everything that is stored about a user: ``fields``, ``events``, ``answers``, ``feedback``, oldest first."""
        shown: dict[str, Any] = {"user_id": user_id, "fields": self.user_fields(tenant, user_id)}
        with self.database.read() as connection:
            for name, (table, record) in PERSONAL.items():
                order = table.c.created_at if name == "answers" else table.c.timestamp
                columns = (table.c[column] for column in record.__dataclass_fields__)
                query = select(*columns).where(*_of_user(table, tenant, user_id)).order_by(order)
                shown[name] = [asdict(record(*row)) for row in connection.execute(query)]
        return shown

    def erase_user(self, tenant: str, user_id: str) -> dict[str, int]:
        """Deletes everything that is stored about a user, in one transaction, and notes a digest of the id.

        By the digest the service leaves out what a run learned of the user, and a refresh learns from none of it again.

        Returns:
            How many rows of each table went. Back-ups and exports that were made before still hold them.
        """
        # Feedback goes first: what names nobody is told by the user's answers.
        tables = {name: PERSONAL[name][0] for name in ("feedback", "answers", "events")} | {"users": users}
        note = self.database.insert(erasures).on_conflict_do_nothing()
        with self.database.write() as connection:
            connection.execute(note, {"tenant": tenant, "user_digest": digest_of(user_id), "erased_at": time()})
            return {
                name: connection.execute(delete(table).where(*_of_user(table, tenant, user_id))).rowcount
                for name, table in tables.items()
            }

    def add_erasures(self, tenant: str, noted: Sequence[Erasure]) -> None:
        """Notes users who were erased elsewhere; nothing is deleted."""
        check_tenant(tenant)
        for one in noted:
            check_text(one.user_digest, "user_digest", length=64)
            check_number(one.erased_at, "erased_at")
        note = self.database.insert(erasures).on_conflict_do_nothing()
        if noted:
            with self.database.write() as connection:
                connection.execute(note, [{"tenant": tenant, **asdict(one)} for one in noted])

    def is_erased(self, tenant: str, user_id: str) -> bool:
        """Whether a user was erased: what runs know of the user from before is not to be used."""
        return user_id in self.erased(tenant, [user_id])

    def erased(self, tenant: str, user_ids: Sequence[str]) -> set[str]:
        """Which of the users were erased, by one query for a thousand of them."""
        ids = {digest_of(user_id): user_id for user_id in user_ids}
        digests, found = list(ids), set()
        for start in range(0, len(digests), ASKED_TOGETHER):
            asked = erasures.c.user_digest.in_(digests[start : start + ASKED_TOGETHER])
            with self.database.read() as connection:
                rows = connection.execute(select(erasures.c.user_digest).where(erasures.c.tenant == tenant, asked))
                found |= {ids[digest] for digest in rows.scalars()}
        return found

    def erased_digests(self, tenant: str) -> set[str]:
        """``digest_of`` every user who was erased."""
        with self.database.read() as connection:
            return set(connection.execute(select(erasures.c.user_digest).where(erasures.c.tenant == tenant)).scalars())


def _of_user(table: Table, tenant: str, user_id: str) -> tuple[ColumnElement[bool], ...]:
    """Which rows of a table are of a user; feedback on the user's answers is, where it names nobody."""
    is_own = table.c.user_id == user_id
    if table is feedback:
        own = select(answers.c.recommendation_id).where(answers.c.tenant == tenant, answers.c.user_id == user_id)
        is_own |= table.c.user_id.is_(None) & table.c.recommendation_id.in_(own)
    return table.c.tenant == tenant, is_own


def digest_of(user_id: str) -> str:
    """SHA-256 of a user's id, in hexadecimal digits."""
    return sha256(user_id.encode()).hexdigest()
