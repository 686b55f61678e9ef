"""Bodies of answers, each with an example: what the description of the routes shows, and what answers are held to."""

from typing import Any

from pydantic import BaseModel, ConfigDict


def _shown(**body: Any) -> ConfigDict:
    """Closed to further keys, with an example."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [body]})


ITEM = {"item_id": "B00006L9LC", "title": "Hand Cream", "score": 2.4, "is_cold": False}
LIST = {"recommendation_id": "5f0c1d0b0e7a4a3f9c55c3ab01dd2f6e", "model_version": 3, "fallback": None, "items": [ITEM]}
REASONED = ITEM | {"reason": "its text is like that of “Lip Balm”", "contributions": {"text": 1.7, "popularity": 0.7}}
VERSION = {"version": 3, "run": "2026-11-29", "published_at": 1764396000.0, "withdrawn_at": None}


class ListedItem(BaseModel):
    """One item of a list."""

    model_config = _shown(**ITEM)

    item_id: str
    title: str | None
    score: float
    is_cold: bool


class RecommendedItem(ListedItem):
    """One item of a recommendation, with its reason where that was asked for."""

    model_config = _shown(**REASONED)

    reason: str | None = None
    contributions: dict[str, float] | None = None


class Recommendations(BaseModel):
    """Recommended items."""

    model_config = _shown(
        **LIST | {"items": [REASONED]}, scorer="fusion", llm="not asked", experiment_group=None, next_page="eNqrVs…"
    )

    recommendation_id: str
    model_version: int
    scorer: str
    fallback: str | None
    llm: str
    experiment_group: str | None = None
    items: list[RecommendedItem]
    next_page: str | None


class Listed(BaseModel):
    """A list of items that is nobody's in particular."""

    model_config = _shown(**LIST, scorer="popular")

    recommendation_id: str
    model_version: int
    scorer: str
    fallback: str | None
    items: list[ListedItem]


class Ranking(Listed):
    """Given items, best first."""

    model_config = _shown(**LIST, scorer="fusion", left_out=["gone"])

    left_out: list[str]


class Audience(BaseModel):
    """A user to whom an item would go."""

    model_config = _shown(user_id="A1YJEY40YUW4SE", score=-6.1)

    user_id: str
    score: float


class Audiences(BaseModel):
    """Users to whom an item would go, likeliest first."""

    model_config = _shown(
        **{name: value for name, value in LIST.items() if name != "items"}, scorer="joint",
        users=[{"user_id": "A1YJEY40YUW4SE", "score": -6.1}],
    )  # fmt: skip

    recommendation_id: str
    model_version: int
    scorer: str
    fallback: str | None
    users: list[Audience]


class Received(BaseModel):
    """How many were sent, and how many of them were new."""

    model_config = _shown(received=2, new=1)

    received: int
    new: int


class ItemsReceived(BaseModel):
    """How many items were sent, and the catalogue's version with them."""

    model_config = _shown(received=1, version=12)

    received: int
    version: int


class ItemChanged(BaseModel):
    """The item, the catalogue's version with its change, and whether the run or the store has the item."""

    model_config = _shown(item_id="B00006L9LC", version=13, is_known=True)

    item_id: str
    version: int
    is_known: bool


class ItemShown(BaseModel):
    """What is known of an item."""

    model_config = _shown(
        item_id="B00006L9LC", fields={"title": "Hand Cream", "price": 9.5}, is_hidden=False, is_in_stock=True,
        expires_at=None, is_recommendable=True,
    )  # fmt: skip

    item_id: str
    fields: dict[str, Any]
    is_hidden: bool
    is_in_stock: bool
    expires_at: float | None
    is_recommendable: bool


class UserNamed(BaseModel):
    """The user."""

    model_config = _shown(user_id="A1YJEY40YUW4SE")

    user_id: str


class UserShown(BaseModel):
    """Everything that is stored about a user, oldest first, and the run's history of the user."""

    model_config = _shown(
        user_id="A1YJEY40YUW4SE",
        fields={"country": "DE"},
        events=[],
        answers=[],
        feedback=[],
        trained_on=["B00006L9LC"],
    )

    user_id: str
    fields: dict[str, Any] | None
    events: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    feedback: list[dict[str, Any]]
    trained_on: list[str]


class Erased(BaseModel):
    """How many rows of each kind were erased."""

    model_config = _shown(erased={"users": 1, "events": 7, "answers": 3, "feedback": 0})

    erased: dict[str, int]


class Imported(BaseModel):
    """How many lines of each kind were read."""

    model_config = _shown(read={"item": 1, "event": 7})

    read: dict[str, int]


class Named(BaseModel):
    """The name of what was set or deleted."""

    model_config = _shown(name="home")

    name: str


class Scenarios(BaseModel):
    """The settings of every scenario, by name."""

    model_config = _shown(scenarios={"home": {"k": 5, "diversity": 0.2}})

    scenarios: dict[str, dict[str, Any]]


class Difference(BaseModel):
    """A rate less the first group's, with its interval where there are users enough."""

    model_config = _shown(value=0.012, interval=[0.002, 0.022])

    value: float
    interval: tuple[float, float] | None


class GroupShown(BaseModel):
    """A group of an experiment."""

    model_config = _shown(
        num_users=812, num_answers=2_310, rates={"click_rate": 0.061, "conversion_rate": 0.004},
        differences={"click_rate": {"value": 0.012, "interval": [0.002, 0.022]}, "conversion_rate": None},
    )  # fmt: skip

    num_users: int
    num_answers: int
    rates: dict[str, float | None]
    differences: dict[str, Difference | None]


class ExperimentShown(BaseModel):
    """Rates of an experiment's groups, and their differences to the first."""

    model_config = _shown(
        name="diverse", groups={"now": {"num_users": 0, "num_answers": 0, "rates": {}, "differences": {}}},
        confidence=0.95, note="An interval holds for one look, at a time that was fixed before the experiment began.",
    )  # fmt: skip

    name: str
    groups: dict[str, GroupShown]
    confidence: float
    note: str


class Version(BaseModel):
    """A model version; the run is its folder's name."""

    model_config = _shown(**VERSION)

    version: int
    run: str
    published_at: float
    withdrawn_at: float | None


class Published(Version):
    """A model version that was published, with the share of first items that it has in common with the one before."""

    model_config = _shown(**VERSION, overlap_at_10=0.83)

    overlap_at_10: float | None


class Versions(BaseModel):
    """The version that this worker has loaded, and all that were published, oldest first."""

    model_config = _shown(loaded=3, versions=[VERSION])

    loaded: int
    versions: list[Version]


class Refreshes(BaseModel):
    """How far each refresh is, and how it ended."""

    model_config = _shown(
        refreshes=[{"state": "training", "run": "2026-11-30", "from_run": "/runs/2026-11-29", "from_version": 3}]
    )

    refreshes: list[dict[str, Any]]


class KeyMade(BaseModel):
    """A new API key: the only time that its text can be read."""

    model_config = _shown(key="allrec_0123456789abcdef_…")

    key: str


class KeyShown(BaseModel):
    """An API key, without its text."""

    model_config = _shown(key_id="0123456789abcdef", scopes=["read"], created_at=1764396000.0, revoked_at=None)

    key_id: str
    scopes: list[str]
    created_at: float
    revoked_at: float | None


class KeysShown(BaseModel):
    """A tenant's API keys."""

    model_config = _shown(
        keys=[{"key_id": "0123456789abcdef", "scopes": ["read"], "created_at": 1764396000.0, "revoked_at": None}]
    )

    keys: list[KeyShown]


class KeyNamed(BaseModel):
    """The id of an API key."""

    model_config = _shown(key_id="0123456789abcdef")

    key_id: str


class Ready(BaseModel):
    """That the process answers, and how its language model is."""

    model_config = _shown(status="ready", language_model="none")

    status: str
    language_model: str


class Problem(BaseModel):
    """A problem document, RFC 9457."""

    model_config = _shown(
        type="about:blank", title="Not found", status=404, detail="unknown scenario 'home'.",
        request_id="0123456789abcdef", errors=[],
    )  # fmt: skip

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] = []


PROBLEM: dict[str, Any] = {"model": Problem}
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 404, 413, 422, 429, 503), PROBLEM)
"""What every route may refuse a request with."""
