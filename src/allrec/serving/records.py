"""What the store keeps, as values, and what it refuses before a database would."""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from allrec.errors import InputError
from allrec.serving.schema import ID_LENGTH, NAME_LENGTH

TENANT = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{NAME_LENGTH - 1}}}")  # it names a folder, too
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL ends a text in C, a lone surrogate is no character
FEEDBACK_KINDS = ("impression", "click")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a user did with an item.

    Attributes:
        kind: ``view``, ``cart``, ``purchase``, ``rating`` or a kind of one's own.
        value: a rating, an amount; None where the kind has none.
        timestamp: seconds since 1970-01-01 UTC.
        recommendation_id: the answer that led to it, where one did.
    """

    event_id: str
    user_id: str
    item_id: str
    kind: str
    timestamp: float
    value: float | None = None
    recommendation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """An item that was added to the run's, or what the store knows beyond the run about one of its own.

    Attributes:
        fields: title, description, category, price, ...; empty where only the availability was set.
        expires_at: from then on it is unavailable, in seconds since 1970-01-01 UTC.
        embedding: float32 numbers of the text encoder, as bytes.
        encoder: the fingerprint of the encoder that made the embedding.
        created_at: when the store first had it; the store fills it in.
        version: grows with every change of any of the tenant's items; the store fills it in.
    """

    item_id: str
    fields: dict[str, Any] = field(default_factory=dict)
    is_hidden: bool = False
    is_in_stock: bool = True
    expires_at: float | None = None
    embedding: bytes | None = None
    encoder: str | None = None
    created_at: float | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A list of recommendations as it was given. ``fallback`` says why the scorer was not the first choice."""

    recommendation_id: str
    user_id: str | None
    item_ids: tuple[str, ...]
    model_version: int
    scorer: str
    created_at: float
    fallback: str | None = None
    experiment: str | None = None
    experiment_group: str | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """An impression of, or a click on, an item of an answer."""

    recommendation_id: str
    item_id: str
    kind: str
    timestamp: float
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """Groups of users that get different settings.

    Attributes:
        groups: name to ``{"share": part of the users, "scenario": name of the settings}``; shares are relative.
    """

    name: str
    groups: dict[str, dict[str, Any]]
    is_running: bool = True
    created_at: float | None = None

    def gives(self, scenario: str) -> bool:
        """Whether a group gets a scenario."""
        return any(group.get("scenario") == scenario for group in self.groups.values())


@dataclass(frozen=True, slots=True)
class Scenario:
    """Named settings of requests."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class User:
    """What is known of a user beside the events."""

    user_id: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Erasure:
    """A user who was erased, by ``digest_of`` the id."""

    user_digest: str
    erased_at: float


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A run that serves, or served. A withdrawn one was rolled back."""

    version: int
    run: str
    published_at: float
    withdrawn_at: float | None = None


def check_tenant(tenant: str) -> str:
    """Raises InputError unless a tenant's name is 1 to 64 letters, digits, points, dashes and underscores."""
    if not TENANT.fullmatch(tenant):
        raise InputError(
            f"got the tenant {tenant[:80]!r}, expected 1 to {NAME_LENGTH} letters, digits and . _ -, no point first."
        )
    return tenant


def check_text(value: str | None, what: str, *, length: int = ID_LENGTH, is_optional: bool = False) -> None:
    """Raises InputError for an id or a name that is empty, too long, or that PostgreSQL's text cannot hold."""
    if value is None and is_optional:
        return
    if not isinstance(value, str) or not 1 <= len(value) <= length:
        raise InputError(f"got {what} {str(value)[:80]!r}, expected a text of 1 to {length} characters.")
    if UNSTORABLE.search(value):
        raise InputError(f"got {what} {value[:80]!r}, expected characters that can be stored: no NUL, no surrogate.")


def check_number(value: float | None, what: str, *, is_optional: bool = False) -> None:
    """Raises InputError for a number that is not finite, or none where one is needed."""
    if value is None and is_optional:
        return
    try:
        is_finite = not isinstance(value, bool) and math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        is_finite = False
    if not is_finite:
        raise InputError(f"got {what} {value!r}, expected a finite number.")


def check_fields(value: Any, what: str) -> None:
    """Raises InputError for what is no JSON object, or holds what JSON cannot."""
    if not isinstance(value, dict):
        raise InputError(f"got {what} that are a {type(value).__name__}, expected an object.")
    check_json(value, what)


def check_flag(value: Any, what: str) -> None:
    """Raises InputError for what is neither true nor false."""
    if not isinstance(value, bool):
        raise InputError(f"got {what} {value!r}, expected true or false.")


def check_json(value: Any, what: str) -> None:
    """Raises InputError for what JSON cannot hold: NaN, infinity, lone surrogates, foreign objects, endless nesting."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"got {what}, expected texts, finite numbers, lists and objects of them: {error}.") from None
