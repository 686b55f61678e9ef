"""Items that were added or changed since the run was trained, and what is unavailable now."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import time
from typing import Any

from sqlalchemy import Connection, and_, not_, or_, select

from allrec.errors import InputError
from allrec.serving.database import Database
from allrec.serving.records import Item, check_fields, check_flag, check_number, check_tenant, check_text
from allrec.serving.schema import counters, items

COLUMNS = tuple(items.c[name] for name in Item.__dataclass_fields__)
CACHED_TENANTS = 256
FLOAT_BYTES = 4
CONTENT = ("fields", "embedding", "encoder")
AVAILABILITY = ("is_hidden", "is_in_stock", "expires_at")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """What a version of a tenant's items leaves out: always, and from a time on (times in ascending order)."""

    version: int
    always: frozenset[str]
    expiry_times: tuple[float, ...]
    expiring_ids: tuple[str, ...]

    def at(self, now: float) -> set[str]:
        return set(self.always).union(self.expiring_ids[: bisect_right(self.expiry_times, now)])


class UnavailableCache:
    """The latest few tenants' unavailable items, valid for one version of their items. Safe between threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Unavailable] = OrderedDict()
        self._lock = Lock()

    def get(self, tenant: str, version: int) -> Unavailable | None:
        with self._lock:
            entry = self._entries.get(tenant)
            if entry is None or entry.version != version:
                return None
            self._entries.move_to_end(tenant)
            return entry

    def put(self, tenant: str, entry: Unavailable) -> None:
        with self._lock:
            self._entries[tenant] = entry
            self._entries.move_to_end(tenant)
            while len(self._entries) > CACHED_TENANTS:
                self._entries.popitem(last=False)


class ItemStore:
    """The part of the store that holds items."""

    database: Database
    unavailable_cache: UnavailableCache

    def put_items(self, tenant: str, changed: Sequence[Item], *, keep_availability: bool = False) -> int:
        """Adds items, or replaces those that are there. Of the same id twice, the later one stays.

        Args:
            keep_availability: leaves whether an item is hidden, in stock and expiring as it is, for those that are
                there: a catalogue that is sent again then brings no hidden item back.

        Returns:
            The tenant's version of the items, which has grown.

        Raises:
            InputError: an id, field or embedding that cannot be stored; nothing is changed then.
        """
        check_tenant(tenant)
        for item in changed:
            check_item(item)
        rows = list({item.item_id: item for item in changed}.values())
        kept = CONTENT if keep_availability else CONTENT + AVAILABILITY
        with self.database.write() as connection:
            return self._upsert(connection, tenant, rows, kept)

    def set_availability(
        self,
        tenant: str,
        item_ids: Iterable[str],
        *,
        is_hidden: bool | None = None,
        is_in_stock: bool | None = None,
        expires_at: float | None = None,
        never_expires: bool = False,
    ) -> int:
        """Hides items, takes them out of stock, lets them expire, or the reverse; None leaves a thing as it is.

        Items of the run that the store does not know yet are entered without fields. When this returns, ``unavailable``
        says so in every process.

        Returns:
            The tenant's version of the items, which has grown.
        """
        check_tenant(tenant)
        check_number(expires_at, "expires_at", is_optional=True)
        changes: dict[str, Any] = {
            name: value
            for name, value in (("is_hidden", is_hidden), ("is_in_stock", is_in_stock), ("expires_at", expires_at))
            if value is not None
        }
        if never_expires:
            changes["expires_at"] = None
        rows = [Item(item_id, **changes) for item_id in dict.fromkeys(item_ids)]
        for row in rows:
            check_item(row)
        with self.database.write() as connection:
            return self._upsert(connection, tenant, rows, tuple(changes))

    def _upsert(self, connection: Connection, tenant: str, rows: Sequence[Item], replaced: tuple[str, ...]) -> int:
        first = self.database.take_numbers(connection, tenant, "items", len(rows))
        insert = self.database.insert(items)
        upsert = insert.on_conflict_do_update(
            index_elements=["tenant", "item_id"],
            set_={name: insert.excluded[name] for name in (*replaced, "version")},
        )
        now = time()
        if rows:
            values = [item_row(tenant, first + place, item, now) for place, item in enumerate(rows)]
            connection.execute(upsert, values)
        return first + len(rows) - 1

    def items_version(self, tenant: str) -> int:
        """The version of a tenant's items: 0 at first, then the number of the latest change."""
        query = select(counters.c.value).where(counters.c.tenant == tenant, counters.c.name == "items")
        with self.database.read() as connection:
            return connection.execute(query).scalar() or 0

    def items_changed(self, tenant: str, *, since_version: int, limit: int | None = None) -> tuple[int, list[Item]]:
        """Items changed after a version, in the order of their change, and the version to go on from."""
        query = (
            select(*COLUMNS)
            .where(items.c.tenant == tenant, items.c.version > since_version)
            .order_by(items.c.version)
            .limit(limit)
        )
        with self.database.read() as connection:
            changed = [Item(*row) for row in connection.execute(query)]
        return (changed[-1].version if changed else since_version), changed

    def get_items(self, tenant: str, item_ids: Iterable[str]) -> dict[str, Item]:
        """The items of these ids that the store knows, by id."""
        query = select(*COLUMNS).where(items.c.tenant == tenant, items.c.item_id.in_(list(item_ids)))
        with self.database.read() as connection:
            return {item.item_id: item for item in (Item(*row) for row in connection.execute(query))}

    def latest_items(self, tenant: str, *, limit: int | None) -> list[Item]:
        """The items added last, newest first, without those that are known by their availability alone."""
        query = (
            select(*COLUMNS)
            .where(items.c.tenant == tenant, items.c.fields != {})
            .order_by(items.c.created_at.desc(), items.c.item_id)
            .limit(limit)
        )
        with self.database.read() as connection:
            return [Item(*row) for row in connection.execute(query)]

    def unavailable(self, tenant: str, *, now: float) -> set[str]:
        """Items that are hidden, out of stock or expired at a time, in seconds since 1970-01-01 UTC.

        Reads one number where nothing changed since the last call in this process.
        """
        version = self.items_version(tenant)
        entry = self.unavailable_cache.get(tenant, version)
        if entry is None:
            entry = self._read_unavailable(tenant, version)
            self.unavailable_cache.put(tenant, entry)
        return entry.at(now)

    def _read_unavailable(self, tenant: str, version: int) -> Unavailable:
        """Read after ``version``: it may hold a later change early, which the next call then reads again."""
        is_off = or_(items.c.is_hidden, not_(items.c.is_in_stock))
        query = select(items.c.item_id, is_off.label("is_off"), items.c.expires_at).where(
            and_(items.c.tenant == tenant, or_(is_off, items.c.expires_at.is_not(None)))
        )
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        expiring = sorted((row.expires_at, row.item_id) for row in rows if not row.is_off)
        return Unavailable(
            version=version,
            always=frozenset(row.item_id for row in rows if row.is_off),
            expiry_times=tuple(moment for moment, _ in expiring),
            expiring_ids=tuple(item_id for _, item_id in expiring),
        )


def item_row(tenant: str, version: int, item: Item, now: float) -> dict[str, Any]:
    """An item as a row of its table."""
    row = {name: getattr(item, name) for name in Item.__dataclass_fields__}
    created_at = now if item.created_at is None else item.created_at
    return {**row, "tenant": tenant, "version": version, "created_at": created_at}


def check_item(item: Item) -> None:
    """Raises InputError for an item that cannot be stored."""
    check_text(item.item_id, "item_id")
    check_flag(item.is_hidden, "is_hidden")
    check_flag(item.is_in_stock, "is_in_stock")
    check_fields(item.fields, f"fields of item {item.item_id!r}")
    check_number(item.expires_at, "expires_at", is_optional=True)
    check_number(item.created_at, "created_at", is_optional=True)
    check_text(item.encoder, "encoder", is_optional=True)
    if item.embedding is not None and (len(item.embedding) % FLOAT_BYTES or item.encoder is None):
        raise InputError(
            f"got an embedding of {len(item.embedding)} bytes with the encoder {item.encoder!r} for item "
            f"{item.item_id!r}, expected float32 numbers and the fingerprint of the encoder that made them."
        )
