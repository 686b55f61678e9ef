"""``allrec compare`` and ``allrec report`` as a user calls them."""

import pytest
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.config import dump_recipe
from allrec.errors import InputError
from worlds import make_world


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    dataset, llm, recipe = make_world(folder)
    (folder / "whole.toml").write_text(dump_recipe(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(folder / "cache"))
        said = call(
            "compare", dataset, "--recipes", folder / "whole.toml", "--out", folder / "out", "--llm", llm,
            "--backbones", "sasrec,ncf",
        )  # fmt: skip
    return folder, dataset, llm, said


def test_backbones_alone_and_under_the_recipe_are_one_command_away(world):
    lines = (world[0] / "out" / "table.csv").read_text().splitlines()
    names = ["sasrec alone", "whole on sasrec", "ncf alone", "whole on ncf"]
    assert [line.partition(",")[0] for line in lines[1:]] == names
    assert all(line.split(",")[1] == scorer for line, scorer in zip(lines[1:], ["cf", "llm"] * 2, strict=True))


def test_the_terminal_shows_the_table_its_notes_and_its_cost(world):
    said = " ".join(world[3].split())
    assert "protocol paper" in said
    assert "chance" in said
    assert "NOT above its own llm-random-items: whole on sasrec" in said or "2 of 2 rows" in said
    assert "above them" in said
    assert (world[0] / "out" / "report.html").is_file()


def test_report_writes_the_page_of_a_run(world, tmp_path):
    said = call("report", world[0] / "out" / "runs" / "whole-on-ncf-seed0", "--out", tmp_path / "page.html")
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
def test_a_mistake_gets_one_sentence_and_no_folder(world, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        call("compare", world[1], "--out", tmp_path / "new", *options)
    assert not (tmp_path / "new").exists()


def test_rows_are_compared_over_the_users_that_all_of_them_scored(world):
    lines = (world[0] / "out" / "table.csv").read_text().splitlines()
    place = lines[0].split(",").index("test_users")
    # A backbone alone scored everybody, the language model the 30 of the recipe.
    assert {line.split(",")[place] for line in lines[1:]} == {"30"}
