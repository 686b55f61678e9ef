"""What the language model wrote, held against the catalogue."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.tiny import load_tiny

from allrec.errors import InputError, Wording
from allrec.llm import generation
from allrec.llm.generation import Written, items_by_title, write_genres, write_titles
from allrec.llm.prompt import PromptBuilder, PromptConfig

LONG = " ".join(["silver"] * 30)
TITLES = ["Rose Soap", None, "Rose Soap", 'A "Big" Comb', f"{LONG} one", f"{LONG} two", "Oil"]
GENRES = [["Drama", "Sci-Fi"], [], ["Comedy"], ["Health and Beauty"], [], ["Drama"], []]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def scoring(llm):
    layout = {"begin": llm.begin, "end": llm.end, "max_length": llm.max_length}
    config = PromptConfig(max_title_tokens=16)
    builder = PromptBuilder(llm.encode, TITLES, Wording(), config, **layout)
    item_ids = [f"i{place}" for place in range(len(TITLES))]
    catalogue = SimpleNamespace(titles=TITLES, item_ids=item_ids, genres=GENRES)
    return SimpleNamespace(llm=llm, builder=builder, catalogue=catalogue)


def titles_of(scoring, monkeypatch, text, is_whole=True, candidates=(0, 6)):
    monkeypatch.setattr(generation, "_write", lambda *_: [[Written(text, -2.0, is_whole)]])
    ((title,),) = write_titles(scoring, scoring.catalogue, None, [np.array([3])], np.array([candidates]))
    return title


@pytest.mark.parametrize(
    ("text", "title", "item_ids", "is_candidate"),
    [
        ('"Oil"', "Oil", ["i6"], True),
        ('"Rose Soap"', "Rose Soap", ["i0", "i2"], True),
        ("\"A 'Big' Comb\"", "A 'Big' Comb", ["i3"], False),
        ('" Oil ".', "Oil", ["i6"], True),
        ('well, "Oil"', "Oil", ["i6"], True),
        ("Oil", "Oil", ["i6"], True),
        ('"Oi"', "Oi", [], False),
        ('"oil"', "oil", [], False),
        ('"Oil and more"', "Oil and more", [], False),
        ('"untitled item"', "untitled item", [], False),
        ('""', "", [], False),
        ("", "", [], False),
    ],
)
def test_a_title_is_in_the_catalogue_when_it_is_exactly_an_items(
    scoring, monkeypatch, text, title, item_ids, is_candidate
):
    written = titles_of(scoring, monkeypatch, text)
    assert (written.title, written.item_ids, written.score) == (title, item_ids, -2.0)
    assert (written.is_in_catalogue, written.is_candidate) == (bool(item_ids), is_candidate)


def test_a_title_that_was_broken_off_is_not_in_the_catalogue(scoring, monkeypatch):
    assert titles_of(scoring, monkeypatch, '"Oil', is_whole=False).item_ids == []
    assert titles_of(scoring, monkeypatch, '"Oil', is_whole=True).item_ids == ["i6"]


def test_padding_of_candidates_is_no_candidate(scoring, monkeypatch):
    assert not titles_of(scoring, monkeypatch, '"Oil"', candidates=(0, -1)).is_candidate


def test_titles_are_known_as_prompts_tell_them(scoring):
    items = items_by_title(scoring, scoring.catalogue)
    # Cut to sixteen tokens, the two long ones are one title.
    (cut,) = [title for title in items if title.startswith("silver")]
    assert len(cut) < len(LONG)
    assert items == {"Rose Soap": [0, 2], "A 'Big' Comb": [3], cut: [4, 5], "Oil": [6]}
    told = scoring.llm.decode([scoring.builder.answers(np.array([4]))[0].tolist()])[0]
    assert told == f' "{cut}"'


def genres_of(scoring, monkeypatch, text):
    monkeypatch.setattr(generation, "_write", lambda *_: [[Written(text, -2.0, True)]])
    ((genres,),) = write_genres(scoring, scoring.catalogue, None, [np.array([3])])
    return genres.known, genres.unknown


@pytest.mark.parametrize(
    ("text", "known", "unknown"),
    [
        ("Drama.", ["Drama"], []),
        ("drama, COMEDY and Sci-Fi.", ["Drama", "Comedy", "Sci-Fi"], []),
        ("Comedy, and Westerns", ["Comedy"], ["Westerns"]),
        ("Health and Beauty, Drama", ["Health and Beauty", "Drama"], []),
        ("Drama, drama; Drama|drama", ["Drama"], []),
        (': "Drama"', ["Drama"], []),
        ("Sand and Land", [], ["Sand", "Land"]),
        (" , .", [], []),
        ("", [], []),
    ],
)
def test_genres_are_known_or_not(scoring, monkeypatch, text, known, unknown):
    assert genres_of(scoring, monkeypatch, text) == (known, unknown)


def test_genres_of_a_data_set_without_any(scoring):
    scoring.catalogue.genres = None
    with pytest.raises(InputError, match="no genres are known in this run"):
        write_genres(scoring, scoring.catalogue, None, [np.array([3])])


def test_nothing_to_write(scoring):
    with pytest.raises(InputError, match="got k = 0, expected at least 1"):
        write_titles(scoring, scoring.catalogue, None, [np.array([3])], np.array([[0]]), k=0)
