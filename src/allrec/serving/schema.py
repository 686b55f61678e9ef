"""The tables of the store, the same on SQLite and PostgreSQL. Every key begins with the tenant.

Times are seconds since 1970-01-01 UTC. JSON stands in text columns, so that both databases keep the same bytes.
A change of a table needs a new file in ``migrations/versions``; a test compares the two.
"""

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

NAME_LENGTH = 64
ID_LENGTH = 256


class JsonText(TypeDecorator[Any]):
    """JSON as ASCII text: NUL and lone surrogates are escaped, which PostgreSQL's text would refuse."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def _tenant() -> Column[str]:
    return Column("tenant", String(NAME_LENGTH), primary_key=True)


def _key(name: str, length: int = ID_LENGTH) -> Column[str]:
    return Column(name, String(length), primary_key=True)


def _time(name: str, *, is_optional: bool = False) -> Column[float]:
    return Column(name, Double, nullable=is_optional)


metadata = MetaData()

tenants = Table("tenants", metadata, _tenant(), _time("created_at"))

# The last number given out. Its row is locked until the transaction ends, so that numbers become visible in their
# order: a reader that has seen number n never misses a smaller one.
counters = Table(
    "counters", metadata, _tenant(), _key("name", NAME_LENGTH), Column("value", BigInteger, nullable=False)
)

events = Table(
    "events",
    metadata,
    _tenant(),
    _key("event_id"),
    Column("cursor", BigInteger, nullable=False),
    Column("user_id", String(ID_LENGTH), nullable=False),
    Column("item_id", String(ID_LENGTH), nullable=False),
    Column("kind", String(NAME_LENGTH), nullable=False),
    Column("value", Double, nullable=True),
    _time("timestamp"),
    Column("recommendation_id", String(ID_LENGTH), nullable=True),
)
Index("events_cursor", events.c.tenant, events.c.cursor, unique=True)
Index("events_user", events.c.tenant, events.c.user_id, events.c.timestamp, events.c.cursor)
Index("events_timestamp", events.c.tenant, events.c.timestamp, events.c.item_id, events.c.user_id)

items = Table(
    "items",
    metadata,
    _tenant(),
    _key("item_id"),
    Column("version", BigInteger, nullable=False),
    Column("fields", JsonText, nullable=False),
    Column("is_hidden", Boolean, nullable=False),
    Column("is_in_stock", Boolean, nullable=False),
    _time("expires_at", is_optional=True),
    Column("embedding", LargeBinary, nullable=True),
    Column("encoder", String(ID_LENGTH), nullable=True),
    _time("created_at"),
)
Index("items_version", items.c.tenant, items.c.version, unique=True)
Index("items_created", items.c.tenant, items.c.created_at)

users = Table("users", metadata, _tenant(), _key("user_id"), Column("fields", JsonText, nullable=False))

erasures = Table("erasures", metadata, _tenant(), _key("user_digest", 64), _time("erased_at"))
"""Users who were erased, as digests of their ids: what runs learned of them is neither used nor learned from again."""

answers = Table(
    "answers",
    metadata,
    _tenant(),
    _key("recommendation_id"),
    Column("user_id", String(ID_LENGTH), nullable=True),
    Column("item_ids", JsonText, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("scorer", String(NAME_LENGTH), nullable=False),
    Column("fallback", Text, nullable=True),
    Column("experiment", String(NAME_LENGTH), nullable=True),
    Column("experiment_group", String(NAME_LENGTH), nullable=True),
    _time("created_at"),
)
Index("answers_user", answers.c.tenant, answers.c.user_id)
Index("answers_experiment", answers.c.tenant, answers.c.experiment)
Index("answers_created", answers.c.tenant, answers.c.created_at)

feedback = Table(
    "feedback",
    metadata,
    _tenant(),
    _key("recommendation_id"),
    _key("item_id"),
    _key("kind", NAME_LENGTH),
    Column("user_id", String(ID_LENGTH), nullable=True),
    _time("timestamp"),
)
Index("feedback_user", feedback.c.tenant, feedback.c.user_id)
Index("feedback_timestamp", feedback.c.tenant, feedback.c.timestamp)

scenarios = Table(
    "scenarios", metadata, _tenant(), _key("name", NAME_LENGTH), Column("settings", JsonText, nullable=False)
)

experiments = Table(
    "experiments",
    metadata,
    _tenant(),
    _key("name", NAME_LENGTH),
    Column("groups", JsonText, nullable=False),
    Column("is_running", Boolean, nullable=False),
    _time("created_at"),
)

# What serves is the highest version that was not withdrawn.
model_versions = Table(
    "model_versions",
    metadata,
    _tenant(),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("run", Text, nullable=False),
    _time("published_at"),
    _time("withdrawn_at", is_optional=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    _tenant(),
    _key("key_id", NAME_LENGTH),
    Column("digest", String(64), nullable=False),
    Column("scopes", JsonText, nullable=False),
    _time("created_at"),
    _time("revoked_at", is_optional=True),
)
Index("api_keys_digest", api_keys.c.digest, unique=True)
