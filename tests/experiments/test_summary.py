"""The numbers of the table, by arithmetic."""

import csv

import numpy as np
import pytest

from allrec.experiments.summary import (
    cell,
    cells,
    correct,
    is_above,
    notes,
    p_text,
    to_csv,
    to_markdown,
)


def test_three_seeds_give_the_interval_over_seeds_and_users():
    # Every user has the seed's value, so that the seeds alone spread: .1 / √3 by the bootstrap with unbiased variance.
    seeds = np.repeat([[0.4], [0.5], [0.6]], 50, axis=1)
    mean, low, high = cell(seeds)
    # The three same seeds are drawn once in 9 of 27 times each, and then the spread is √(3/2) of .1.
    assert (mean, low, high) == (
        pytest.approx(0.5),
        pytest.approx(0.5 - 0.1 * 1.5**0.5),
        pytest.approx(0.5 + 0.1 * 1.5**0.5),
    )
    users = np.tile((np.arange(400) < 200).astype(float), (3, 1))
    mean, low, high = cell(users)
    assert (mean, high - low) == (0.5, pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1))


def test_the_interval_of_a_share_stays_a_share():
    assert cell(np.array([[0.0], [1.0]])) == [0.5, 0.0, 1.0]


def test_one_seed_has_the_interval_over_its_users_and_equal_ones_are_one():
    mean, low, high = cell(np.array([[0.0, 1.0] * 200]))
    # The bootstrap's standard error is .5 / √400.
    assert (mean, high - low) == (0.5, pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1))
    _, low, high = cell(np.array([[0.0, 1.0] * 200]), np.arange(400) % 100)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)


def row(name, difference=0.1, p=0.01, scorer="llm"):
    metrics = {"NDCG@10": [0.5, 0.4, 0.6], "HR@10": [0.7, 0.6, 0.8], "HR@1": [0.3, 0.2, 0.4]}
    test = {metric: {"difference": difference, "ci95": [0, 1], "p": p, "users": 9} for metric in metrics}
    against = None if name == "first" else {metric: dict(one) for metric, one in test.items()}
    return {
        "name": name, "run": name, "scorer": scorer, "llm": "smollm2-135m in place of facebook/opt-6.7b", "seeds": 1,
        "seconds": {"training": 1234.5, "inference": 10.0, "total": 1244.5}, "users": {"valid": 8, "test": 9},
        "valid": metrics, "test": metrics, "new": {name: metrics[name] for name in ("NDCG@10", "HR@1")},
        "against_first": against,
        "against_random_items": test if scorer == "llm" else None,
    }  # fmt: skip


def table(*rows):
    chance = {"NDCG@10": 0.227, "HR@10": 0.5, "HR@1": 0.05}
    return {"dataset": "shop", "protocol": "paper", "seeds": [0], "chance": chance, "rows": rows, "evidence": rows}


def test_a_cell_holds_mean_and_interval_and_the_last_row_is_chance():
    shown = cells(table(row("first"), row("other", -0.02, 0.5)))
    assert shown[0][:4] == ["first", "smollm2-135m in place of facebook/opt-6.7b", "1,234", "10"]
    assert shown[0][4] == "0.5000 [0.400, 0.600]"
    assert (shown[0][-2], shown[1][-2]) == ("", "-0.0200, p = 0.500")
    assert shown[2] == ["chance", "", "", "", *["0.2270", "0.5000", "0.0500"] * 2, "0.2270", "0.0500", "", ""]


def test_a_row_that_is_not_above_exchanged_soft_tokens_is_named():
    said = notes(table(row("first"), row("lucky", 0.1, 0.2), row("worse", -0.1, 0.001)))
    assert any(note.startswith("Above its own") and "1 of 3 rows" in note for note in said)
    assert "NOT above its own llm-random-items: lucky (+0.1000, p = 0.200), worse (-0.1000, p = 0.001)." in said
    shown = cells(table(row("first"), row("lucky", 0.1, 0.2), row("alone", scorer="cf")))
    assert [line[-1] for line in shown] == ["+0.1000, p = 0.010", "+0.1000, p = 0.200, NOT above", "", ""]
    assert any("smollm2-135m in place of" in note for note in said)
    assert not any(note.startswith("NOT") for note in notes(table(row("first"))))
    assert is_above(row("x")["against_random_items"])


def test_not_worse_is_said_where_the_interval_allows_it_and_nowhere_else():
    lines = [row("first"), row("close", -0.001, 0.6), row("unsure", -0.001, 0.6), row("better", 0.1, 0.001)]
    for line, is_not_worse in zip(lines[1:], (True, False, True), strict=True):
        line["against_first"]["HR@1"]["is_not_worse"] = is_not_worse
    shown = cells(table(*lines))
    assert [line[-2] for line in shown[:-1]] == [
        "", "-0.0010, p = 0.600, not worse", "-0.0010, p = 0.600", "+0.1000, p = 0.001",
    ]  # fmt: skip


def test_a_csv_line_begins_with_the_name_whatever_it_holds():
    text = to_csv([row("first"), row('a, "b"\nc')])
    lines = list(csv.reader(text.splitlines(keepends=True)))
    assert lines[0][0] == "recipe"
    assert [line[0] for line in lines[1:]] == ["first", 'a, "b"\nc']
    assert len({len(line) for line in lines}) == 1


def test_a_bar_in_a_name_breaks_no_markdown_table():
    lines = [line for line in to_markdown(table(row("a|b"))).splitlines() if line.startswith("| a")]
    assert lines[0].startswith(r"| a\|b |")


def test_no_p_is_nought():
    assert [p_text(p) for p in (0.00005, 0.001, 0.5)] == ["p < .001", "p = 0.001", "p = 0.500"]


def test_many_rows_are_corrected_together_and_each_metric_by_itself():
    family = [row("a", p=p)["against_first"] for p in (0.02, 0.04, 0.01)]
    for test in family:
        test["HR@1"] = test["HR@1"] | {"p": 0.03}
    correct(family)
    assert [test["NDCG@10"]["p_holm"] for test in family] == pytest.approx([2 * 0.02, 0.04, 3 * 0.01])
    assert [test["HR@1"]["p_holm"] for test in family] == pytest.approx([3 * 0.03] * 3)
    # .03 alone would do; three rows of it do not.
    assert not is_above(family[0])
