"""Events: written once each, read as histories, counted as popularity."""

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any

from sqlalchemy import ColumnElement, case, delete, distinct, func, select

from allrec.serving.database import ASKED_TOGETHER, Database
from allrec.serving.records import Event, check_number, check_tenant, check_text
from allrec.serving.schema import NAME_LENGTH, events

DAY = 86_400.0
BATCH = 5_000  # rows a transaction: others wait no longer than that for their turn
COLUMNS = tuple(events.c[name] for name in Event.__dataclass_fields__)


class EventStore:
    """The part of the store that holds events."""

    database: Database

    def add_events(self, tenant: str, new: Sequence[Event]) -> int:
        """Adds events that are not there yet. When this returns they are on disk.

        An event whose id the tenant has already, or has twice in ``new``, is left out: the first one stays.

        Returns:
            How many were added.

        Raises:
            InputError: an id, kind or number that cannot be stored; nothing is added then.
        """
        check_tenant(tenant)
        for event in new:
            check_event(event)
        return sum(self._add_batch(tenant, new[start : start + BATCH]) for start in range(0, len(new), BATCH))

    def _add_batch(self, tenant: str, new: Sequence[Event]) -> int:
        with self.database.write() as connection:
            first = self.database.take_numbers(connection, tenant, "events", len(new))
            rows = [event_row(tenant, first + place, event) for place, event in enumerate(new)]
            return self.database.insert_new(connection, events, rows)

    def history(self, tenant: str, user_id: str, *, limit: int) -> list[Event]:
        """A user's latest events, at most ``limit``, oldest first; of the same time, in the order of their arrival."""
        return self.histories(tenant, [user_id], limit=limit).get(user_id, [])

    def histories(self, tenant: str, user_ids: Sequence[str], *, limit: int) -> dict[str, list[Event]]:
        """``history`` of several users, those without events left out, by one query for a thousand of them."""
        place = func.row_number().over(
            partition_by=events.c.user_id, order_by=(events.c.timestamp.desc(), events.c.cursor.desc())
        )
        found: dict[str, list[Event]] = {}
        for start in range(0, len(user_ids), ASKED_TOGETHER):
            asked = events.c.user_id.in_(user_ids[start : start + ASKED_TOGETHER])
            placed = select(*COLUMNS, place.label("place")).where(events.c.tenant == tenant, asked).subquery()
            latest = select(placed).where(placed.c.place <= limit).order_by(placed.c.user_id, placed.c.place.desc())
            with self.database.read() as connection:
                for row in connection.execute(latest):
                    event = Event(*row[:-1])
                    found.setdefault(event.user_id, []).append(event)
        return found

    def events(self, tenant: str, *, cursor: int = 0, limit: int) -> list[tuple[int, Event]]:
        """Events that arrived after the one of ``cursor``, at most ``limit``, each with its own cursor.

        Cursors grow in the order in which events become visible, so that none is missed by going on from the last one.
        """
        query = (
            select(events.c.cursor, *COLUMNS)
            .where(events.c.tenant == tenant, events.c.cursor > cursor)
            .order_by(events.c.cursor)
            .limit(limit)
        )
        with self.database.read() as connection:
            return [(row[0], Event(*row[1:])) for row in connection.execute(query)]

    def users_of(self, tenant: str, item_id: str) -> set[str]:
        """Users who have an event with an item."""
        query = select(events.c.user_id).where(events.c.tenant == tenant, events.c.item_id == item_id).distinct()
        with self.database.read() as connection:
            return set(connection.execute(query).scalars())

    def num_events(self, tenant: str) -> int:
        """How many events a tenant has."""
        query = select(func.count()).select_from(events).where(events.c.tenant == tenant)
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def popular(self, tenant: str, *, since: float, limit: int | None) -> list[tuple[str, int]]:
        """Items by how many different users had an event with them since a time, most first; ties by item id."""
        num_users = func.count(distinct(events.c.user_id)).label("num_users")
        query = (
            select(events.c.item_id, num_users)
            .where(events.c.tenant == tenant, events.c.timestamp >= since)
            .group_by(events.c.item_id)
            .order_by(num_users.desc(), events.c.item_id)
            .limit(limit)
        )
        with self.database.read() as connection:
            return [(row.item_id, row.num_users) for row in connection.execute(query)]

    def trending(
        self, tenant: str, *, now: float, limit: int | None, window: float = DAY, num_windows: int = 7
    ) -> list[tuple[str, float]]:
        """Items that get more events in the latest window than is usual for them.

        Args:
            now: the end of the latest window, in seconds since 1970-01-01 UTC.
            window: its length in seconds.
            num_windows: how many windows before it tell what is usual.

        Returns:
            (item, score), highest first, scores above 0 alone: (n - m) / sqrt(m + 1), where n events fell into the
            window and m is the mean of the windows before it; for Poisson counts about a standard deviation each.
        """
        begin = now - window
        is_latest = events.c.timestamp > begin
        rows = self._counts(tenant, begin - num_windows * window, now, is_latest)
        scored = [
            (row.item_id, (row.latest - row.before / num_windows) / sqrt(row.before / num_windows + 1)) for row in rows
        ]
        rising = sorted((pair for pair in scored if pair[1] > 0), key=lambda pair: (-pair[1], pair[0]))
        return rising[:limit]

    def _counts(self, tenant: str, begin: float, end: float, is_latest: ColumnElement[bool]) -> Sequence[Any]:
        query = (
            select(
                events.c.item_id,
                func.sum(case((is_latest, 1), else_=0)).label("latest"),
                func.sum(case((is_latest, 0), else_=1)).label("before"),
            )
            .where(events.c.tenant == tenant, events.c.timestamp > begin, events.c.timestamp <= end)
            .group_by(events.c.item_id)
        )
        with self.database.read() as connection:
            return connection.execute(query).all()

    def drop_events(self, tenant: str, *, before: float) -> int:
        """Deletes the events that are older than a time, in seconds since 1970-01-01 UTC, and says how many."""
        old = select(events.c.event_id).where(events.c.tenant == tenant, events.c.timestamp < before).limit(BATCH)
        statement = delete(events).where(events.c.tenant == tenant, events.c.event_id.in_(old))
        return sum(self._deleted(statement))

    def _deleted(self, statement: Any) -> Iterator[int]:
        """Runs a delete of at most BATCH rows until it finds none, each time in a transaction of its own."""
        while True:
            with self.database.write() as connection:
                count = int(connection.execute(statement).rowcount)
            if not count:
                return
            yield count


def event_row(tenant: str, cursor: int, event: Event) -> dict[str, Any]:
    """An event as a row of its table."""
    return {
        "tenant": tenant,
        "cursor": cursor,
        "event_id": event.event_id,
        "user_id": event.user_id,
        "item_id": event.item_id,
        "kind": event.kind,
        "timestamp": event.timestamp,
        "value": event.value,
        "recommendation_id": event.recommendation_id,
    }


def check_event(event: Event) -> None:
    """Raises InputError for an event that cannot be stored."""
    check_text(event.event_id, "event_id")
    check_text(event.user_id, "user_id")
    check_text(event.item_id, "item_id")
    check_text(event.kind, "kind", length=NAME_LENGTH)
    check_number(event.timestamp, "timestamp")
    check_number(event.value, "value", is_optional=True)
    check_text(event.recommendation_id, "recommendation_id", is_optional=True)
