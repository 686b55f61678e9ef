"""Text is cleaned, counted and never dropped in silence."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrec.data import PrepareConfig, prepare
from allrec.data.items import clean_text, flatten, join_parts


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("Crabtree &amp; Evelyn", "Crabtree & Evelyn"),
        ("Crabtree &amp;amp; Evelyn", "Crabtree & Evelyn"),
        ("Supersmile&reg; &#39;in&#x27;", "Supersmile® 'in'"),
        ("<P><STRONG>Leaves</STRONG></P> <P>breath fresh</P>", "Leaves breath fresh"),
        ("a<br/>b<!-- no -->c", "a b c"),
        ("a<script type='x'>alert(1 < 2)</script>b<style>p{}</style>", "a b"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("I <3 you, 1 < 2 > 0", "I <3 you, 1 < 2 > 0"),
        (" two\t\n words\u00a0here ", "two words here"),
        ("a\x00b\x1fc\ufeff", "a b c"),
        ("AT&T", "AT&T"),
        ('Say "hi" </s> [UserRep]', 'Say "hi" [UserRep]'),
        ("", None),
        (" <br> &nbsp; ", None),
        (None, None),
    ],
)
def test_clean_text(raw: str | None, plain: str | None) -> None:
    assert clean_text(raw) == plain


@given(st.text())
def test_cleaned_text_has_no_control_characters_and_single_spaces(raw: str) -> None:
    plain = clean_text(raw)
    if plain is not None:
        assert plain == " ".join(plain.split())
        assert all(ord(character) >= 32 and not 127 <= ord(character) <= 159 for character in plain)


@given(st.text(alphabet="ab <>/&;ampltgt", max_size=40))
def test_hostile_markup_ends(raw: str) -> None:
    clean_text(raw * 3)


def test_hostile_length_is_quick() -> None:
    assert clean_text("<" * 200_000 + "x") is not None
    assert clean_text("<!--" * 2_000) is not None
    assert clean_text("&" + "amp;" * 50_000 + "x") is not None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('["First part.", "Second."]', "First part. Second."),
        ('["Action", "Drama"]', "Action, Drama"),
        ("[NEW] Cream", "[NEW] Cream"),
        ("[]", ""),
        (["a", None, "b"], "a, b"),
        (7, "7"),
        (None, None),
    ],
)
def test_flatten(value: object, text: str | None) -> None:
    assert flatten(value) == text


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["Title", "Description."], "Title. Description."),
        (["Title!", "More"], "Title! More"),
        ([None, "Only"], "Only"),
        (["Only", None], "Only"),
        ([None, None], None),
    ],
)
def test_join_parts(parts: list[str | None], text: str | None) -> None:
    assert join_parts(parts) == text


def test_titles_texts_and_counts(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    dataset = prepare(make_source(), tmp_path / "out")
    assert dataset.titles == ["Kettle", "Skillet", None, "Pot"]
    assert dataset.texts == ["Kettle. Boils water.", "Skillet", None, "Pot. Never bought."]
    counts = dataset.counts
    assert (counts["untitled_items"], counts["textless_items"], counts["interacted_items"]) == (1, 1, 3)


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_equal_duplicates_are_merged_and_counted(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    titles = [("x", "A &amp; B"), ("y", None), ("x", "A & B"), ("y", None)]
    items = [{"item_id": item_id, "title": title} for item_id, title in titles]
    dataset = prepare(make_source(items=items), tmp_path / "out")
    assert dataset.item_ids == ["x", "y", "z"]
    assert dataset.counts["merged_items"] == 2


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_further_columns_are_kept(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    items = [
        {"item_id": "x", "title": "A", "genres": ["p", "q"], "text": "clash", "mixed": ["a"]},
        {"item_id": "y", "title": "B", "genres": None, "text": None, "mixed": "plain"},
    ]
    prepare(make_source(items=items), tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert frame["genres"].to_list() == [["p", "q"], None, None]
    assert frame["source_text"].to_list() == ["clash", None, None]
    assert frame["mixed"].to_list() == ['["a"]', "plain", None]
    assert frame.columns[:3] == ["item_id", "title", "text"]


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_text_of_other_columns(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    items = [{"item_id": "x", "title": "Heat (1995)", "genres": ["Crime", "Drama"]}]
    config = PrepareConfig(text_columns=("title", "genres"))
    dataset = prepare(make_source(items=items), tmp_path / "out", config=config)
    assert dataset.texts[0] == "Heat (1995). Crime, Drama"


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_title_of_a_thousand_words_stays_whole(tmp_path: Path, make_source: Callable[..., Path]) -> None:
    title = " ".join(f"word{number}" for number in range(1000))
    assert prepare(make_source(items=[{"item_id": "x", "title": title}]), tmp_path / "out").titles[0] == title
