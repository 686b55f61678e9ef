"""Whatever a table holds, it is read right, its lost rows are said, or it is refused with its place and a remedy."""

import csv
import io
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.data.any_file import DELIMITED, Draft, Refusal, tables

from allrec.data import Dataset, PrepareConfig, prepare
from allrec.errors import InputError, InputWarning

QUICK, LONG = 120, 2_000
REMEDY = r"[.;:?] [A-Z][a-z]+|\((iconv|tr|jq) "
NOTED_SHARE, MAX_REJECTED = 0.01, 0.05


class Tables:
    """Drafts written into a folder, and what ``prepare`` makes of them."""

    def __init__(self, folder: Path, drafts: list[Draft]) -> None:
        self.drafts, self.source, self.out = drafts, folder / "source", folder / "out"
        self.lines: dict[str, list[int]] = {}
        self.said = ""
        self.source.mkdir()
        for draft in drafts:
            data, self.lines[draft.table] = draft.written()
            (self.source / draft.name).write_bytes(data)

    def prepare(self, **options: Any) -> Dataset | None:
        """The data set, or None where the tables are refused; ``said`` is the refusal, or all notices."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                dataset = prepare(self.source, self.out, config=PrepareConfig(**options))
            except InputError as error:
                self.said = str(error)
                assert "\n" not in self.said
                assert not self.out.exists()
                return None
        assert all(issubclass(one.category, InputWarning) for one in caught), [str(one.message) for one in caught]
        self.said = "\n".join(str(one.message) for one in caught)
        return dataset

    def check(self) -> None:
        """Fails unless the tables are read right, or refused as one of their faults may be and then as advised."""
        dataset = self.prepare()
        if dataset is not None:
            assert not [one for draft in self.drafts for one in draft.refusals if one.has_to_be], "read all the same"
            self.check_read(dataset)
            return
        if self.is_unlisted():
            return
        draft = next((draft for draft in self.drafts if str(self.source / draft.name) in self.said), None)
        if "no interaction is left" in self.said and str(self.source) in self.said:
            draft = self.drafts[0]
        assert draft is not None, self.said
        assert re.search(REMEDY, self.said), self.said
        if draft.is_known:
            self.check_refusal(draft)

    def is_unlisted(self) -> bool:
        """Whether the tables are refused since no item of the interactions is listed, as none is."""
        if "interacted items are not in it" not in self.said:
            return False
        interacted, listed = (
            {truth["item_id"] for place, truth in enumerate(draft.truth) if place not in draft.lost}
            for draft in self.drafts
        )
        return not interacted & listed

    def check_refusal(self, draft: Draft) -> None:
        if "could not be read" in self.said:
            assert draft.doubtful or len(draft.lost) > MAX_REJECTED * len(draft.rows), self.said
            self.check_place(draft)
            share = re.findall(r"--max-rejected ([0-9.]+)\.$", self.said)[0]
            refusal = Refusal("", options={"max_rejected": float(share)})
        else:
            found = [one for one in draft.refusals if re.search(self.pattern(draft, one), self.said)]
            assert found, self.said
            refusal = found[0]
        if refusal.options is not None:
            draft.refusals.remove(refusal) if refusal in draft.refusals else None
            before, dataset = self.said, self.prepare(**refusal.options)
            assert dataset is not None or self.said != before, self.said
            if dataset is not None:
                self.check_read(dataset)

    def pattern(self, draft: Draft, refusal: Refusal) -> str:
        line = "" if refusal.row is None else str(self.lines[draft.table][refusal.row])
        return refusal.pattern.replace("{line}", line)

    def check_place(self, draft: Draft) -> None:
        """The lines that a message names are those of lost rows."""
        lines = self.lines[draft.table]
        named = [int(number) for number in re.findall(r"(?:line|row) (\d+)", self.said)]
        if not draft.doubtful:
            assert set(named) <= {lines[place] for place in draft.lost}, self.said
        assert named, self.said

    def check_read(self, dataset: Dataset) -> None:
        rejected = [json.loads(line) for line in (self.out / "rejected.jsonl").read_text().splitlines()]
        for draft in self.drafts:
            numbers = {row["row"] for row in rejected if row["table"] == draft.table}
            if not draft.is_known:
                self.check_counted(draft, dataset, len(numbers))
                return
            lost = {place for place, number in enumerate(draft.numbers()) if number in numbers}
            assert len(lost) == len(numbers)
            rows = {*range(len(draft.rows))} - draft.blank_rows()
            expected = draft.lost & rows
            assert lost >= expected if draft.doubtful else lost == expected
            if len(lost) > NOTED_SHARE * len(rows):
                assert re.search(rf"{re.escape(draft.name)}: {len(lost):,} of {len(rows):,} rows", self.said)
            kept = [truth for place, truth in enumerate(draft.truth) if place in rows - lost]
            check_interactions(dataset, kept) if draft.table == "interactions" else check_items(dataset, kept)
            for pattern, place in draft.said.items():
                assert place in lost or re.search(pattern, self.said), (pattern, self.said)

    def check_counted(self, draft: Draft, dataset: Dataset, num_rejected: int) -> None:
        """Where it is not known what rows mean, each is in the data set or counted as rejected."""
        if draft.table == "interactions" and draft.kind != "parquet" and "separated by" not in self.said:
            text = (self.source / draft.name).read_bytes()
            assert dataset.num_interactions + num_rejected == num_records(text, draft)


def num_records(data: bytes, draft: Draft) -> int:
    """Rows of a text, counted apart from the package."""
    text = data.decode().removeprefix("\ufeff")
    lines = [line for line in text.split("\n") if line.strip("\r")]
    if draft.kind not in DELIMITED:
        return len([line for line in lines if line.strip()])
    lines = [line for line in lines if line.strip("\r" + draft.separator)]
    if not any(field.startswith('"') for line in lines for field in line.split(draft.separator)):
        return len(lines) - 1
    # Python's reader ends a row at a carriage return alone, which is a character here.
    plain = io.StringIO(re.sub("\r(?!\n)", "?", text), newline="")
    return sum(any(row) for row in csv.reader(plain, delimiter=draft.separator)) - 1


def check_interactions(dataset: Dataset, kept: list[dict[str, Any]]) -> None:
    stored = pl.read_parquet(dataset.path / "interactions.parquet")
    assert dataset.user_ids == list(dict.fromkeys(row["user_id"] for row in kept))
    for user, user_id in enumerate(dataset.user_ids):
        own = [row for row in kept if row["user_id"] == user_id]
        own.sort(key=lambda row: row.get("timestamp", 0))
        mine = stored.filter(pl.col("user") == user)
        assert [dataset.item_ids[item] for item in dataset.history(user)] == [row["item_id"] for row in own]
        if "timestamp" in stored:
            assert mine["timestamp"].to_list() == [row["timestamp"] for row in own]
        if "rating" in stored:
            assert mine["rating"].to_list() == [row["rating"] for row in own]


def check_items(dataset: Dataset, kept: list[dict[str, Any]]) -> None:
    titles: dict[str, str | None] = {}
    for row in kept:
        titles.setdefault(row["item_id"], row["title"])
    assert dataset.item_ids[: len(titles)] == list(titles)
    assert dataset.titles == [*titles.values(), *[None] * (dataset.num_items - len(titles))]


def check_all(folder: Path, num_tables: int) -> None:
    for number in range(num_tables):
        drafts = tables(number)
        (folder / str(number)).mkdir()
        try:
            Tables(folder / str(number), drafts).check()
        except BaseException as error:
            error.add_note(f"tables({number}): {[draft.faults for draft in drafts]}")
            raise
        shutil.rmtree(folder / str(number))


def test_any_tables_are_read_right_or_refused(tmp_path: Path) -> None:
    check_all(tmp_path, QUICK)


@pytest.mark.soak
def test_2_000_tables_are_read_right_or_refused(tmp_path: Path) -> None:
    check_all(tmp_path, LONG)
