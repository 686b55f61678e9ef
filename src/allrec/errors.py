"""What every module may import: the base class of configurations, the error a user can mend, a data set's wording."""

import errno
import warnings
from difflib import get_close_matches
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk is full, a quota is used up, or a file may not grow."""


class InputError(ValueError):
    """Something the user can mend: what was got, what was expected, what to do. The program exits with code 2."""


class InputWarning(UserWarning):
    """Something about the user's data that is worth knowing and stops nothing."""


def notice(text: str) -> None:
    """Says something about the user's data: a warning in Python, a line on standard error in the program."""
    warnings.warn(text, InputWarning, stacklevel=2)


def nearest(word: str, known: list[str]) -> str:
    """A half sentence that names the known words, the one nearest to ``word`` first.

    Example:
        >>> nearest("sead", ["seed", "epochs"])
        "did you mean 'seed'? known: epochs, seed"
    """
    matches = get_close_matches(word, known, n=1, cutoff=0.5)
    listing = "known: " + ", ".join(sorted(known)) if known else "there is none"
    return f"did you mean {matches[0]!r}? {listing}" if matches else listing


class Config(BaseModel):
    """Base of every configuration class: typed, frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(_sentence(type(self).__name__, error)) from None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    hint = nearest(str(key), list(cls.model_fields))
                    raise InputError(f"unknown key {key!r} in {cls.__name__}: {hint}")
        return values

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, which are not validated again; ``__`` leads into a table inside this one.

        Example:
            >>> Wording().changed(verb="read").verb
            'read'

        Raises:
            AttributeError: there is no such key.
        """
        copy = self
        for path, value in changes.items():
            key, _, rest = path.partition("__")
            current = getattr(copy, key)
            copy = copy.model_copy(update={key: current.changed(**{rest: value}) if rest else value})
        return copy

    @model_validator(mode="before")
    @classmethod
    def _take_none_for_a_word(cls, values: Any) -> Any:
        """``--set refit=none`` gives None, which is the word where a key has it as one of its values."""
        if not isinstance(values, dict):
            return values
        has_word = {key for key, field in cls.model_fields.items() if "none" in get_args(field.annotation)}
        return {key: "none" if value is None and key in has_word else value for key, value in values.items()}


def _sentence(name: str, error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first.get("ctx", {}).get("error"), InputError):
        # A table inside this one has said already what it got.
        return f"{name}.{place}: {message}" if place else message
    return f"{name}{'.' + place if place else ''}: {message} (got {first['input']!r})" if place else message


class Wording(Config):
    """How the prompt speaks of a data set's items: "this user has bought ..., recommend one item to buy"."""

    noun: str = Field("item", min_length=1, description="What an item is called.")
    verb: str = Field("buy", min_length=1, description="What a user does with an item.")
    past: str = Field("bought", min_length=1, description="The verb's past participle.")
