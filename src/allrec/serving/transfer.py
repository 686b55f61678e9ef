"""Everything of a tenant as JSON lines, out and in. Model versions and keys belong to a deployment and stay there."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Table, select, tuple_

from allrec.errors import InputError, nearest
from allrec.serving import schema
from allrec.serving.records import Answer, Erasure, Event, Experiment, Feedback, Item, Scenario, User, check_tenant
from allrec.serving.store_answers import AnswerStore
from allrec.serving.store_events import EventStore
from allrec.serving.store_items import ItemStore
from allrec.serving.store_settings import SettingStore
from allrec.serving.store_users import UserStore

PAGE = 1000  # lines that are read at once, and written in one transaction


@dataclass(frozen=True, slots=True)
class Section:
    """A table's part of an export: its rows as ``record``, in the order of ``order``, which is a key."""

    table: Table
    record: type[Any]
    order: tuple[str, ...]


# Events come last and in the order of their arrival, so that a later export goes on with the new ones alone.
SECTIONS = {
    "scenario": Section(schema.scenarios, Scenario, ("name",)),
    "experiment": Section(schema.experiments, Experiment, ("name",)),
    "erasure": Section(schema.erasures, Erasure, ("user_digest",)),
    "user": Section(schema.users, User, ("user_id",)),
    "item": Section(schema.items, Item, ("version",)),
    "answer": Section(schema.answers, Answer, ("recommendation_id",)),
    "feedback": Section(schema.feedback, Feedback, ("recommendation_id", "item_id", "kind")),
    "event": Section(schema.events, Event, ("cursor",)),
}


class TransferStore(EventStore, ItemStore, UserStore, AnswerStore, SettingStore):
    """The part of the store that exports and imports."""

    def export(self, tenant: str, *, cursor: str | None = None, limit: int | None = None) -> Iterator[str]:
        """A tenant's data as JSON lines: ``{"kind": "event", "row": {...}, "cursor": "..."}``.

        Args:
            cursor: that of the last line that was received; the export goes on after it.
            limit: how many lines at most; None for all.

        Raises:
            InputError: the cursor is of no export.
        """
        check_tenant(tenant)
        begin, position = ("", None) if cursor is None else _read_cursor(cursor)
        names = list(SECTIONS)
        names = names[names.index(begin) :] if begin else names
        lines = (line for name in names for line in self._section(tenant, name, position if name == begin else None))
        return islice(lines, limit)

    def _section(self, tenant: str, kind: str, position: list[Any] | None) -> Iterator[str]:
        section = SECTIONS[kind]
        names = [field.name for field in fields(section.record) if field.name != "version"]
        order = [section.table.c[name] for name in section.order]
        query = select(*(section.table.c[name] for name in names), *order).where(section.table.c.tenant == tenant)
        while True:
            after = query if position is None else query.where(tuple_(*order) > tuple_(*position))
            with self.database.read() as connection:
                page = connection.execute(after.order_by(*order).limit(PAGE)).all()
            for row in page:
                position = list(row[len(names) :])
                yield _line(kind, dict(zip(names, row, strict=False)), position)
            if len(page) < PAGE:
                return

    def load(
        self, tenant: str, lines: Iterable[str], check: Callable[[str, Any], None] | None = None
    ) -> dict[str, int]:
        """Imports the lines of an export. Loading them again changes nothing, so a broken import is just repeated.

        Items, users' fields, scenarios and experiments are then as the lines say, those that were changed since as
        well; events, answers and feedback that are there stay as they are.

        Args:
            tenant: whose data it becomes.
            lines: of an export.
            check: called with kind and record of each line before its page is stored; raises InputError.

        Returns:
            How many lines of each kind were read.

        Raises:
            InputError: a line that is no line of an export; those before it may have been loaded.
        """
        check_tenant(tenant)
        records = (_read_line(number, line, check) for number, line in enumerate(lines, start=1) if line.strip())
        counts = dict.fromkeys(SECTIONS, 0)
        while page := list(islice(records, PAGE)):
            for kind, group in groupby(page, key=lambda pair: pair[0]):
                loaded = [record for _, record in group]
                self._load(tenant, kind, loaded)
                counts[kind] += len(loaded)
        return counts

    def _load(self, tenant: str, kind: str, records: list[Any]) -> None:
        match kind:
            case "event":
                self.add_events(tenant, records)
            case "item":
                self.put_items(tenant, records)
            case "erasure":
                self.add_erasures(tenant, records)
            case "user":
                self.put_users(tenant, records)
            case "answer":
                self.add_answers(tenant, records)
            case "feedback":
                self.add_feedback(tenant, records)
            case "scenario":
                for scenario in records:
                    self.put_scenario(tenant, scenario.name, settings=scenario.settings)
            case "experiment":
                for experiment in records:
                    self.put_experiment(tenant, experiment)


def _line(kind: str, row: dict[str, Any], position: list[Any]) -> str:
    if isinstance(row.get("embedding"), bytes):
        row["embedding"] = base64.b64encode(row["embedding"]).decode()
    return json.dumps({"kind": kind, "row": row, "cursor": _write_cursor(kind, position)})


def _write_cursor(kind: str, position: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([kind, *position]).encode()).decode()


def _read_cursor(cursor: str) -> tuple[str, list[Any]]:
    try:
        kind, *position = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (ValueError, TypeError, RecursionError):
        kind, position = None, []
    kinds = [int if kind in ("item", "event") else str for _ in position]
    if kind not in SECTIONS or len(position) != len(SECTIONS[kind].order) or [type(part) for part in position] != kinds:
        raise InputError(f"got the cursor {cursor[:80]!r}, expected that of an export's last line. Begin without one.")
    return kind, position


def _read_line(number: int, line: str, check: Callable[[str, Any], None] | None = None) -> tuple[str, Any]:
    try:
        kind, row = _parts(line)
        if isinstance(row.get("embedding"), str):
            row["embedding"] = base64.b64decode(row["embedding"], validate=True)
        if isinstance(row.get("item_ids"), list):
            row["item_ids"] = tuple(row["item_ids"])
        record = SECTIONS[kind].record(**row)
        if check is not None:
            check(kind, record)
        return kind, record
    except (ValueError, TypeError, RecursionError, binascii.Error) as error:
        raise InputError(f"line {number}: {error}") from None


def _parts(line: str) -> tuple[str, dict[str, Any]]:
    value = json.loads(line)
    if not isinstance(value, dict) or not isinstance(value.get("row"), dict):
        raise InputError('expected {"kind": ..., "row": {...}}, as export writes it.')
    kind = value.get("kind")
    if kind not in SECTIONS:
        raise InputError(f"got the kind {kind!r}; {nearest(str(kind), list(SECTIONS))}")
    return kind, value["row"]
