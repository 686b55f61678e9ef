"""User and item ids are strings, kept exactly; a whole number of any type becomes its digits."""

import csv
import json
import math
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path

import polars as pl

from allrec.data.sources.diagnosis import place_of
from allrec.data.sources.files import ROW
from allrec.errors import InputError, notice

Id = str | int
"""What a caller may pass as an id; a number means its digits."""
MAX_ID_CHARS = 1_000
WHOLE_FLOAT = r"^(-?[1-9][0-9]*|0)\.0+$"
FLOAT_DIGITS = {pl.Float16: 11, pl.Float32: 24, pl.Float64: 53}
"""Binary digits: beyond them a float no longer holds every whole number, so that two ids may have become one."""
NULL_WORDS = ("nan", "null", "none", "n/a", "na", "<na>", "nil", "undefined")


def as_text(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """A column of ids as texts without white space around them; ``21.0`` is ``21``, and NaN or infinity is None.

    Args:
        column: the ids.
        kind: their type.
    """
    if kind.is_float():
        # The sum makes 0 of -0.
        column = pl.when(column.is_finite()).then(column + 0.0)
    text = column.cast(pl.String).str.strip_chars()
    return text.str.replace(WHOLE_FLOAT, "$1")


def refuse_no_ids(table: pl.LazyFrame, parts: Iterable[str], path: Path) -> None:
    """Refuses columns of ids that hold objects or lists, or whole floats too large to be exact.

    Args:
        table: a table with columns ``parts``.
        parts: the columns of ids.
        path: the table, for messages.

    Raises:
        InputError: the column, a value, and how to write ids.
    """
    schema = table.collect_schema()
    for part in parts:
        kind, column = schema[part], pl.col(part)
        if kind.is_nested() or kind in (pl.Binary, pl.Object):
            raise InputError(f"{path}: the column of {part} holds values of type {kind}, expected texts or whole "
                             f"numbers. Name another: --column {part}=COLUMN.")  # fmt: skip
        if kind.is_float():
            limit = 2.0 ** next(digits for known, digits in FLOAT_DIGITS.items() if kind == known)
            worst = table.filter(column.is_finite() & (column.abs() > limit)).select(column).head(1).collect()
            if len(worst):
                raise InputError(
                    f"{path}: {part} {worst.item():.0f} is a float beyond {limit:.0f}, where ids lose digits. "
                    "Write the ids as texts or whole numbers."
                )


def refuse_objects(texts: pl.LazyFrame, parts: Iterable[str], path: Path) -> None:
    """Refuses ids of a JSON table that are objects or lists, which come as JSON.

    Raises:
        InputError: the row, what it holds, and what is expected.
    """
    for part in parts:
        looks = texts.filter(pl.col(part).str.contains(r"^[\[{]")).select(ROW, part).collect()
        for row, text in looks.iter_rows():
            if is_json_object(text):
                raise InputError(
                    f"{path}, {place_of(path, row)}: {part} is {text}, expected a text or a whole number. Write the "
                    f"id itself."
                )


def is_json_object(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def note_null_words(texts: pl.LazyFrame, part: str, place: str) -> None:
    """Warns of ids that look like a program's word for a missing value."""
    counts = texts.filter(pl.col(part).str.to_lowercase().is_in(NULL_WORDS)).group_by(part).agg(pl.len()).sort(part)
    for word, number in counts.collect(engine="streaming").iter_rows():
        rows = "row has" if number == 1 else "rows have"
        notice(
            f"{place}: {number:,} {rows} the {part} {word!r}, which is kept as an id. Where it means "
            f"a missing one, say so: --set 'missing_ids=[\"{word}\"]'."
        )


def id_of(value: object, kind: str) -> str:
    """An id that a caller gives as its text: ``21``, ``21.0`` and ``"21"`` are one.

    Args:
        value: a text or a whole number, also NumPy's.
        kind: "user" or "item", for messages.

    Raises:
        InputError: something else, such as None, nan, an object or a list.
    """
    if isinstance(value, str):
        text = value.strip()
        whole, point, zeros = text.partition(".")
        is_float = point and zeros and not zeros.strip("0") and is_whole(whole)
        return whole if is_float else text
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(float(value))) if float(value).is_integer() else str(float(value))
    raise InputError(f"got {value!r} as the id of {article(kind)} {kind}, expected a text or a whole number.")


def article(word: str) -> str:
    """The indefinite article of a word by its first letter."""
    return "an" if word[0] in "aeio" else "a"


def is_whole(digits: str) -> bool:
    """Whether a text is a whole number as programs write one: no leading zero, no plus."""
    plain = digits.removeprefix("-")
    return plain.isascii() and plain.isdigit() and (digits == "0" or not plain.startswith("0"))


def ids_of(values: Iterable[object], kind: str, name: str) -> list[str]:
    """Several ids; a bare string is refused, which would be read letter by letter.

    Args:
        values: ids, see ``id_of``.
        kind: "user" or "item".
        name: what the list is, for messages, such as "history".

    Raises:
        InputError: a bare string, or something that is not an id.
    """
    if isinstance(values, str | bytes):
        raise InputError(f"got the {name} {values!r}, expected a list of ids. Write [{values!r}].")
    return [id_of(value, kind) for value in values]


def split_ids(text: str) -> list[str]:
    """Ids between commas, as on the command line; an id that holds a comma is quoted, as in CSV.

    Example:
        >>> split_ids('SKU1, "a,b"')
        ['SKU1', 'a,b']

    Raises:
        InputError: a quote that is never closed.
    """
    try:
        rows = list(csv.reader([text.strip()], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise InputError(f"cannot split the ids {text!r}: {error}. Quote as in CSV: 'a,\"b,c\"'.") from None
    return [part.strip() for row in rows for part in row if part.strip()]
