"""The options of ``prepare``."""

from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from allrec.errors import Config, Wording


class PrepareConfig(Config):
    """How a source becomes a data set."""

    name: str | None = Field(None, description="The data set's name; the source's file or folder name when not given.")
    format: str | None = Field(None, description="The source's format; guessed from what is there when not given.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Part (user_id, item_id, timestamp, rating, position) -> column of the interactions, "
        "where the name is not recognised.",
    )
    item_columns: dict[str, str] = Field(
        default_factory=dict,
        description="Part (item_id, title, description) -> column of the items, where the name is not recognised.",
    )
    names: tuple[str, ...] | None = Field(
        None, min_length=2, description="The columns of interactions in a delimited file without a header."
    )
    item_names: tuple[str, ...] | None = Field(
        None, min_length=1, description="The columns of items in a delimited file without a header."
    )
    separator: str | None = Field(
        None, min_length=1, max_length=1, description="What separates fields; by the file where not given."
    )
    time_format: str | None = Field(
        None,
        description="How times are written: a unit (seconds, milliseconds, microseconds, nanoseconds), a form such as "
        "day-first, or a strptime pattern; chosen from the whole column where not given.",
    )
    missing_ids: tuple[str, ...] = Field((), description="Texts that mean a missing id, such as nan.")
    max_rejected: float = Field(
        0.05, ge=0, le=1, description="The share of the rows that may be unreadable; above it the source is refused."
    )
    text_columns: tuple[str, ...] = Field(
        ("title", "description"), min_length=1, description="Columns joined into the text that the encoder reads."
    )
    max_text_chars: int = Field(20_000, ge=1, description="Titles and texts are cut here, and counted (characters).")
    min_rating: float | None = Field(
        None,
        description="Interactions rated lower, or not at all, are rejected; one-pass keeps, but does not count them.",
    )
    count_filter: Literal["none", "k-core", "one-pass"] = Field(
        "none",
        description="k-core repeats until every user and item has its minimum; one-pass counts once and rejects once, "
        "as the public A-LLMRec code does.",
    )
    min_user_count: int = Field(5, ge=1, description="Fewest interactions of a user, where a count filter is set.")
    min_item_count: int = Field(5, ge=1, description="Fewest interactions of an item, where a count filter is set.")
    items: Literal["all", "interacted"] | None = Field(
        None,
        description="The catalogue: all items listed, or those of the interactions that are kept. "
        "When not given: all, or interacted where a count filter is set or the metadata is Amazon's.",
    )
    duplicate_items: Literal["refuse", "first"] = Field(
        "refuse", description="What to do where one item id has two texts: refuse the source, or take the first."
    )
    split: Literal["leave-last-out", "global-time"] = Field(
        "leave-last-out",
        description="Each user's last two interactions are valid and test targets, or those from two fixed times on.",
    )
    valid_from: float | None = Field(
        None, description="Global time: training ends here (UTC seconds, or an ISO date or time)."
    )
    test_from: float | None = Field(None, description="Global time: validation ends here (as valid_from).")
    wording: Wording | None = Field(None, description="How a prompt speaks of the items; by the source if not given.")
    seed: int = Field(0, ge=0, description="Fixes the stored candidate lists.")

    @field_validator("valid_from", "test_from", mode="before")
    @classmethod
    def _read_date(cls, value: object) -> object:
        if not isinstance(value, str) or value.replace(".", "", 1).isdigit():
            return value
        time = datetime.fromisoformat(value)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.split == "leave-last-out" and (self.valid_from, self.test_from) != (None, None):
            raise ValueError("valid_from and test_from are for split=global-time, and split is leave-last-out. Set it.")
        if self.split == "global-time":
            if self.valid_from is None or self.test_from is None:
                raise ValueError("split global-time needs valid_from and test_from (UTC seconds, or ISO dates).")
            if self.valid_from >= self.test_from:
                raise ValueError(
                    f"valid_from {self.valid_from} is not before test_from {self.test_from}; exchange them."
                )
        return self
