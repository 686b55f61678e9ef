"""The first tables. Columns are written out: a migration must not change when the schema does."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant", sa.String(64), primary_key=True)


def _key(name: str, length: int = 256) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), primary_key=True)


def _column(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _optional(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=True)


def upgrade() -> None:
    op.create_table("tenants", _tenant(), _column("created_at", sa.Double()))
    op.create_table("counters", _tenant(), _key("name", 64), _column("value", sa.BigInteger()))
    _create_events()
    _create_items()
    op.create_table("users", _tenant(), _key("user_id"), _column("fields", sa.Text()))
    op.create_table("erasures", _tenant(), _key("user_digest", 64), _column("erased_at", sa.Double()))
    _create_answers()
    _create_settings()
    _create_keys()


def _create_events() -> None:
    op.create_table(
        "events",
        _tenant(),
        _key("event_id"),
        _column("cursor", sa.BigInteger()),
        _column("user_id", sa.String(256)),
        _column("item_id", sa.String(256)),
        _column("kind", sa.String(64)),
        _optional("value", sa.Double()),
        _column("timestamp", sa.Double()),
        _optional("recommendation_id", sa.String(256)),
    )
    op.create_index("events_cursor", "events", ["tenant", "cursor"], unique=True)
    op.create_index("events_user", "events", ["tenant", "user_id", "timestamp", "cursor"])
    op.create_index("events_timestamp", "events", ["tenant", "timestamp", "item_id", "user_id"])


def _create_items() -> None:
    op.create_table(
        "items",
        _tenant(),
        _key("item_id"),
        _column("version", sa.BigInteger()),
        _column("fields", sa.Text()),
        _column("is_hidden", sa.Boolean()),
        _column("is_in_stock", sa.Boolean()),
        _optional("expires_at", sa.Double()),
        _optional("embedding", sa.LargeBinary()),
        _optional("encoder", sa.String(256)),
        _column("created_at", sa.Double()),
    )
    op.create_index("items_version", "items", ["tenant", "version"], unique=True)
    op.create_index("items_created", "items", ["tenant", "created_at"])


def _create_answers() -> None:
    op.create_table(
        "answers",
        _tenant(),
        _key("recommendation_id"),
        _optional("user_id", sa.String(256)),
        _column("item_ids", sa.Text()),
        _column("model_version", sa.Integer()),
        _column("scorer", sa.String(64)),
        _optional("fallback", sa.Text()),
        _optional("experiment", sa.String(64)),
        _optional("experiment_group", sa.String(64)),
        _column("created_at", sa.Double()),
    )
    op.create_index("answers_user", "answers", ["tenant", "user_id"])
    op.create_index("answers_experiment", "answers", ["tenant", "experiment"])
    op.create_index("answers_created", "answers", ["tenant", "created_at"])
    op.create_table(
        "feedback",
        _tenant(),
        _key("recommendation_id"),
        _key("item_id"),
        _key("kind", 64),
        _optional("user_id", sa.String(256)),
        _column("timestamp", sa.Double()),
    )
    op.create_index("feedback_user", "feedback", ["tenant", "user_id"])
    op.create_index("feedback_timestamp", "feedback", ["tenant", "timestamp"])


def _create_settings() -> None:
    op.create_table("scenarios", _tenant(), _key("name", 64), _column("settings", sa.Text()))
    op.create_table(
        "experiments",
        _tenant(),
        _key("name", 64),
        _column("groups", sa.Text()),
        _column("is_running", sa.Boolean()),
        _column("created_at", sa.Double()),
    )
    op.create_table(
        "model_versions",
        _tenant(),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        _column("run", sa.Text()),
        _column("published_at", sa.Double()),
        _optional("withdrawn_at", sa.Double()),
    )


def _create_keys() -> None:
    op.create_table(
        "api_keys",
        _tenant(),
        _key("key_id", 64),
        _column("digest", sa.String(64)),
        _column("scopes", sa.Text()),
        _column("created_at", sa.Double()),
        _optional("revoked_at", sa.Double()),
    )
    op.create_index("api_keys_digest", "api_keys", ["digest"], unique=True)
