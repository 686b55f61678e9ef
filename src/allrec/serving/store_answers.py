"""Recommendations as they were given, and what users then saw and clicked."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Table, delete, select, tuple_

from allrec.errors import InputError
from allrec.serving.database import Database
from allrec.serving.records import (
    FEEDBACK_KINDS,
    Answer,
    Feedback,
    check_json,
    check_number,
    check_tenant,
    check_text,
)
from allrec.serving.schema import NAME_LENGTH, answers, feedback
from allrec.serving.store_events import BATCH


class AnswerStore:
    """The part of the store that holds answers, and the feedback on them."""

    database: Database

    def add_answers(self, tenant: str, new: Sequence[Answer]) -> int:
        """Records answers, many in one transaction; an id that is there stays. Returns how many were new."""
        for answer in new:
            check_answer(answer)
        return self._add(answers, tenant, new)

    def answer(self, tenant: str, recommendation_id: str) -> Answer | None:
        """The answer of an id, None where the tenant has none."""
        query = select(*(answers.c[name] for name in Answer.__dataclass_fields__)).where(
            answers.c.tenant == tenant, answers.c.recommendation_id == recommendation_id
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _answer(row)

    def add_feedback(self, tenant: str, new: Sequence[Feedback]) -> int:
        """Records impressions and clicks, each of an answer and item once. Returns how many were new."""
        for entry in new:
            check_feedback(entry)
        return self._add(feedback, tenant, new)

    def feedback(self, tenant: str, recommendation_id: str) -> list[Feedback]:
        """What users saw and clicked of an answer, oldest first."""
        query = (
            select(*(feedback.c[name] for name in Feedback.__dataclass_fields__))
            .where(feedback.c.tenant == tenant, feedback.c.recommendation_id == recommendation_id)
            .order_by(feedback.c.timestamp, feedback.c.item_id, feedback.c.kind)
        )
        with self.database.read() as connection:
            return [Feedback(*row) for row in connection.execute(query)]

    def drop_answers(self, tenant: str, *, before: float) -> int:
        """Deletes answers and feedback older than a time, in seconds since 1970-01-01 UTC, and says how many rows."""
        return sum(
            sum(self._dropped(table, tenant, before, time))
            for table, time in ((answers, "created_at"), (feedback, "timestamp"))
        )

    def _add(self, table: Table, tenant: str, new: Sequence[Answer] | Sequence[Feedback]) -> int:
        check_tenant(tenant)
        rows = [{"tenant": tenant, **asdict(entry)} for entry in new]
        with self.database.write() as connection:
            return self.database.insert_new(connection, table, rows)

    def _dropped(self, table: Table, tenant: str, before: float, time: str) -> Iterator[int]:
        """Deletes at most BATCH rows a transaction until none is left."""
        key = tuple_(*(column for column in table.primary_key if column.name != "tenant"))
        old = select(*key.clauses).where(table.c.tenant == tenant, table.c[time] < before).limit(BATCH)
        while True:
            with self.database.write() as connection:
                statement = delete(table).where(table.c.tenant == tenant, key.in_(old))
                count = int(connection.execute(statement).rowcount)
            if not count:
                return
            yield count


def _answer(row: Any) -> Answer:
    values = dict(zip(Answer.__dataclass_fields__, row, strict=True))
    return Answer(**{**values, "item_ids": tuple(values["item_ids"])})


def check_answer(answer: Answer) -> None:
    """Raises InputError for an answer that cannot be stored."""
    check_text(answer.recommendation_id, "recommendation_id")
    check_text(answer.user_id, "user_id", is_optional=True)
    check_json(list(answer.item_ids), "item_ids")
    check_text(answer.scorer, "scorer", length=NAME_LENGTH)
    check_text(answer.fallback, "fallback", length=4096, is_optional=True)
    check_text(answer.experiment, "experiment", length=NAME_LENGTH, is_optional=True)
    check_text(answer.experiment_group, "experiment_group", length=NAME_LENGTH, is_optional=True)
    check_number(answer.created_at, "created_at")


def check_feedback(entry: Feedback) -> None:
    """Raises InputError for feedback that cannot be stored."""
    check_text(entry.recommendation_id, "recommendation_id")
    check_text(entry.item_id, "item_id")
    check_text(entry.user_id, "user_id", is_optional=True)
    check_number(entry.timestamp, "timestamp")
    if entry.kind not in FEEDBACK_KINDS:
        raise InputError(f"got feedback of the kind {entry.kind!r}, expected one of {', '.join(FEEDBACK_KINDS)}.")
