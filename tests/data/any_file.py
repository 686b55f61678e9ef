"""Tables as people have them, each written from a truth that is known: valid in many forms, or broken in known ways."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import polars as pl

Cell = str | int | float | None | dict[str, str] | list[int]
DELIMITED = ("csv", "tsv")
TEXTS = (*DELIMITED, "jsonl")
KINDS = (*TEXTS, "parquet")
USUAL = {"csv": ",", "tsv": "\t"}


def moment(time: int, pattern: str) -> str:
    return datetime.fromtimestamp(time, UTC).strftime(pattern)


TIMES: dict[str, Callable[[int], str]] = {
    "seconds": str,
    "milliseconds": lambda time: f"{time}000",
    "microseconds": lambda time: f"{time}000000",
    "nanoseconds": lambda time: f"{time}000000000",
    "decimals": lambda time: f"{time}.0",
    "iso": lambda time: moment(time, "%Y-%m-%dT%H:%M:%SZ"),
    "offset": lambda time: datetime.fromtimestamp(time, timezone(timedelta(hours=2))).isoformat(),
    "naive": lambda time: moment(time, "%Y-%m-%d %H:%M:%S"),
    "words": lambda time: moment(time, "%d %b %Y %H:%M:%S"),
}
FURTHER_TIMES: dict[str, Callable[[int], str]] = {
    "thousands": lambda time: f"{time:,}",
    "decimal comma": lambda time: f"{time},0",
    "west": lambda time: datetime.fromtimestamp(time, timezone(timedelta(hours=-5, minutes=-30))).isoformat(" "),
    "utc": lambda time: moment(time, "%Y-%m-%d %H:%M:%S UTC"),
    "dotted": lambda time: moment(time, "%d.%m.%Y %H:%M:%S"),
    "digits": lambda time: moment(time, "%Y%m%d%H%M%S"),
    "month first": lambda time: moment(time, "%m/%d/%Y %I:%M:%S %p"),
    "day first": lambda time: moment(time, "%d/%m/%Y %H:%M:%S"),
}
"""Forms of which some tables can be read in two ways, so that they may be refused, or that do not mix with others."""
LETTERS = "abcXYZ019 ,\"';|\\#$%+-_./:[]{}()=@!?*~^éßİ́Ж日本ا🎧’"
NO_IDS = ("nan", "null", "none", "n/a", "na", "nil")
YEARS = (631_152_000, 4_000_000_000)
"""1990 to 2096."""
FILLERS = (0, 0, 0, 0, 150, 3_000)
"""Further rows, so that a few lost ones are a small share, and faults lie beyond what is looked at first."""


def a_text(rng: Random, most: int = 8) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(0, most)))


def some_ids(rng: Random) -> list[str]:
    """A few ids that differ: texts, whole numbers, or numbers with zeros in front."""
    write: Callable[[], str] = rng.choice([
        lambda: a_text(rng).strip(), lambda: str(rng.randint(0, 10 ** rng.randint(1, 17))),
        lambda: f"{rng.randint(0, 999):06d}",
    ])  # fmt: skip
    texts = {write() for _ in range(rng.randint(1, 8))}
    usual = {text for text in texts if text and not text.startswith(("[", "{")) and text.lower() not in NO_IDS}
    return sorted(text for text in usual if not re.fullmatch(r"-?\d+\.0+", text, re.ASCII)) or ["7"]


class Refusal(NamedTuple):
    """What a fault may be refused with.

    Attributes:
        pattern: what the message holds.
        row: the place in the draft whose line it names; None where it names none.
        options: with which the same table is then read right; None where the table itself has to be mended.
        has_to_be: whether it must be refused, and not read right.
    """

    pattern: str
    row: int | None = None
    options: dict[str, Any] | None = None
    has_to_be: bool = True


@dataclass
class Draft:
    """A table before it is written.

    Attributes:
        table: "interactions" or "items".
        kind: the format.
        columns: part -> column, from left to right; None: the column ``note``.
        rows: what is written for each part.
        truth: what each row means, by part; times in seconds.
        lost: rows that cannot be read.
        untimed: those that are lost for their times alone.
        doubtful: whether rows may be lost that are not in ``lost``.
        is_known: whether it is known what each row means.
        name: of the file.
        separator: of the fields.
        line_end: of all lines.
        quoting: of csv.
        start: bytes in front.
        blank_before: rows with a blank line in front.
        has_header: whether the columns are named.
        edits: rows whose bytes are changed once they are written.
        packing: what becomes of the bytes of the whole file, in this order.
        refusals: what may be said instead of reading it.
        said: patterns of notices that have to be given where it is read, and the row that each is about, if any.
        touched: rows that have a fault.
        faults: the names of all.
    """

    table: str
    kind: str
    columns: dict[str, str]
    rows: list[dict[str, Cell]]
    truth: list[dict[str, Any]]
    lost: set[int] = field(default_factory=set)
    untimed: set[int] = field(default_factory=set)
    doubtful: bool = False
    is_known: bool = True
    name: str = ""
    separator: str = ""
    line_end: bytes = b"\n"
    quoting: int = csv.QUOTE_MINIMAL
    start: bytes = b""
    blank_before: set[int] = field(default_factory=set)
    has_header: bool = True
    edits: dict[int, Callable[[bytes], bytes]] = field(default_factory=dict)
    packing: list[Callable[[bytes], bytes]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    said: dict[str, int | None] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def record(self, cells: list[Cell]) -> bytes:
        """A line of a delimited table, without its end."""
        target = io.StringIO()
        texts = ["" if cell is None else str(cell) for cell in cells]
        csv.writer(target, delimiter=self.separator, quoting=self.quoting, lineterminator="\n").writerow(texts)  # type: ignore[arg-type]
        return target.getvalue().removesuffix("\n").encode()

    def lines(self) -> list[bytes]:
        """The rows of a text, without line ends."""
        if self.kind == "jsonl":
            named = [{self.columns[part]: row[part] for part in self.columns if part in row} for row in self.rows]
            found = [json.dumps(one, ensure_ascii=len(self.rows) % 2 == 0).encode() for one in named]
        else:
            found = [self.record([row[part] for part in self.columns if part in row]) for row in self.rows]
        return [self.edits[place](line) if place in self.edits else line for place, line in enumerate(found)]

    def text(self) -> tuple[bytes, list[int]]:
        """A text, and the line of each row from 1 on."""
        is_headed = self.has_header and self.kind in DELIMITED
        data = self.start + (self.record(list(self.columns.values())) + self.line_end if is_headed else b"")
        places = []
        for place, line in enumerate(self.lines()):
            data += self.line_end if place in self.blank_before else b""
            places.append(1 + data.count(b"\n"))
            data += line + self.line_end
        return data, places

    def parquet(self) -> bytes:
        """A Parquet table, typed where all values of a column have one type."""
        columns = {}
        for part, name in self.columns.items():
            cells = [row.get(part) for row in self.rows]
            is_typed = len({type(cell) for cell in cells if cell is not None}) == 1
            columns[name] = cells if is_typed else [None if cell is None else str(cell) for cell in cells]
        buffer = io.BytesIO()
        pl.DataFrame(columns, strict=False).write_parquet(buffer)
        return buffer.getvalue()

    def written(self) -> tuple[bytes, list[int]]:
        """The file, and the line of each row (the row itself in Parquet)."""
        is_text = self.kind != "parquet"
        data, places = self.text() if is_text else (self.parquet(), list(range(1, len(self.rows) + 1)))
        for change in self.packing:
            data = change(data)
        return data, places

    def blank_rows(self) -> set[int]:
        """Rows of a delimited table that hold separators alone, and so are none."""
        lines = self.lines() if self.kind in DELIMITED else []
        return {place for place, line in enumerate(lines) if not line.strip(self.separator.encode())}

    def numbers(self) -> list[int]:
        """The number of each row as the file of rejected rows has it: blank lines of a delimited table count."""
        blanks = self.blank_before if self.kind in DELIMITED else set[int]()
        return [place + 1 + sum(blank <= place for blank in blanks) for place in range(len(self.rows))]


FAULTS: list[tuple[Callable[[Random, Draft], None], tuple[str, ...], tuple[str, ...]]] = []
SMALL: list[tuple[Callable[[Random, Draft], None], tuple[str, ...], tuple[str, ...]]] = []
"""What can be wrong with a table as a whole, and with some of its rows: (fault, formats, tables)."""


def fault(kinds: tuple[str, ...], tables: tuple[str, ...] = ("interactions", "items"), of: Any = FAULTS) -> Any:
    """Enters a fault of some formats and tables."""

    def enter(apply: Callable[[Random, Draft], None]) -> Callable[[Random, Draft], None]:
        of.append((apply, kinds, tables))
        return apply

    return enter


def some_rows(rng: Random, draft: Draft, most: int = 3) -> list[int]:
    """Rows that no other fault touches, one at least if there is any."""
    free = [place for place in range(len(draft.rows)) if place not in draft.touched]
    chosen = sorted(rng.sample(free, min(len(free), rng.randint(1, most))))
    draft.touched.update(chosen)
    return chosen


# What is wrong with rows


@fault(KINDS, of=SMALL)
def an_id_is_missing(rng: Random, draft: Draft) -> None:
    part = rng.choice([part for part in draft.columns if part in ("user_id", "item_id")])
    for place in some_rows(rng, draft):
        draft.rows[place][part] = rng.choice(["", "  ", None])
        draft.lost.add(place)


@fault(KINDS, ("interactions",), SMALL)
def an_id_is_bad(rng: Random, draft: Draft) -> None:
    part = rng.choice(["user_id", "item_id"])
    for place in some_rows(rng, draft):
        draft.rows[place][part] = rng.choice(["a\x07b", "a\nb", "x" * 1_001])
        draft.lost.add(place)


@fault(KINDS, ("interactions",), SMALL)
def a_time_is_bad(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft):
        draft.rows[place]["timestamp"] = rng.choice(["soon", "", None, "2020-02-30", "n/a", "0000-00-00"])
        draft.lost.add(place)
        draft.untimed.add(place)
    draft.refusals.append(Refusal("are in no form that is known here", has_to_be=False))


@fault(KINDS, ("interactions",), SMALL)
def a_rating_is_bad(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft) if "rating" in draft.columns else []:
        draft.rows[place]["rating"] = rng.choice(["five", "nan", "inf", "1,5", "4 stars"])
        draft.lost.add(place)


@fault(KINDS, ("interactions",), SMALL)
def an_id_is_a_word_for_nothing(rng: Random, draft: Draft) -> None:
    part = rng.choice(["user_id", "item_id"])
    for place in some_rows(rng, draft):
        word = rng.choice(["nan", "NULL", "None", "N/A"])
        draft.rows[place][part] = draft.truth[place][part] = word
        draft.said[f"the {part} '{word}', which is kept as an id"] = place


@fault(KINDS, ("interactions",), SMALL)
def times_are_mixed(rng: Random, draft: Draft) -> None:
    write = TIMES[rng.choice(sorted(TIMES))]
    for place in some_rows(rng, draft, most=6):
        draft.rows[place]["timestamp"] = write(draft.truth[place]["timestamp"])
    draft.doubtful = True
    draft.refusals.append(Refusal("are in no form that is known here|two ways", has_to_be=False))


@fault(DELIMITED, of=SMALL)
def a_row_has_too_few_fields(rng: Random, draft: Draft) -> None:
    number = rng.randint(1, len(draft.columns) - 1)
    for place in some_rows(rng, draft):
        for part in islice(reversed(draft.columns), number):
            del draft.rows[place][part]
            if part in ("user_id", "item_id", "timestamp"):
                draft.lost.add(place)
            else:
                draft.truth[place][part] = None
        if draft.table == "interactions" and {"user_id", "item_id"} <= set(draft.rows[place]) and place in draft.lost:
            draft.untimed.add(place)


@fault(TEXTS, of=SMALL)
def there_are_blank_lines(rng: Random, draft: Draft) -> None:
    draft.blank_before.update(some_rows(rng, draft))


@fault(KINDS, ("items",), SMALL)
def an_item_is_there_twice(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft, most=1):
        is_other, row = rng.random() < 0.5, draft.rows[place]
        draft.touched.add(len(draft.rows))
        draft.rows.append(row | ({"title": "another title"} if is_other else {}))
        draft.truth.append(draft.truth[place])
        if is_other:
            draft.refusals.append(Refusal("has different texts in rows", options={"duplicate_items": "first"}))


# What is wrong with a table


@fault(DELIMITED)
def a_row_has_too_many_fields(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft, most=1):
        more = draft.separator.encode() + rng.choice([b"more", b"", b"1"])
        draft.edits[place] = lambda line, more=more: line + more  # type: ignore[misc]
        draft.refusals.append(Refusal(r"line {line}: \d+ fields, expected \d+", place))


@fault(TEXTS)
def a_byte_is_not_utf8(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft, most=1):
        piece = rng.choice([b"\xff", b"\xe9 ", b"caf\xe9", b"\xc3"])
        draft.edits[place] = lambda line, piece=piece: line[:2] + piece + line[2:]  # type: ignore[misc]
        draft.refusals.append(Refusal("line {line}: not UTF-8.*Convert it", place))


@fault(TEXTS)
def a_byte_is_nul(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft, most=1):
        draft.edits[place] = lambda line: line[:2] + b"\0" + line[2:]
        # Beyond what is looked at first, it is a character that no id and no time has.
        draft.doubtful = len(draft.rows) > FILLERS[-1]
        draft.refusals.append(Refusal(r"NUL bytes.*Remove them", has_to_be=not draft.doubtful))


@fault(TEXTS)
def the_text_is_wide(rng: Random, draft: Draft) -> None:
    encoding = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    draft.packing.insert(0, lambda data: data.decode().encode(encoding))
    draft.refusals.append(Refusal(r"NUL bytes.*(Convert it \(iconv|Remove them)"))


@fault(DELIMITED)
def lines_end_in_carriage_returns_alone(rng: Random, draft: Draft) -> None:
    draft.line_end = b"\r"
    draft.refusals.append(Refusal("line 1: it contains a carriage return"))


@fault(TEXTS)
def there_is_nothing(rng: Random, draft: Draft) -> None:
    content = rng.choice([b"", b"\n", b" \n\n"])
    draft.packing.insert(0, lambda data: content)
    draft.refusals.append(Refusal("is empty, expected a table"))


@fault(KINDS)
def there_are_no_rows(rng: Random, draft: Draft) -> None:
    for rows in (draft.rows, draft.truth, draft.lost, draft.edits, draft.blank_before, draft.refusals, draft.said):
        rows.clear()
    no_columns = draft.kind == "jsonl"
    nothing = "is empty, expected a table" if no_columns else "no interaction is left|interacted items are not in it"
    draft.refusals.append(Refusal(nothing))


@fault(DELIMITED)
def a_column_is_there_twice(rng: Random, draft: Draft) -> None:
    name = rng.choice(list(draft.columns.values()))
    draft.columns["again"] = rng.choice([name, f" {name}"])
    for row in draft.rows:
        row["again"] = "x"
    draft.refusals.append(Refusal("line 1: the column .* is there twice"))


@fault(KINDS)
def a_column_of_ids_has_an_unknown_name(rng: Random, draft: Draft) -> None:
    part = rng.choice([part for part in draft.columns if part in ("user_id", "item_id")])
    draft.columns[part] = name = rng.choice(["kunde", "Wer", "é", "c 1"])
    option = "columns" if draft.table == "interactions" else "item_columns"
    draft.refusals.append(Refusal(f"has no column for {part}, only .*column {part}=", options={option: {part: name}}))


@fault(KINDS, ("interactions",))
def the_column_of_times_has_an_unknown_name(rng: Random, draft: Draft) -> None:
    draft.columns["timestamp"] = "moment"
    draft.said["no column of times was recognised among .*moment"] = None
    for truth in draft.truth:
        del truth["timestamp"]
    draft.lost -= draft.untimed


@fault(DELIMITED)
def there_is_no_header(rng: Random, draft: Draft) -> None:
    if not draft.rows:
        return
    draft.has_header = False
    option = "names" if draft.table == "interactions" else "item_names"
    draft.refusals.append(Refusal("line 1: the first line looks like data|that line is data|is data and no header",
                                  options={option: tuple(draft.columns.values())}))  # fmt: skip


@fault(DELIMITED)
def fields_are_separated_by_another_common_character(rng: Random, draft: Draft) -> None:
    others = [separator for separator in (";", "|", "\t", ",") if separator != draft.separator]
    draft.separator = rng.choice(others)
    draft.said["its fields are separated by .*--separator"] = None


@fault(DELIMITED)
def fields_are_separated_by_an_odd_character(rng: Random, draft: Draft) -> None:
    draft.separator = rng.choice(["^", "~", ":", " "])
    # Where there are two tables, the other one may be refused for it.
    draft.refusals.append(Refusal("is one field.*--separator", options={"separator": draft.separator}))


@fault(DELIMITED)
def a_quote_opens_a_field_and_is_never_closed(rng: Random, draft: Draft) -> None:
    draft.quoting = csv.QUOTE_MINIMAL
    separator = draft.separator.encode()
    for place in some_rows(rng, draft, most=1):
        if b'"' in draft.lines()[place]:
            continue
        is_first = rng.random() < 0.5
        if is_first:
            draft.edits[place] = lambda line: b'"' + line
        else:
            draft.edits[place] = lambda line: line.replace(separator, separator + b'"', 1)
        draft.refusals.append(Refusal("line {line}: a quote is never closed, or lies within", place))


@fault(DELIMITED)
def quotes_pair_over_rows(rng: Random, draft: Draft) -> None:
    draft.quoting, separator = csv.QUOTE_MINIMAL, draft.separator.encode()
    plain = [place for place in some_rows(rng, draft, most=8) if b'"' not in draft.lines()[place]]
    if len(plain) < 2:
        return
    draft.edits[plain[0]] = lambda line: line.replace(separator, separator + b'"', 1)
    draft.edits[plain[1]] = lambda line: line.replace(separator, b'"' + separator, 1)
    draft.refusals.append(Refusal(r"line {line}: (a quote is never closed, or lies within|\d+ fields)", plain[0]))


@fault(("jsonl",))
def a_line_is_no_json(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft, most=1):
        change: Callable[[bytes], bytes] = (
            rng.choice([
                lambda line: line[:-1], lambda line: line + b"}", lambda line: line + b",", lambda line: line + b" x",
                lambda line: line[:-1] + b",}", lambda line: line.replace(b'"', b"'"), lambda line: line + b" " + line,
                lambda line: line[:-1] + b', "price": NaN}', lambda line: line[:-1] + b', "price": Infinity}',
                lambda line: line[:-1] + b', "price": -NaN}', lambda line: line[:-1] + b', "price": 01}',
                lambda line: line[:-1] + b', "price"}', lambda line: line[:-1] + b', price: 1}', lambda line: b"soon",
            ])
        )  # fmt: skip
        draft.edits[place] = change
        draft.refusals.append(Refusal("line {line}: not JSON", place))


@fault(("jsonl",))
def a_line_is_no_object(rng: Random, draft: Draft) -> None:
    for place in some_rows(rng, draft, most=1):
        other = rng.choice([b'["u", "a", 1]', b"5", b'"u"', b"true", b"null"])
        draft.edits[place] = lambda line, other=other: other  # type: ignore[misc]
        draft.refusals.append(
            Refusal("line {line}: (got JSON but no object|is one JSON array)|is one JSON array", place)
        )


@fault(("jsonl",))
def the_table_is_a_json_array(rng: Random, draft: Draft) -> None:
    draft.packing.insert(0, lambda data: b"[" + b",\n".join(data.splitlines()) + b"]\n")
    draft.refusals.append(Refusal("line 1: is one JSON array, expected JSON lines.*jq"))


@fault(("jsonl",), ("interactions",))
def an_id_is_an_object(rng: Random, draft: Draft) -> None:
    part = rng.choice(["user_id", "item_id"])
    for place in some_rows(rng, draft, most=1):
        draft.rows[place][part] = rng.choice([{"$oid": "5f"}, [1, 2], {}, []])
        draft.refusals.append(Refusal(f"line {{line}}: {part} is .*, expected a text or a whole number", place))


@fault(TEXTS)
def a_packed_table_is_cut_off(rng: Random, draft: Draft) -> None:
    share = rng.uniform(0.05, 0.95)
    draft.packing += [gzip.compress, lambda data: data[: max(2, int(len(data) * share))]]
    draft.refusals.append(Refusal(r"is not a whole gzip file|is damaged or cut off.*Fetch it again"))


@fault(TEXTS)
def a_packed_table_is_damaged(rng: Random, draft: Draft) -> None:
    share, bit = rng.uniform(0, 0.99), rng.randint(0, 7)

    def flip(data: bytes) -> bytes:
        place = 10 + int((len(data) - 10) * share)
        return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]

    draft.packing += [gzip.compress, flip]
    draft.refusals.append(Refusal(r"is not a whole gzip file|is damaged or cut off.*Fetch it again"))


@fault(TEXTS)
def the_name_says_gzip_and_it_is_none(rng: Random, draft: Draft) -> None:
    draft.name, draft.packing = f"{draft.table}.{draft.kind}.gz", []
    draft.refusals.append(Refusal("is not a whole gzip file: .*Unpack it, or fetch it again"))


@fault(TEXTS)
def it_is_of_another_kind(rng: Random, draft: Draft) -> None:
    start, said = rng.choice([(b"PK\x03\x04", "is a zip archive"), (b"PAR1", "is Parquet under another")])
    draft.packing.insert(0, lambda data: start + data)
    draft.refusals.append(Refusal(said))


@fault(("parquet",))
def a_parquet_table_is_cut_off(rng: Random, draft: Draft) -> None:
    share = rng.uniform(0, 0.95)
    draft.packing.append(lambda data: data[: int(len(data) * share)])
    draft.refusals.append(Refusal("cannot be read as a table|is empty"))


@fault(("parquet",))
def a_parquet_table_is_damaged(rng: Random, draft: Draft) -> None:
    share, piece = rng.uniform(0, 0.99), rng.randbytes(rng.randint(1, 6))

    def spoil(data: bytes) -> bytes:
        place = int(len(data) * share)
        return data[:place] + piece + data[place + len(piece) :]

    draft.packing.append(spoil)
    draft.is_known = False
    draft.refusals.append(Refusal("", has_to_be=False))


PIECES = (b'"', b",", b"\t", b";", b"\n", b"\r\n", b"\n\n", b"\0", b"\xff", b"{", b"}", b"NaN", b"nan", b"\\", b"-1",
          b" ", b"soon", b"1,600", b"null", b"\xef\xbb\xbf", b"[1]", b"9" * 30)  # fmt: skip


@fault(TEXTS)
def it_is_damaged_anywhere(rng: Random, draft: Draft) -> None:
    def change(data: bytes, what: str, share: float, piece: bytes, length: int) -> bytes:
        place = int(len(data) * share)
        match what:
            case "insert":
                return data[:place] + piece + data[place:]
            case "delete":
                return data[:place] + data[place + length :]
            case "repeat":
                return data[: place + length] + data[place:]
            case _:
                return data[: max(place, len(data) // 2)]

    for _ in range(rng.randint(1, 3)):
        chosen = (
            rng.choice(["insert", "delete", "cut", "repeat"]),
            rng.uniform(0, 1),
            rng.choice(PIECES),
            rng.randint(1, 40),
        )
        draft.packing.append(lambda data, chosen=chosen: change(data, *chosen))
    draft.is_known = False
    draft.refusals.append(Refusal("", has_to_be=False))


# A table


NAMES = {
    "user_id": ["user_id", "User ID", "customer_id", "uid"],
    "item_id": ["item_id", "ItemID", "sku", "asin"],
    "timestamp": ["timestamp", "rated_at", "InvoiceDate", "t_dat", "time"],
    "rating": ["rating", "stars", "Overall"],
    "title": ["title", "name", "prod_name"],
    "note": ["note", "Bemerkung"],
}


def id_cells(rng: Random, ids: list[str]) -> dict[str, Cell]:
    """How each id is written: as a text, or all as numbers where they can be."""
    is_whole = all(re.fullmatch(r"0|[1-9]\d{0,14}", text, re.ASCII) for text in ids)
    write: Callable[[str], Cell] = rng.choice([str, int, float, "{}.0".format]) if is_whole else str
    return {text: write(text) for text in ids}


def a_layout(rng: Random, table: str, kind: str, rows: list[dict[str, Cell]], truth: list[dict[str, Any]]) -> Draft:
    """A table in a layout that some program writes."""
    parts = rng.sample(list(rows[0]), len(rows[0]))
    draft = Draft(table, kind, {part: rng.choice(NAMES[part]) for part in parts}, rows, truth)
    draft.name = f"{table}.{kind}"
    if kind in DELIMITED:
        draft.separator = USUAL[kind]
        draft.quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        draft.line_end = rng.choice([b"\n", b"\r\n"])
    if kind in TEXTS:
        draft.start = rng.choice([b"", b"", b"\xef\xbb\xbf"]) if kind in DELIMITED else b""
        packed = rng.choice(["no", "no", "named", "unnamed"])
        draft.name += ".gz" if packed == "named" else ""
        draft.packing = [] if packed == "no" else [gzip.compress]
    return draft


def spoiled(rng: Random, draft: Draft, is_valid: bool) -> Draft:
    """Gives a draft a few of the faults that it can have, or none."""
    if is_valid:
        return draft
    of_rows = [apply for apply, kinds, tables in SMALL if draft.kind in kinds and draft.table in tables]
    of_all = [apply for apply, kinds, tables in FAULTS if draft.kind in kinds and draft.table in tables]
    chosen = rng.sample(of_rows, rng.randint(0, 2))
    chosen += rng.sample(of_all, 1 if not chosen or rng.random() < 0.5 else 0)
    for apply in chosen:
        apply(rng, draft)
        draft.faults.append(apply.__name__)
    return draft


def tables(number: int) -> list[Draft]:
    """Interactions, and perhaps items, valid or broken; the number fixes them."""
    rng = Random(number)
    users, items = some_ids(rng), some_ids(rng)
    events = [(rng.choice(users), rng.choice(items), rng.randint(*YEARS)) for _ in range(rng.randint(1, 20))]
    events += [(users[n % len(users)], items[n % len(items)], 10**9 + 7 * n) for n in range(rng.choice(FILLERS))]
    kind, form = rng.choice(KINDS), rng.choice([*TIMES, *TIMES, *FURTHER_TIMES])
    write = (TIMES | FURTHER_TIMES)[form]
    user_cells, item_cells = id_cells(rng, users), id_cells(rng, items)
    is_rated, is_noted = rng.random() < 0.5, rng.random() < 0.5
    rows, truth = [], []
    for place, (user, item, time) in enumerate(events):
        row: dict[str, Cell] = {"user_id": user_cells[user], "item_id": item_cells[item], "timestamp": write(time)}
        rating = place % 5 + 0.5 if is_rated and place % 7 else None
        rows.append(row | ({"rating": rating} if is_rated else {}) | ({"note": "x, y"} if is_noted else {}))
        truth.append({"user_id": user, "item_id": item, "timestamp": time, "rating": rating})
    interactions = a_layout(rng, "interactions", kind, rows, truth)
    if form in FURTHER_TIMES:
        interactions.refusals.append(Refusal("can be read in two ways", has_to_be=False))
    broken = rng.choice(["neither", "interactions", "interactions", "items"])
    spoiled(rng, interactions, broken != "interactions")
    if broken != "items" and rng.random() < 0.5:
        return [interactions]
    titles = [a_text(rng).lstrip("[ ") for _ in items]
    listed = [{"item_id": item_cells[item], "title": title} for item, title in zip(items, titles, strict=True)]
    named = [{"item_id": item, "title": " ".join(title.split()) or None}
             for item, title in zip(items, titles, strict=True)]  # fmt: skip
    return [interactions, spoiled(rng, a_layout(rng, "items", kind, listed, named), broken != "items")]  # type: ignore[arg-type]
