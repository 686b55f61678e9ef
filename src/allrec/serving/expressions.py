"""Filters and boosts: CEL expressions over an item's fields and the user, evaluated over the whole catalogue.

An expression is compiled once and bounded: in length, in nesting (by the parser, 32 levels), and in steps, as the
environment has no macros that loop and each operator therefore runs once an item.

Example:
    >>> from allrec.serving.expressions import Expression
    >>> cheap = Expression('category == "Skin Care" && price < 20.0', ["category", "price"])
    >>> cheap.value({"category": "Skin Care", "price": 12.5}, {})
    True
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
from cel_expr_python import cel
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from allrec.errors import InputError, nearest

LONGEST = 1_000
"""Characters of an expression."""
COMPILED = 1_024
"""Expressions that are kept compiled."""
CACHED = 256
"""Masks and factors over the catalogue that are kept."""
LARGEST_BOOST = 100.0
USER = "user"
MACROS = ("all", "exists", "exists_one", "map", "filter")
"""Macros that loop, which the environment lacks."""
LOOPS = re.compile(rf"\.\s*({'|'.join(MACROS)})\s*\(")
WITHOUT_LOOPS = f"name: items\nstdlib: {{exclude_macros: [{', '.join(MACROS)}]}}"
IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")
RESERVED = {"user", "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"}
RESERVED |= {"import", "let", "loop", "package", "namespace", "return", "var", "void", "while"}
UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")

Kind = Literal["filter", "boost"]


class Expression:
    """A compiled expression.

    Args:
        text: in CEL.
        fields: names of item fields that it may use, beside ``user``.

    Raises:
        InputError: it is too long or too deep, loops, does not parse, or uses an unknown field.
    """

    def __init__(self, text: str, fields: Sequence[str]) -> None:
        if len(text) > LONGEST:
            raise InputError(f"got an expression of {len(text)} characters, expected at most {LONGEST}. Shorten it.")
        self.text, self.asks_user = text, re.search(r"\buser\b", text) is not None
        self._env = _environment(tuple(sorted({*fields})))
        try:
            self._compiled = self._env.compile(text)
        except RuntimeError as error:
            raise InputError(_reason(text, str(error), fields)) from None

    def value(self, fields: Mapping[str, Any], user: Mapping[str, Any]) -> Any:
        """What it gives for an item; None where the item lacks a field or has one of another type.

        Raises:
            InputError: it takes more steps than CEL allows.
        """
        try:
            found = self._compiled.eval(self._env.Activation({**fields, USER: dict(user)}))
        except RuntimeError as error:
            raise InputError(f"the expression cannot be evaluated: {error}.") from None
        return None if found.type() in (cel.Type.ERROR, cel.Type.UNKNOWN) else found.value()


@lru_cache(maxsize=64)
def _environment(fields: tuple[str, ...]) -> Any:
    config = cel.NewEnvConfigFromYaml(WITHOUT_LOOPS)
    return cel.NewEnv(config=config, variables=dict.fromkeys(fields, cel.Type.DYN) | {USER: cel.Type.DYN})


def _reason(text: str, message: str, fields: Sequence[str]) -> str:
    if (loop := LOOPS.search(text)) is not None:
        return f"got the macro {loop[1]!r}, expected an expression that does not loop. Use 'in' or size()."
    if (unknown := UNDECLARED.search(message)) is not None:
        known = nearest(unknown[1], [*fields, USER])
        return f"unknown field {unknown[1]!r}: {known}. Fields come with items: POST /v1/items."
    if "recursion" in message:
        return "got an expression nested deeper than 32 levels, expected fewer. Use 'in [...]' in place of long chains."
    first = message.partition("\n")[0].removeprefix("INVALID_ARGUMENT: ERROR: <input>:")
    return f"the expression does not compile: {first}. Expected CEL, such as: price < 20.0"


class ExpressionError(InputError):
    """A filter or a boost at fault.

    Args:
        kind: which of the two.
        detail: what is wrong.
    """

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Values(NamedTuple):
    """An expression over a catalogue.

    Attributes:
        values: of every item; a mask for a filter, a factor for a boost.
        version: of the catalogue.
    """

    values: ndarray
    version: int


class Expressions:
    """Compiled expressions and what they give over one catalogue; safe to use from several threads.

    Args:
        fields: names that an expression may use.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self.asked = frozenset(fields)
        self.fields = sorted(name for name in {*fields} if IDENTIFIER.fullmatch(name) and name not in RESERVED)
        self._compiled: OrderedDict[str, Expression] = OrderedDict()
        self._values: OrderedDict[tuple[Kind, str, str], Values] = OrderedDict()
        self._lock = Lock()

    def compiled(self, kind: Kind, text: str) -> Expression:
        """The expression, compiled at its first use.

        Raises:
            ExpressionError: see ``Expression``.
        """
        with self._lock:
            if (known := self._compiled.get(text)) is not None:
                self._compiled.move_to_end(text)
                return known
        try:
            made = Expression(text, self.fields)
        except InputError as error:
            raise ExpressionError(kind, str(error)) from None
        with self._lock:
            self._compiled[text] = made
            while len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return made

    def mask(self, text: str, items: "Items", user: Mapping[str, Any]) -> Bool[ndarray, "items"]:
        """Which items a filter keeps; one that lacks a field of it is left out.

        Raises:
            InputError: see ``Expression``; or it gives something else than true or false.
        """
        return self._over("filter", text, items, user)

    def factor(self, text: str, items: "Items", user: Mapping[str, Any]) -> Float[ndarray, "items"]:
        """What a boost multiplies the odds of each item by; 1 for one that lacks a field of it.

        Raises:
            InputError: see ``Expression``; or it gives something else than a number from 0.01 to 100.
        """
        return self._over("boost", text, items, user)

    def _over(self, kind: Kind, text: str, items: "Items", user: Mapping[str, Any]) -> ndarray:
        expression = self.compiled(kind, text)
        key = (kind, text, json.dumps(dict(user), sort_keys=True, default=str) if expression.asks_user else "")
        with self._lock:
            known = self._values.get(key)
        if known is not None and known.version == items.version:
            return known.values
        values = _start(kind, items.num_items, known)
        places = np.arange(items.num_items) if known is None else items.changed_since(known.version)
        for place in places.tolist():
            try:
                values[place] = _checked(kind, text, expression.value(items.fields[place], user))
            except InputError as error:
                raise ExpressionError(kind, str(error)) from None
        with self._lock:
            self._values[key] = Values(values, items.version)
            self._values.move_to_end(key)
            while len(self._values) > CACHED:
                self._values.popitem(last=False)
        return values


class Items(NamedTuple):
    """What expressions see of a catalogue.

    Attributes:
        fields: of every item.
        versions: of the catalogue, when each item was last changed.
        version: of the catalogue; it grows with each change.
    """

    fields: Sequence[Mapping[str, Any]]
    versions: Int[ndarray, "items"]
    version: int

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.fields)

    def changed_since(self, version: int) -> Int[ndarray, "changed"]:
        """Positions of items that were changed after a version."""
        return np.flatnonzero(self.versions > version)


def _start(kind: Kind, num_items: int, known: Values | None) -> ndarray:
    values = np.zeros(num_items, bool) if kind == "filter" else np.ones(num_items, np.float32)
    if known is not None:
        values[: len(known.values)] = known.values
    return values


def _checked(kind: Kind, text: str, value: Any) -> Any:
    if kind == "filter":
        if value is not None and not isinstance(value, bool):
            raise InputError(f"the filter {text!r} gave {value!r}, expected true or false. Compare it with something.")
        return bool(value)
    if value is None:
        return 1.0
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 1 / LARGEST_BOOST <= value <= LARGEST_BOOST
    ):
        raise InputError(f"the boost {text!r} gave {value!r}, expected a number from 0.01 to 100.")
    return value
