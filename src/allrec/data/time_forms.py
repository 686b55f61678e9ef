"""The written forms of times, each an expression that reads it as nanoseconds since 1970, UTC."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
from polars.expr.struct import ExprStructNameSpace

SECOND = 1_000_000_000
UNITS = {"seconds": SECOND, "milliseconds": 1_000_000, "microseconds": 1_000, "nanoseconds": 1}
"""Nanoseconds of each unit in which numbers may count from 1970 on."""
EARLIEST, LATEST = -9_214_560_000 * SECOND, 9_214_646_400 * SECOND
"""1678 to 2262: what an int64 of nanoseconds can hold, in whole years."""
MONTHS = {name: str(number) for number, name in enumerate(
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
)}  # fmt: skip
MAX_OFFSET_HOURS, FIRST_YEAR_OF_1900 = 18, 70
CLOCK = (
    r"(?:,?(?:T|\s+)(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r"(?:\s*(?P<half>[ap])\.?m\.?)?)?"
)
OFFSET = r"\s*(?P<offset>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?"
WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
NAME = r"(?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
DAY, MONTH, YEAR, SHORT_YEAR = r"(?P<day>\d{1,2})", r"(?P<month>\d{1,2})", r"(?P<year>\d{4})", r"(?P<year>\d{2})"
FOUR_DIGIT, TWO_DIGIT = CLOCK + OFFSET, CLOCK


@dataclass(frozen=True)
class Form:
    """One way to write a time.

    Attributes:
        name: how the option ``time_format`` names it.
        example: one time in this form.
        read: a stripped text -> nanoseconds since 1970, or for numbers a plain decimal number as text; None elsewhere.
        is_number: whether the form is one of numbers, whose unit is to be chosen.
        group: forms of one group read the same text differently, so that a tie between them is refused.
    """

    name: str
    example: str
    read: Callable[[pl.Expr], pl.Expr]
    is_number: bool = False
    group: str = ""


def date_form(name: str, example: str, *patterns: str, group: str = "") -> Form:
    """A form of dates and times: whole texts that one of the patterns matches, letters of either case."""
    whole = [f"(?i)^{pattern}$" for pattern in patterns]
    return Form(
        name, example, lambda text: pl.coalesce(nanoseconds_of(text, pattern) for pattern in whole), group=group
    )


def number_form(name: str, example: str, pattern: str, dropped: str = "", point: str = ".", group: str = "") -> Form:
    """A form of numbers.

    Args:
        name: as the option names it.
        example: one number.
        pattern: what the whole text must match.
        dropped: a character class that goes.
        point: what separates the fraction.
        group: see ``Form``.
    """

    def read(text: pl.Expr) -> pl.Expr:
        plain = text.str.replace_all(dropped, "") if dropped else text
        return pl.when(text.str.contains(f"^[+-]?{pattern}$")).then(plain.str.replace(point, ".", literal=True))

    return Form(name, example, read, is_number=True, group=group)


def nanoseconds_of(text: pl.Expr, pattern: str) -> pl.Expr:
    """Nanoseconds since 1970 of texts that a pattern with the groups year, month, day and further ones matches."""
    part = text.str.extract_groups(pattern).struct
    date = [four_digits(part.field("year")), month_number(part.field("month")), part.field("day").str.zfill(2)]
    hour, has_half = field(part, pattern, "hour"), field(part, pattern, "half").is_not_null()
    number = hour.cast(pl.Int64)
    is_afternoon = field(part, pattern, "half").str.to_lowercase() == "p"
    twelve = pl.when(number.is_between(1, 12)).then(number % 12 + pl.when(is_afternoon).then(12).otherwise(0))
    hour = pl.when(has_half).then(twelve.cast(pl.String)).otherwise(hour.fill_null("0"))
    clock = [hour.str.zfill(2), *(field(part, pattern, name).fill_null("00") for name in ("minute", "second"))]
    iso = pl.concat_str([pl.concat_str(date, separator="-"), pl.concat_str(clock, separator=":")], separator=" ")
    moment = iso.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us").dt.timestamp("us")
    fraction = nano_digits(field(part, pattern, "fraction"))
    return in_range(moment, 1_000, fraction - offset_seconds(field(part, pattern, "offset")) * SECOND)


def field(part: ExprStructNameSpace, pattern: str, name: str) -> pl.Expr:
    """A group of a pattern; None everywhere where the pattern has no such group."""
    return part.field(name) if f"(?P<{name}>" in pattern else pl.lit(None, pl.String)


def four_digits(year: pl.Expr) -> pl.Expr:
    """A year of two digits in the hundred years from 1970 on."""
    is_late = year.cast(pl.Int64, strict=False) >= FIRST_YEAR_OF_1900
    century = pl.when(is_late).then(pl.lit("19")).otherwise(pl.lit("20"))
    return pl.when(year.str.len_chars() == 2).then(pl.concat_str(century, year)).otherwise(year)


def month_number(month: pl.Expr) -> pl.Expr:
    """Two digits of a month's number or English name."""
    return month.str.to_lowercase().replace(MONTHS).str.zfill(2)


def nano_digits(fraction: pl.Expr) -> pl.Expr:
    """The digits after a decimal point as billionths, int64; 0 where there are none. Finer digits are cut off."""
    return fraction.fill_null("").str.slice(0, 9).str.pad_end(9, "0").cast(pl.Int64, strict=False)


def offset_seconds(offset: pl.Expr) -> pl.Expr:
    """Seconds east of UTC of ``+02:00``, ``-0530``, ``+02``, ``Z``; 0 where there is none, None where it is absurd."""
    digits = offset.str.replace_all("[^0-9]", "").str.pad_end(4, "0").cast(pl.Int64, strict=False).fill_null(0)
    hours, minutes = digits // 100, digits % 100
    sign = pl.when(offset.str.starts_with("-")).then(-1).otherwise(1)
    return pl.when((hours <= MAX_OFFSET_HOURS) & (minutes < 60)).then(sign * (hours * 3_600 + minutes * 60))


def in_range(count: pl.Expr, unit: int, more: pl.Expr | int = 0) -> pl.Expr:
    """``count`` units of ``unit`` nanoseconds plus ``more``, int64; None where that overflows."""
    is_held = count.is_between(EARLIEST // unit, LATEST // unit)
    return pl.when(is_held).then(pl.when(is_held).then(count).otherwise(0) * unit + more)


SLASHED = r"[/-]"
FORMS = (
    number_form("number", "1600000000.5", r"\d+(\.\d*)?([eE][+-]?\d+)?"),
    date_form("iso", "2020-01-31T23:59:59+02:00", YEAR + r"[-/.]" + MONTH + r"[-/.]" + DAY + FOUR_DIGIT),
    date_form(
        "compact", "20200131 or 20200131T235959Z",
        r"(?P<year>(?:19|20)\d{2})(?P<month>\d{2})(?P<day>\d{2})"
        r"(?:[T ]?(?P<hour>\d{2})(?P<minute>\d{2})(?P<second>\d{2}))?(?P<offset>Z)?",
    ),
    date_form(
        "month-first", "12/31/2020 11:59 PM", MONTH + SLASHED + DAY + SLASHED + YEAR + FOUR_DIGIT,
        MONTH + SLASHED + DAY + SLASHED + SHORT_YEAR + TWO_DIGIT, group="order of day and month",
    ),
    date_form(
        "day-first", "31/12/2020 23:59", DAY + SLASHED + MONTH + SLASHED + YEAR + FOUR_DIGIT,
        DAY + SLASHED + MONTH + SLASHED + SHORT_YEAR + TWO_DIGIT, group="order of day and month",
    ),
    date_form(
        "year-first", "20/12/31", SHORT_YEAR + SLASHED + MONTH + SLASHED + DAY + TWO_DIGIT,
        group="order of day and month",
    ),
    date_form("dotted", "31.12.2020 23:59", DAY + r"\." + MONTH + r"\." + r"(?P<year>\d{4}|\d{2})" + FOUR_DIGIT),
    date_form(
        "named-month", "Dec 31, 2020 or 31-Dec-2020",
        WEEKDAY + DAY + r"(?:st|nd|rd|th)?[-/\s]+" + NAME + r"[-/,\s]+" + YEAR + FOUR_DIGIT,
        WEEKDAY + NAME + r"[-/\s]+" + DAY + r"(?:st|nd|rd|th)?[-/,\s]+" + YEAR + FOUR_DIGIT,
        WEEKDAY + NAME + r"\s+" + DAY + CLOCK + OFFSET + r"\s+" + YEAR,
        MONTH + r"\s+" + DAY + r",\s*" + YEAR + FOUR_DIGIT,
    ),
    number_form("thousands-comma", "1,600,000,000", r"\d{1,3}(,\d{3})*(\.\d+)?", dropped=",", group="what , separates"),
    number_form("decimal-comma", "1600000000,5", r"\d+(,\d+)?", point=",", group="what , separates"),
    number_form("thousands-dot", "1.600.000.000", r"\d{1,3}(\.\d{3})*(,\d+)?", dropped=r"\.", point=","),
    number_form(
        "thousands-space", "1 600 000 000", "\\d{1,3}([ '’_\u00a0\u202f]\\d{3})*([.,]\\d+)?",
        dropped="[ '’_\u00a0\u202f]", point=",",
    ),
)  # fmt: skip
