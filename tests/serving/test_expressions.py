"""Filters and boosts: what they keep, what they refuse, and that only what changed is evaluated again."""

import numpy as np
import pytest

from allrec.errors import InputError
from allrec.serving.expressions import Expression, Expressions, Items

FIELDS = ["category", "price", "is_new", "tags", "title"]
ROWS = [
    {"category": "Skin Care", "price": 12.5, "is_new": True, "tags": ["a"], "title": "Rose"},
    {"category": "Skin Care", "price": 30, "is_new": False, "tags": [], "title": "Lily"},
    {"category": "Hair", "price": 5.0, "is_new": False, "tags": ["a", "b"], "title": "Comb"},
    {"category": "Skin Care", "title": "no price"},
]


def items(rows=ROWS, versions=(0, 0, 0, 0), version=0):
    return Items(rows, np.array(versions), version)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('category == "Skin Care" && price < 20.0', [True, False, False, False]),
        ("price >= 30", [False, True, False, False]),
        ('"a" in tags', [True, False, True, False]),
        ("!is_new", [False, True, True, False]),
        ('title.startsWith("R") || size(tags) == 2', [True, False, True, False]),
        ('user.country == "DE" && price > 6.0', [True, True, False, False]),
        ('user.nothing == "DE"', [False] * 4),
        ('title == "x.map(y, z)"', [False] * 4),
        ('title == "Rose" // a remark', [True, False, False, False]),
    ],
)
def test_a_filter_keeps_what_it_says_and_leaves_out_items_that_lack_a_field(text, kept):
    assert Expressions(FIELDS).mask(text, items(), {"country": "DE"}).tolist() == kept


def test_a_long_chain_of_alternatives_is_not_deep():
    text = " || ".join(f"price == {number}.0" for number in range(45))
    assert Expressions(FIELDS).mask(text, items(), {}).tolist() == [False, True, True, False]


def test_a_boost_is_a_factor_and_one_where_a_field_is_missing():
    factor = Expressions(FIELDS).factor("is_new ? 1.2 : 1.0", items(), {})
    np.testing.assert_allclose(factor, [1.2, 1, 1, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prize < 2.0", "unknown field 'prize': did you mean 'price'"),
        ("price <", "does not compile: 1:8"),
        ("x" * 1001, "1001 characters, expected at most 1000"),
        ("tags.exists(t, t == 'a')", "macro 'exists'"),
        ("[1, 2].map(x, x) == tags", "macro 'map'"),
        ("[1, 2].//\nall(price, true)", "unknown field 'all'"),
        ('1 == 2 || // "\n [1, 2].all(price, true) // "', "macro 'all'"),
        ('r"\\" == title || [1, 2].all(price, true) || "" == ""', "macro 'all'"),
        ("[1, 2].filter(price, true) == tags", "macro 'filter'"),
        ("[1, 2].exists_one(price, true)", "macro 'exists_one'"),
        ("(" * 60 + "price" + ")" * 60 + " > 1.0", "deeper than 32"),
        ("price" + " + price" * 40 + " > 1.0", "deeper than 32"),
        ("price", "gave 12.5, expected true or false"),
    ],
)
def test_a_filter_is_refused_with_the_reason(text, words):
    with pytest.raises(InputError) as error:
        Expressions(FIELDS).mask(text, items(), {})
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["-1.0", "1000.0", "is_new", '"a"', "0.0 / 0.0"])
def test_a_boost_must_be_a_number_within_bounds(text):
    with pytest.raises(InputError, match=r"expected a number from 0\.01 to 100"):
        Expressions(FIELDS).factor(text, items(), {})


def test_only_items_that_changed_are_evaluated_again(monkeypatch):
    expressions, seen = Expressions(FIELDS), []
    value = Expression.value
    monkeypatch.setattr(Expression, "value", lambda own, fields, user: seen.append(fields) or value(own, fields, user))
    expressions.mask("price < 20.0", items(), {})
    expressions.mask("price < 20.0", items(), {"country": "DE"})
    assert seen == ROWS
    changed = [ROWS[0], {"price": 1.0}, *ROWS[2:], {"price": 2.0}]
    mask = expressions.mask("price < 20.0", items(changed, (0, 7, 0, 0, 8), 8), {})
    assert seen[len(ROWS) :] == [{"price": 1.0}, {"price": 2.0}]
    assert mask.tolist() == [True, True, True, False, True]


def test_what_asks_the_user_is_kept_for_each_user():
    expressions = Expressions(FIELDS)
    text = 'user.vip || category == "Hair"'
    assert expressions.mask(text, items(), {"vip": True}).all()
    assert expressions.mask(text, items(), {"vip": False}).tolist() == [False, False, True, False]


def test_fields_whose_names_are_no_identifiers_cannot_be_used_and_do_no_harm():
    expressions = Expressions(["a-b", "user", "in", "price"])
    assert expressions.fields == ["price"]
