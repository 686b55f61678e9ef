"""Which rows a comparison has, and under which names and folders."""

import pytest

from allrec.config import dump_recipe, load_recipe
from allrec.errors import InputError
from allrec.experiments.compare import STAGE_ONE, STAGE_TWO, rows_of
from allrec.experiments.summary import run_name


def test_the_read_out_head_stands_beside_its_control():
    first, head, control = rows_of(["a-llmrec"], ablations="readout")
    assert (first.scorer, head.scorer, control.scorer) == ("llm", "readout", "readout")
    head, control = (row.recipe.readout for row in (head, control))
    assert (head.head.reads, control.head.reads) == ("llm", "user")
    assert control.model_copy(update={"head": head.head}) == head


def test_a_recipe_is_a_row_called_by_its_name_or_its_file(tmp_path):
    (tmp_path / "mine.toml").write_text(dump_recipe(load_recipe("a-llmrec", ("prompt.max_history=3",))))
    rows = rows_of(["a-llmrec", str(tmp_path / "mine.toml")], sets=("cold_below=4",))
    assert [(row.name, row.recipe.name, row.scorer) for row in rows] == [
        ("a-llmrec", "a-llmrec", "llm"), ("mine", "mine", "llm"),
    ]  # fmt: skip
    assert [row.recipe.prompt.max_history for row in rows] == [10, 3]
    assert {row.recipe.cold_below for row in rows} == {4}
    assert run_name(rows[1], 7) == "mine-seed7"


@pytest.mark.parametrize(("stage", "table"), [("stage1", STAGE_ONE), ("stage2", STAGE_TWO)])
def test_the_whole_recipe_comes_before_its_ablations(stage, table):
    rows = rows_of(ablations=stage)
    assert [row.name for row in rows] == ["a-llmrec", *table]
    assert len({row.recipe.model_dump_json(exclude={"name"}) for row in rows}) == len(rows)


def test_what_an_ablation_sets_wins_over_set():
    rows = rows_of(ablations="stage2", sets=("prompt.has_user=true",))
    assert {row.name: row.recipe.prompt.has_user for row in rows}["no-user"] is False


def test_each_backbone_stands_alone_and_under_the_recipe_in_one_run():
    alone, under, *rest = rows_of(["a-llmrec", "infonce"], backbones=("sasrec", "gru4rec"))
    assert (alone.name, alone.scorer, under.name, under.scorer) == (
        "sasrec alone", "cf", "a-llmrec on sasrec", "llm",
    )  # fmt: skip
    assert alone.run == under.run
    assert [row.name for row in rest] == ["gru4rec alone", "a-llmrec on gru4rec", "infonce"]
    assert rest[0].recipe.backbone.model.kind == "gru4rec"


@pytest.mark.parametrize(
    ("recipes", "options", "message"),
    [
        (["a-llmrec", "a-llmrec"], {}, "two rows have the name 'a-llmrec'"),
        (["a-llmrek"], {}, "did you mean 'a-llmrec'"),
        ([], {}, "at least one"),
        (["a-llmrec"], {"ablations": "stage3"}, "expected one of stage1, stage2"),
        (["a-llmrec"], {"ablations": "stage1", "backbones": ("ncf",)}, "expected one of them"),
        (["a-llmrec"], {"sets": ("sead=1",)}, "did you mean 'seed'"),
        (["a-llmrec"], {"backbones": ("svd",)}, "svd"),
    ],
)
def test_what_makes_no_table_is_refused(recipes, options, message):
    with pytest.raises(InputError, match=message):
        rows_of(recipes, **options)


def test_a_name_that_is_no_folder_name_becomes_one(tmp_path):
    (tmp_path / "a b:c.toml").write_text(dump_recipe(load_recipe("a-llmrec")))
    (row,) = rows_of([str(tmp_path / "a b:c.toml")])
    assert (row.name, row.run) == ("a b:c", "a-b-c")
