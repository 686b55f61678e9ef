"""Bodies of requests, with limits on lists and texts, and an example of each."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from allrec.errors import InputError
from allrec.serving.expressions import LONGEST

STORABLE = r"^[^\x00]+$"
"""What PostgreSQL's text can hold."""
_TEXT: dict[str, Any] = {"min_length": 1, "max_length": 256, "pattern": STORABLE}
Id = Annotated[str, Field(**_TEXT, examples=["B00006L9LC"])]
UserId = Annotated[str, Field(**_TEXT, examples=["A1YJEY40YUW4SE"])]
RecommendationId = Annotated[str, Field(**_TEXT, examples=["5f0c1d0b0e7a4a3f9c55c3ab01dd2f6e"])]
KeyId = Annotated[str, Field(max_length=64, pattern=STORABLE, examples=["0123456789abcdef"])]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$", examples=["home"])]
Ids = Annotated[list[Id], Field(max_length=1_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Time = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e11, examples=[1764396000.0])]
FIELD_BYTES = 20_000
"""Of an item's or a user's fields as JSON."""


FILTER, BOOST = 'category == "Skin Care"', "is_new ? 1.2 : 1.0"
ITEM, USER, ANSWER = "B00006L9LC", "A1YJEY40YUW4SE", "5f0c1d0b0e7a4a3f9c55c3ab01dd2f6e"
EVENT = {"event_id": "e-1", "user_id": USER, "item_id": ITEM, "kind": "purchase", "timestamp": 1764396000.0}
CLICK = {"recommendation_id": ANSWER, "item_id": ITEM, "kind": "click", "timestamp": 1764396060.0}
CREAM = {"title": "Hand Cream", "description": "For dry hands.", "category": "Skin Care", "price": 9.5}


def _sent(*bodies: dict[str, Any]) -> ConfigDict:
    """As ``Body``, with examples."""
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [*bodies]})


class Body(BaseModel):
    """Base of all bodies of requests: closed to unknown keys, and a number is not taken for a truth or a text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Settings(Body):
    """What scenarios hold, and requests may say themselves."""

    model_config = _sent({"k": 5, "filter": FILTER, "diversity": 0.2})

    k: int = Field(10, ge=1, le=100, description="How many items.")
    filter: str | None = Field(
        None, max_length=LONGEST, description="CEL over item fields and the user.", examples=[FILTER]
    )
    boost: str | None = Field(None, max_length=LONGEST, description="CEL; multiplies an item's odds.", examples=[BOOST])
    diversity: float = Field(0.0, ge=0, le=1, description="0 orders by score, 1 by dissimilarity.")
    with_history: bool = Field(False, description="Whether items had before may come again.")
    with_reason: bool = Field(False, description="Whether each item says why it is there.")
    budget_ms: int = Field(
        0, ge=0, le=10_000, description="What the answer may take; the language model has a part within it."
    )


def settings_of(name: str, settings: Any) -> Settings:
    """A scenario's settings.

    Raises:
        InputError: they are none.
    """
    try:
        return Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"scenario {name!r} has settings that cannot be used: {place}: {first['msg']}. Set it anew."
        ) from None


class Recommend(Settings):
    """A request for recommendations."""

    model_config = _sent(
        {"user_id": USER, "k": 5, "with_reason": True},
        {"history": [ITEM], "exclude": [ITEM], "boost": BOOST},
        {"query": "a light cream for dry hands", "filter": FILTER},
        {"user_id": USER, "scenario": "home"},
        {"user_id": USER, "experiment": "home"},
    )

    user_id: UserId | None = None
    history: Ids | None = Field(None, description="Item ids, oldest first; behind the user's own where both are given.")
    item_id: Id | None = Field(None, description="What the user looks at: for the fallback to similar items.")
    query: str | None = Field(None, min_length=1, max_length=2_000, examples=["a light cream for dry hands"])
    exclude: Ids = Field([], description="Item ids that are left out.")
    scenario: Name | None = Field(None, description="Named settings; what the request says itself comes before them.")
    experiment: Name | None = Field(None, description="Takes the scenario of the user's group.")
    page: str | None = Field(None, max_length=20_000, description="next_page of an earlier answer, and nothing else.")

    @model_validator(mode="after")
    def _has_a_subject(self) -> "Recommend":
        if self.page is not None and self.model_fields_set - {"page"}:
            raise ValueError("page stands alone: it holds the rest of the request")
        if self.experiment is not None and self.user_id is None:
            raise ValueError("an experiment splits users: give user_id")
        return self


class Rank(Body):
    """A given list to be ranked."""

    model_config = _sent({"items": [ITEM, "gone"], "user_id": USER})

    items: Ids = Field(min_length=1)
    user_id: UserId | None = None
    history: Ids | None = None


class Similar(Body):
    """Settings of similar items."""

    model_config = _sent({"k": 5})

    k: int = Field(10, ge=1, le=100)
    filter: str | None = Field(None, max_length=LONGEST)
    exclude: Ids = []


class EventBody(Body):
    """Something that a user did with an item."""

    event_id: Id = Field(description="Sent again, the same event counts once.", examples=["e-1"])
    user_id: UserId
    item_id: Id
    kind: Name = Field(description="view, cart, purchase, rating or a kind of one's own.", examples=["purchase"])
    timestamp: Time
    value: Number | None = None
    recommendation_id: RecommendationId | None = None


class Events(Body):
    """Events to be stored."""

    model_config = _sent({"events": [EVENT]})

    events: list[EventBody] = Field(min_length=1, max_length=5_000)


class Availability(Body):
    """What is to change; what is left out stays."""

    model_config = _sent({"is_in_stock": True, "expires_at": 4102444800.0})

    is_hidden: bool | None = None
    is_in_stock: bool | None = None
    expires_at: Time | None = None
    never_expires: bool = False


class ItemBody(Body):
    """An item that is added, or fields of one that is there."""

    item_id: Id
    fields: dict[str, Any] = Field(examples=[{"title": "Hand Cream", "category": "Skin Care", "price": 9.5}])


class ItemBodies(Body):
    """Items to be stored."""

    model_config = _sent({"items": [{"item_id": ITEM, "fields": CREAM}]})

    items: list[ItemBody] = Field(min_length=1, max_length=500)


class FeedbackEntry(Body):
    """An impression or a click."""

    recommendation_id: RecommendationId
    item_id: Id
    kind: str = Field(pattern="^(impression|click)$", examples=["click"])
    timestamp: Time
    user_id: UserId | None = None


class FeedbackBody(Body):
    """Impressions and clicks to be stored."""

    model_config = _sent({"feedback": [CLICK]})

    feedback: list[FeedbackEntry] = Field(min_length=1, max_length=5_000)


class Fields(Body):
    """Fields of a user."""

    model_config = _sent({"fields": {"country": "DE"}})

    fields: dict[str, Any] = Field(examples=[{"country": "DE"}])


_NAMED: dict[str, Any] = {"propertyNames": {"pattern": "^[A-Za-z0-9._-]+$", "minLength": 1, "maxLength": 64}}
"""What the keys of an object may be, which is not told by itself."""


class Group(Body):
    """A group of an experiment."""

    share: float = Field(gt=0, le=1_000_000, allow_inf_nan=False)
    scenario: Name | None = None


class ExperimentBody(Body):
    """An experiment."""

    model_config = _sent({"groups": {"now": {"share": 1}, "diverse": {"share": 1, "scenario": "home"}}})

    groups: dict[Name, Group] = Field(min_length=2, max_length=20, json_schema_extra=_NAMED)
    is_running: bool = True


class Publish(Body):
    """A run to serve: a folder beside the one that the service was started with."""

    model_config = _sent({"run": "2026-11-29"})

    run: str = Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["2026-11-29"])


class KeyBody(Body):
    """An API key to be made."""

    model_config = _sent({"scopes": ["read", "write"]})

    scopes: list[Literal["read", "write", "admin"]] = Field(min_length=1, max_length=3, examples=[["read", "write"]])
