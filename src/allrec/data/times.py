"""Reads a column of times in one form and one unit, chosen from the whole column and reported, never row by row."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from allrec.data.time_forms import FORMS, SECOND, UNITS, Form, in_range, nano_digits
from allrec.errors import InputError, nearest

COLUMN = "timestamp"
# Numbers beyond these are milliseconds, microseconds, nanoseconds: as seconds they would lie after the year 5000.
UNIT_BOUNDS = {"seconds": 1e11, "milliseconds": 1e14, "microseconds": 1e17, "nanoseconds": float("inf")}
# A number of another unit in the column would lie within fifty days of 1970, and in its own between 1990 and 2100.
RECENT_SECONDS = (631_152_000, 4_102_444_800)
DAY = 86_400
LEAST_READ = 0.5
STRFTIME = "%"
COMPACT_LENGTHS = (8, 14)


def _read_plain_iso(text: pl.Expr) -> pl.Expr:
    plain = text.str.strip_suffix("Z").str.replace("T", " ", literal=True)
    moment = plain.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    return in_range(moment.dt.timestamp("us"), 1_000)


# What most tables hold, read several times as fast as by the patterns of their general forms.
WHOLE_NUMBER = Form("number", "1600000000", lambda text: text.cast(pl.Int64, strict=False), is_number=True)
PLAIN_ISO = Form("iso", "2020-01-31T23:59:59Z", _read_plain_iso)


class Times(NamedTuple):
    """How a column of times is read.

    Attributes:
        nanoseconds: int64 since 1970, UTC; None where a value cannot be read.
        form: in words, such as "numbers in seconds since 1970".
    """

    nanoseconds: pl.Expr
    form: str


def read_times(raw: pl.LazyFrame, time_format: str | None, place: str) -> Times:
    """Chooses how the column ``timestamp`` is read.

    Args:
        raw: a frame with that column, of any type; read once or twice as a whole.
        time_format: a unit, the name of a form or a strptime pattern, by the user; chosen where None.
        place: the table, for messages.

    Raises:
        InputError: no form reads half of the values, two forms read them differently, or the option names none.
    """
    kind = raw.collect_schema()[COLUMN]
    if kind.is_temporal():
        return read_temporal(kind, place)
    if not (kind.is_numeric() or kind in (pl.String, pl.Null, pl.Categorical)):
        raise InputError(f"{place}: the time column holds values of type {kind}, expected times. {_name_another()}")
    column = pl.col(COLUMN)
    column = pl.when(column.is_finite()).then(column) if kind.is_float() else column
    text = column.cast(pl.String).str.strip_chars()
    text = pl.when(text.str.len_chars() > 0).then(text)
    texts = raw.select(text.alias(COLUMN))
    if time_format is not None and time_format not in UNITS:
        form = given_form(time_format)
    else:
        form = FORMS[0] if time_format else choose_form(texts, place)
    if not form.is_number:
        return Times(form.read(text), f"times as in {form.example}, UTC where no offset is given")
    if form is WHOLE_NUMBER:
        return read_numbers(texts, (form.read(text), pl.lit(0, pl.Int64)), form, time_format)
    if kind.is_integer() or kind == pl.Float64:
        return read_numbers(texts, number_parts(kind), form, time_format)
    return read_numbers(texts, text_parts(form.read(text)), form, time_format)


def read_temporal(kind: pl.DataType, place: str) -> Times:
    """Dates and times of a typed column."""
    if not isinstance(kind, pl.Datetime | pl.Date):
        raise InputError(f"{place}: the time column holds values of type {kind}, expected points in time. "
                         f"{_name_another()}")  # fmt: skip
    column = pl.col(COLUMN)
    if isinstance(kind, pl.Datetime) and kind.time_unit == "ns":
        return Times(in_range(column.dt.timestamp("ns"), 1), "dates and times")
    moment = column.cast(pl.Datetime("us")) if kind == pl.Date else column
    return Times(in_range(moment.dt.timestamp("us"), 1_000), "dates and times")


def _name_another() -> str:
    return "Name the right column: --column timestamp=COLUMN."


def given_form(time_format: str) -> Form:
    """The form that the option names.

    Raises:
        InputError: it is neither a unit nor a form nor a pattern.
    """
    if STRFTIME in time_format:
        zone = "UTC" if "%z" in time_format else None

        def read(text: pl.Expr) -> pl.Expr:
            moment = text.str.to_datetime(time_format, strict=False, time_unit="us", time_zone=zone)
            return in_range(moment.dt.timestamp("us"), 1_000)

        return Form(time_format, time_format, read)
    forms = {form.name: form for form in FORMS}
    if time_format not in forms:
        known = nearest(time_format, [*UNITS, *forms])
        raise InputError(f"unknown time_format {time_format!r}: {known}; or a pattern such as %d.%m.%Y.")
    return forms[time_format]


def choose_form(texts: pl.LazyFrame, place: str) -> Form:
    """The form that reads most of a column, all of which is looked at.

    Raises:
        InputError: none reads half of it, or two read it differently.
    """
    number, iso, compact = FORMS[:3]
    for form in (WHOLE_NUMBER, PLAIN_ISO, number):
        counts = count_read(texts, (form,))
        if counts[form.name] == counts["given"]:
            return compact if form.is_number and is_compact(texts, compact) else form
    counts = count_read(texts, (iso,))
    if counts[iso.name] == counts["given"]:
        return iso
    counts = count_read(texts, FORMS)
    best = max(FORMS, key=lambda form: counts[form.name])
    if best is number and counts[compact.name] == counts[number.name]:
        best = compact
    if counts[best.name] < LEAST_READ * counts["given"]:
        raise unreadable(texts, best, place)
    refuse_tie(texts, best, [form for form in FORMS if counts[form.name] == counts[best.name]], place)
    return best


def is_compact(texts: pl.LazyFrame, compact: Form) -> bool:
    """Whether every number of a column is a date in digits, such as 20200131."""
    length = pl.col(COLUMN).str.len_bytes()
    if not texts.select(length.is_in(COMPACT_LENGTHS).all() & length.is_not_null().any()).collect().item():
        return False
    counts = count_read(texts, (compact,))
    return counts[compact.name] == counts["given"]


def count_read(texts: pl.LazyFrame, forms: Sequence[Form]) -> dict[str, int]:
    """How many values each form reads, by its name, and how many are given."""
    text = pl.col(COLUMN)
    read = [form.read(text).is_not_null().sum().alias(form.name) for form in forms]
    row = texts.select(text.is_not_null().sum().alias("given"), *read).collect(engine="streaming").row(0, named=True)
    return {name: int(number) for name, number in row.items()}


def refuse_tie(texts: pl.LazyFrame, best: Form, equal: Sequence[Form], place: str) -> None:
    """Refuses a column that two forms of one group read equally well and differently.

    Raises:
        InputError: a value, and the option that names a form.
    """
    rivals = [form for form in equal if form.group and form.group == best.group and form is not best]
    for rival in rivals:
        mine, its = (as_number(form.read(pl.col(COLUMN)), form) for form in (best, rival))
        different = texts.filter(mine != its).head(1).collect()
        if len(different):
            raise InputError(
                f"{place}: times such as {different.item()!r} can be read in two ways ({best.name} as in "
                f"{best.example}, {rival.name} as in {rival.example}), and no value decides which. "
                f"Name the form: --time-format {best.name} or --time-format {rival.name}."
            )


def as_number(read: pl.Expr, form: Form) -> pl.Expr:
    """What a form reads, as a number that can be compared."""
    return read.cast(pl.Float64, strict=False) if form.is_number else read


def unreadable(texts: pl.LazyFrame, best: Form, place: str) -> InputError:
    """The error for a column that is in no known form."""
    example = texts.filter(pl.col(COLUMN).is_not_null() & best.read(pl.col(COLUMN)).is_null()).head(1).collect().item()
    accepted = "; ".join(form.example for form in FORMS)
    return InputError(
        f"{place}: times such as {example!r} are in no form that is known here, expected one of: {accepted}. Name "
        f"the form as a strptime pattern (--time-format '%d %b %y'), or the right column: --column timestamp=COLUMN."
    )


def number_parts(kind: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """Whole part (rounded down) and billionths of a column of numbers."""
    value = pl.col(COLUMN)
    if kind.is_integer():
        return value.cast(pl.Int64, strict=False), pl.lit(0, pl.Int64)
    finite = pl.when(value.is_finite()).then(value)
    return finite.floor().cast(pl.Int64, strict=False), ((finite - finite.floor()) * SECOND).round().cast(pl.Int64)


def text_parts(number: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Whole part (rounded down) and billionths of numbers as text, to the last digit."""
    is_exact = number.str.contains(r"^[+-]?\d+(\.\d*)?$")
    whole = number.str.extract(r"^([+-]?\d+)").cast(pl.Int64, strict=False)
    fraction = nano_digits(number.str.extract(r"\.(\d*)$"))
    is_below = number.str.starts_with("-") & (fraction > 0)
    value = number.cast(pl.Float64, strict=False)
    value = pl.when(value.is_finite()).then(value)
    rough = value.floor().cast(pl.Int64, strict=False)
    rest = ((value - value.floor()) * SECOND).round().cast(pl.Int64, strict=False)
    return (
        pl.when(is_exact).then(whole - is_below.cast(pl.Int64)).otherwise(rough),
        pl.when(is_exact).then(pl.when(is_below).then(SECOND - fraction).otherwise(fraction)).otherwise(rest),
    )


def read_numbers(texts: pl.LazyFrame, parts: tuple[pl.Expr, pl.Expr], form: Form, time_format: str | None) -> Times:
    """Numbers in the unit given, or in the one that half of the column and more is in.

    A number of another unit than the column's is not read. Nor is one that is below 0 by less than a day, such as the
    -1 that means a missing time, unless the unit was given.
    """
    whole, rest = parts
    is_given = time_format in UNITS
    name = str(time_format) if is_given else choose_unit(texts, form)
    unit, words = UNITS[name], f"numbers in {name} since 1970"
    read = in_range(whole, unit, rest * unit // SECOND)
    if is_given:
        return Times(read, words)
    is_placeholder = (whole < 0) & (whole >= -DAY * (SECOND // unit))
    larger = [SECOND // other for other in UNITS.values() if other > unit]
    recent = [whole.is_between(RECENT_SECONDS[0] * many, RECENT_SECONDS[1] * many) for many in larger]
    is_foreign = pl.any_horizontal(pl.lit(False), *recent)
    return Times(pl.when(~(is_placeholder | is_foreign)).then(read), words)


def choose_unit(texts: pl.LazyFrame, form: Form) -> str:
    """The unit in which the median of a column's numbers lies before the year 5000."""
    number = form.read(pl.col(COLUMN)).cast(pl.Float64, strict=False).abs()
    median = texts.select(number.filter(number.is_finite() & (number > 0)).median()).collect().item()
    return next(name for name, bound in UNIT_BOUNDS.items() if (median or 0.0) < bound)
