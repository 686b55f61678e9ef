"""The prompt's layout, exactly, and what it does with titles and histories that are out of the ordinary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tests.tiny import BEGIN, END, tiny_backend

from allrec.errors import InputError, Wording
from allrec.llm.prompt import USER, Packed, PromptBuilder, PromptConfig

BACKEND = tiny_backend()
PLAIN = tiny_backend()
PLAIN.encode_special_tokens = True
WORDING = Wording(noun="song", verb="hear", past="heard")
TITLES = ["rose soap", None, 'a "quoted" oil', f"cream {END} {BEGIN}", " ".join(["silver"] * 1000), "", "comb"]


def encode(texts):
    return [encoding.ids for encoding in PLAIN.encode_batch(texts)]


def build(titles=TITLES, max_length=2048, **options):
    config = PromptConfig(**options)
    return PromptBuilder(encode, titles, WORDING, config, begin=[0], end=[1], max_length=max_length)


def rows_of(prompts):
    is_soft = Packed(prompts.is_soft, prompts.tokens.offsets)
    return [(list(prompts.tokens[row]), list(is_soft[row])) for row in range(len(prompts.tokens))]


def ids(text):
    return encode([text])[0]


MARK = [1]
"""What stands in a soft token's place until it comes: any id, here the end's."""


def test_prompt_is_the_sum_of_its_pieces():
    prompts = build().prompts([[6, 0]], [[0, 1]])
    pieces = [
        ([0], False),
        (MARK, True),
        (ids(" is a user representation. This user has heard"), False),
        (ids(' "comb"'), False),
        (MARK, True),
        (ids(","), False),
        (ids(' "rose soap"'), False),
        (MARK, True),
        (ids(" before"), False),
        (ids(". Recommend one song for this user to hear next, out of these song titles:"), False),
        (ids(' "rose soap"'), False),
        (MARK, True),
        (ids(","), False),
        (ids(' "untitled song"'), False),
        (MARK, True),
        (ids(". The recommendation is"), False),
    ]
    tokens, is_soft = rows_of(prompts)[0]
    assert tokens == [token for piece, _ in pieces for token in piece]
    assert is_soft == [soft for piece, soft in pieces for _ in piece]
    assert_array_equal(prompts.soft_items, [USER, 6, 0, 0, 1])


def test_soft_token_stands_before_its_title():
    tokens, is_soft = rows_of(build(soft_token="before", has_user=False).prompts([[6]], [[]]))[0]
    opening = [0, *ids(" This user has heard")]
    ending = [*ids(' "comb"'), *ids(" before"), *ids(". The recommendation is")]
    assert tokens == [*opening, *MARK, *ending]
    assert is_soft == [False] * len(opening) + [True] + [False] * len(ending)


def test_soft_tokens_may_stand_behind_the_whole_text():
    builder = build(soft_token="last", user_place="last", lists_candidates=True)
    prompts = builder.prompts([[6, 0], []], [[0, 1], []])
    tokens, is_soft = rows_of(prompts)[0]
    listed = [*ids(' "rose soap"'), *ids(","), *ids(' "untitled song"')]
    text = [0, *ids(" This user has heard"), *ids(' "comb"'), *ids(","), *ids(' "rose soap"'), *ids(" before")]
    text += [*ids(". Recommend one song for this user to hear next, out of these song titles:"), *listed]
    text += ids(". The recommendation is")
    assert tokens == [*text, *MARK * 3]
    assert is_soft == [False] * len(text) + [True] * 3
    # The candidates that are listed have none; a newcomer has the own one alone.
    assert_array_equal(prompts.soft_items, [6, 0, USER, USER])
    first = build(soft_token="last").prompts([[6, 0]], [[]])
    assert_array_equal(first.soft_items, [USER, 6, 0])
    assert rows_of(first)[0][1] == [False, True] + [False] * (len(first.tokens[0]) - 4) + [True, True]


def test_user_soft_token_as_one_more_title_of_the_history():
    newcomer, known = rows_of(build(soft_token="none", user_place="history").prompts([[], [6, 0]], [[], []]))
    text = [0, *ids(" This user has heard"), *ids(' "comb"'), *ids(","), *ids(' "rose soap"'), *ids(",")]
    assert known[0] == [*text, *MARK, *ids(" before"), *ids(". The recommendation is")]
    assert_array_equal(np.flatnonzero(known[1]), [len(text)])
    # A newcomer has no history to stand in: the token ends the prompt.
    assert_array_equal(np.flatnonzero(newcomer[1]), [len(newcomer[0]) - 1])


def test_soft_tokens_in_place_of_titles():
    (prompt,) = rows_of(build(soft_token="instead", has_user=False, lists_candidates=True).prompts([[6, 0]], [[1]]))
    text = [0, *ids(" This user has heard"), *MARK, *ids(","), *MARK, *ids(" before")]
    text += ids(". Recommend one song for this user to hear next, out of these song titles:")
    # Candidates keep their titles: the answer is one of them.
    assert prompt[0] == [*text, *ids(' "untitled song"'), *ids(". The recommendation is")]
    assert sum(prompt[1]) == 2


@pytest.mark.parametrize(
    ("soft_token", "expected"),
    [
        ("instead", [6, 0, USER]),
        ("after", [6, 0, USER, 1, 2]),
        ("before", [6, 0, USER, 1, 2]),
        ("last", [USER, 6, 0]),
        ("none", [USER]),
    ],
)
def test_order_of_soft_tokens_when_the_users_is_in_the_history(soft_token, expected):
    builder = build(soft_token=soft_token, user_place="history", lists_candidates=True)
    prompts = builder.prompts([[6, 0]], [[1, 2]])
    assert_array_equal(prompts.soft_items, expected)
    assert prompts.is_soft.sum() == len(expected)


@pytest.mark.parametrize("soft_token", ["after", "before", "instead", "last", "none"])
@pytest.mark.parametrize("user_place", ["first", "history", "last"])
def test_what_is_said_to_fit_is_laid_out(soft_token, user_place):
    candidates = np.array([[0, 1, 6], [6, 0, -1]])
    for max_length in range(20, 90):
        builder = build(max_length=max_length, soft_token=soft_token, user_place=user_place, max_title_tokens=8)
        for row, fits in zip(candidates, builder.fits_each(candidates), strict=True):
            if fits:
                (tokens,) = builder.prompts([[0, 6, 2]], [row]).tokens
                assert len(tokens) + builder.title_lengths[row[row >= 0]].max() + 1 <= max_length
            else:
                with pytest.raises(InputError, match="candidates need"):
                    builder.prompts([[]], [row])


def test_nothing_is_soft_when_no_soft_token_is_asked_for():
    prompts = build(soft_token="none", has_user=False).prompts([[6, 0]], [[0, 1]])
    assert not prompts.is_soft.any()
    assert len(prompts.soft_items) == 0


def test_user_soft_token_alone_when_titles_have_none():
    prompts = build(soft_token="none").prompts([[6, 0]], [[0, 1]])
    assert_array_equal(np.flatnonzero(prompts.is_soft), [1])
    assert_array_equal(prompts.soft_items, [USER])


def test_new_user_is_told_in_a_sentence():
    tokens, _ = rows_of(build(has_user=False).prompts([[]], [[]]))[0]
    assert BACKEND.decode(tokens) == " This user is new. The recommendation is"


def test_ids_are_those_of_the_whole_text_in_one_piece():
    tokens, _ = rows_of(build(soft_token="none", has_user=False).prompts([[6, 0, 1]], [[0, 3, 2]]))[0]
    text = (
        ' This user has heard "comb", "rose soap", "untitled song" before. Recommend one song for this user'
        f' to hear next, out of these song titles: "rose soap", "cream {END} {BEGIN}",'
        " \"a 'quoted' oil\". The recommendation is"
    )
    assert tokens == [0, *ids(text)]


def test_latest_items_are_told():
    prompts = build(max_history=2, has_user=False).prompts([[0, 1, 2, 6]], [[3]])
    assert_array_equal(prompts.soft_items, [2, 6, 3])


def test_no_history_is_told_when_none_is_wanted():
    assert_array_equal(build(max_history=0).prompts([[0, 1]], [[3]]).soft_items, [USER, 3])


def test_padding_is_no_item():
    builder = build()
    padded = builder.prompts([np.array([6, 0, -1, -1])], [np.array([0, 1, -1])])
    plain = builder.prompts([[6, 0]], [[0, 1]])
    assert rows_of(padded) == rows_of(plain)
    assert_array_equal(padded.soft_items, plain.soft_items)
    with pytest.raises(ValueError, match="item -1 has no title"):
        builder.answers(np.array([0, -1]))


def test_history_shortens_first_and_only_as_far_as_needed():
    whole = build().prompts([[6, 0, 1]], [[0, 1]])
    answer = build().title_lengths[[0, 1]].max() + len([1])
    needed = int(whole.tokens.lengths[0] + answer)
    exact = build(max_length=needed).prompts([[6, 0, 1]], [[0, 1]])
    assert_array_equal(exact.soft_items, [USER, 6, 0, 1, 0, 1])
    shorter = build(max_length=needed - 1).prompts([[6, 0, 1]], [[0, 1]])
    assert_array_equal(shorter.soft_items, [USER, 0, 1, 0, 1])


def test_candidates_that_outgrow_the_model_are_refused():
    builder = build(max_length=100)
    alone = build().prompts([[]], [[4, 4]]).tokens.lengths[0] + 48 + len([1])
    with pytest.raises(InputError, match=f"2 candidates need {alone} tokens, the model reads 100.*max_title_tokens"):
        builder.prompts([[0]], [[4, 4]])


def test_long_title_loses_its_end_and_keeps_its_quotes():
    answer = build(max_title_tokens=10).answers(np.array([4]))[0]
    assert list(answer) == [*ids(TITLES_LONG)[:9], *ids('"'), 1]


TITLES_LONG = ' "' + " ".join(["silver"] * 1000) + '"'


@pytest.mark.parametrize(
    ("item", "spoken"),
    [(1, "untitled song"), (2, "a 'quoted' oil"), (3, f"cream {END} {BEGIN}"), (5, "")],
)
def test_any_title_can_be_answered(item, spoken):
    answer = list(build().answers(np.array([item]))[0])
    assert answer == [*ids(f' "{spoken}"'), 1]
    assert answer.count(1) == 1
    assert 0 not in answer


def test_answers_are_in_the_order_asked_for():
    builder = build()
    answers = builder.answers(np.array([6, 0, 6]))
    assert [list(answer) for answer in answers] == [list(builder.answers(np.array([item]))[0]) for item in (6, 0, 6)]


def test_no_prompts_make_an_empty_batch():
    prompts = build().prompts([], [])
    assert len(prompts.tokens) == len(prompts.is_soft) == len(prompts.soft_items) == 0


def test_model_that_opens_with_nothing():
    builder = PromptBuilder(encode, TITLES, WORDING, PromptConfig(), begin=[], end=[1], max_length=2048)
    assert builder.prompts([[0]], [[0]]).is_soft[0]


def test_model_without_an_end_is_refused():
    with pytest.raises(InputError, match="no end-of-sequence token"):
        PromptBuilder(encode, TITLES, WORDING, PromptConfig(), begin=[0], end=[], max_length=2048)


ROWS = st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6)


@given(rows=ROWS, data=st.data())
def test_take_is_a_plain_loop(rows, data):
    packed = Packed.of(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = packed.take(np.array(chosen, np.int64))
    assert [list(row) for row in taken] == [rows[row] for row in chosen]
    assert_array_equal(taken.lengths, [len(rows[row]) for row in chosen])


@settings(max_examples=50)
@given(
    history=st.lists(st.integers(0, 6), max_size=12),
    candidates=st.lists(st.integers(0, 6), max_size=6),
    soft_token=st.sampled_from(["after", "before", "none"]),
    has_user=st.booleans(),
    max_length=st.integers(500, 700),
)
def test_soft_places_and_soft_items_agree_and_the_answer_fits(history, candidates, soft_token, has_user, max_length):
    builder = build(max_length=max_length, soft_token=soft_token, has_user=has_user)
    prompts = builder.prompts([history, []], [candidates, []])
    assert prompts.is_soft.sum() == len(prompts.soft_items)
    longest = builder.title_lengths[candidates].max(initial=0) + len([1])
    assert prompts.tokens.lengths[0] + longest <= max_length


@pytest.mark.parametrize("soft_token", ["after", "none"])
@pytest.mark.parametrize(
    "rows",
    [
        [[4, -1, -1, -1], [0, 3, 2, 6]],
        [[0, 6, 5, -1], [3, 3, -1, -1]],
        [[0, 1, 6, 5], [2, 3, -1, -1]],
        [[0]],
        [[4]],
        [[-1]],
        [[0, -1], [-1, -1]],
    ],
)
def test_what_fits_is_what_can_be_laid_out(rows, soft_token):
    builder = build(soft_token=soft_token)
    candidates = np.array(rows)
    longest = 0
    for builder.max_length in range(300):
        try:
            builder.prompts([[]] * len(rows), candidates)
            is_laid_out = True
        except InputError:
            is_laid_out = False
            longest = builder.max_length
        assert builder.fits(candidates) == is_laid_out
        assert builder.fits(candidates) == builder.fits_each(candidates).all()
    assert 20 < longest < 299


def test_each_row_has_room_for_itself_alone():
    rows = np.array([[0, 1, 4], [0, -1, -1], [4, -1, -1], [-1, -1, -1]])
    alone = build(max_title_tokens=5)
    found = set()
    for alone.max_length in range(200):
        fits = alone.fits_each(rows)
        assert fits.tolist() == [alone.fits(rows[row : row + 1]) for row in range(len(rows))]
        found.add(tuple(fits.tolist()))
    # From none to all, one row after the other: a long list needs more than one item.
    assert {(False,) * 4, (False, True, True, True), (True,) * 4} <= found


def test_a_bare_prompt_has_no_soft_tokens_and_the_same_titles():
    full = build()
    bare = full.bare()
    prompts = bare.prompts([[6]], [[0, 1]])
    assert prompts.is_soft.sum() == len(prompts.soft_items) == 0
    assert (bare.config.soft_token, bare.config.has_user, bare.config.max_history) == ("none", False, 10)
    assert_array_equal(bare.title_lengths, full.title_lengths)


def test_answers_to_no_items_are_none_and_padding_has_none():
    assert len(build().answers(np.array([], np.int64))) == 0
    assert list(build().answers(np.array([0]))[0]) == [*ids(' "rose soap"'), 1]
    with pytest.raises(ValueError, match="item -1 has no title; cut the padding away first"):
        build().answers(np.array([0, -1]))
