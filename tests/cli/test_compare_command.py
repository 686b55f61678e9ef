"""``allrec compare`` and ``allrec report`` as a user calls them."""

import csv

import pytest

from allrec.errors import InputError
from program import call


@pytest.fixture(scope="module")
def compared(small_world, recipe_file, tmp_path_factory):
    """The folder of a comparison, and what the command printed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    options = ("--out", out, "--llm", small_world.llm, "--backbones", "sasrec,ncf")
    return out, call("compare", small_world.dataset, "--recipes", recipe_file, *options)


def test_backbones_alone_and_under_the_recipe_are_one_command_away(compared):
    lines = (compared[0] / "table.csv").read_text().splitlines()
    names = ["sasrec alone", "whole on sasrec", "ncf alone", "whole on ncf"]
    assert [line.partition(",")[0] for line in lines[1:]] == names
    assert all(line.split(",")[1] == scorer for line, scorer in zip(lines[1:], ["cf", "llm"] * 2, strict=True))


def test_the_terminal_shows_the_table_its_notes_and_its_cost(compared):
    said = " ".join(compared[1].split())
    assert "protocol paper" in said
    assert "chance" in said
    assert "NOT above its own llm-random-items: whole on sasrec" in said or "2 of 2 rows" in said
    assert "above them" in said
    assert (compared[0] / "report.html").is_file()


def test_report_writes_the_page_of_a_run(compared, tmp_path):
    said = call("report", compared[0] / "runs" / "whole-on-ncf-seed0", "--out", tmp_path / "page.html")
    assert "page.html" in "".join(said.split())
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "0,one"), "got the seed 'one'"),
        (("--seeds", ""), "at least one"),
        (("--recipes", "a-llmrek"), "did you mean 'a-llmrec'"),
        (("--ablations", "stage9"), "expected one of stage1, stage2"),
    ],
)
def test_a_mistake_gets_one_sentence_and_no_folder(small_world, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        call("compare", small_world.dataset, "--out", tmp_path / "new", *options)
    assert not (tmp_path / "new").exists()


def test_rows_are_compared_over_the_users_that_all_of_them_scored(compared):
    with (compared[0] / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    # A backbone alone scored everybody, the language model the 30 of the recipe.
    assert {row["test_users"] for row in rows} == {"30"}
