"""Two recipes and two seeds side by side: what is shared is trained once, a kill costs nothing, tables say it all."""

import csv
import os
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from allrec.config import dump_recipe
from allrec.errors import InputError
from allrec.experiments import compare as module
from allrec.experiments.compare import COMPARISON, compare, rows_of
from allrec.experiments.summary import Row
from allrec.files import read_json, sha256_file
from allrec.parallel import Processes
from allrec.runs.run_folder import RunFolder
from allrec.runs.stages import STAGES, stage_inputs
from worlds import make_world

OTHER = ("alignment.network.alpha=0.25",)


class World:
    """A tiny data set, two recipes that differ in stage 1, and how often each stage was trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset, self.llm, recipe = make_world(folder)
        network = recipe.alignment.network.model_copy(update={"alpha": 0.25})
        other = recipe.model_copy(update={"alignment": recipe.alignment.model_copy(update={"network": network})})
        self.paths = [folder / "whole.toml", folder / "other.toml"]
        for path, one in zip(self.paths, (recipe, other), strict=True):
            path.write_text(dump_recipe(one))
        self.rows = rows_of([str(path) for path in self.paths])

    def compare(self, out, seeds=(0, 1), watch=module.unwatched, resume=False, rows=None, engine=None):
        return compare(
            self.dataset, rows or self.rows, out, seeds=seeds, llm=str(self.llm), cache=self.folder / "cache",
            watch=watch, resume=resume, engine=engine,
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def compared(world):
    trained = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name, stage in STAGES.items():
            patch.setitem(STAGES, name, replace(stage, train=counting(trained, name, stage.train)))
        result = world.compare(world.folder / "out")
    return world.folder / "out", result, trained


def counting(counter, name, function):
    def counted(*arguments, **options):
        counter[name] += 1
        return function(*arguments, **options)

    return counted


def test_what_rows_share_is_trained_once(compared):
    # Two recipes and two seeds: a backbone a seed, the texts once for all, stages 1 and 2 a run.
    assert compared[2] == {"catalogue": 1, "backbone": 2, "text": 1, "alignment": 4, "language_model": 4}


def test_what_was_taken_over_keeps_its_bytes_seconds_and_origin(compared):
    first, second = (RunFolder.open(compared[0] / "runs" / f"{name}-seed1") for name in ("whole", "other"))
    assert second.manifest["stages"]["backbone"]["adopted"] == "whole-seed1"
    assert second.manifest["stages"]["text"]["adopted"] == "whole-seed0"
    assert second.seconds("backbone") == first.seconds("backbone") > 0
    assert (
        second.verified_folder("backbone")
        .joinpath("model.safetensors")
        .samefile(first.verified_folder("backbone") / "model.safetensors")
    )
    assert "adopted" not in second.manifest["stages"]["alignment"]


def test_a_row_of_a_comparison_is_what_it_is_alone(world, compared, tmp_path):
    alone = world.compare(tmp_path / "alone", seeds=(1,), rows=world.rows[1:])
    assert alone["table"]["rows"][0]["test"].keys() == {"NDCG@10", "HR@10", "HR@1"}
    for stage in ("backbone", "alignment", "language_model"):
        names = (compared[0], tmp_path / "alone")
        shas = {sha256_file(name / "runs" / "other-seed1" / stage / "model.safetensors") for name in names}
        assert len(shas) == 1, stage


def test_seeds_at_the_same_time_give_the_same_table_and_weights(world, compared, tmp_path):
    said = []

    def watch(sentence):
        said.append(sentence)
        return nullcontext(lambda stage, share, values: said.append((stage, share)))

    result = world.compare(tmp_path / "out", engine=Processes(2), watch=watch)
    assert without_seconds(result["table"]) == without_seconds(compared[1]["table"])
    # Here nothing is left to do.
    assert said == ["2 seeds, several at a time", ("seeds", 0.0), ("seeds", 0.5), ("seeds", 1.0)]
    weights = {path.relative_to(compared[0]) for path in (compared[0] / "runs").rglob("model.safetensors")}
    assert len(weights) >= 12
    different = [path for path in weights if sha256_file(tmp_path / "out" / path) != sha256_file(compared[0] / path)]
    assert not different


def test_the_table_is_written_in_three_forms(compared):
    folder, result, _ = compared
    lines = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    header = (folder / "table.csv").read_text().partition(",")[0]
    assert header == "recipe"
    assert [line["recipe"] for line in lines] == ["whole", "other"]
    expected = {f"{split}_{metric}" for split in ("valid", "test") for metric in ("NDCG@10", "HR@10", "HR@1")}
    assert expected | {"training_seconds", "inference_seconds", "against_first_HR@1_p"} <= lines[0].keys()
    assert float(lines[0]["test_HR@1_low"]) <= float(lines[0]["test_HR@1"]) <= float(lines[0]["test_HR@1_high"])
    assert {line["is_above_random_items"] for line in lines} <= {"true", "false"}
    markdown = (folder / "table.md").read_text()
    assert "| other |" in markdown
    assert "llm-random-items" in markdown
    assert read_json(folder / COMPARISON) == result


def test_new_targets_stand_beside_all(compared):
    folder, result, _ = compared
    row = result["table"]["rows"][0]
    rows = [
        one
        for seed in (0, 1)
        for one in read_json(folder / "runs" / f"whole-seed{seed}" / "metrics.json")["results"]
        if (one["split"], one["protocol"], one["scorer"]) == ("test", "paper", row["scorer"])
    ]
    means = {segment: sum(one["HR@1"] for one in rows if one["segment"] == segment) / 2 for segment in ("all", "new")}
    assert (row["test"]["HR@1"][0], row["new"]["HR@1"][0]) == pytest.approx((means["all"], means["new"]))
    users = {one["users"] for one in rows if one["segment"] == "new"}
    assert 0 < min(users) < row["users"]["test"]
    assert "test, new targets HR@1" in (folder / "table.md").read_text()


def test_every_row_is_tested_against_the_first_over_the_same_users(compared):
    first, second = compared[1]["table"]["rows"]
    assert first["against_first"] is None
    test = second["against_first"]["HR@1"]
    assert test["users"] == first["users"]["test"] == 30
    assert test["difference"] == pytest.approx(second["test"]["HR@1"][0] - first["test"]["HR@1"][0])
    assert 0 < test["p"] <= 1


def test_the_scorers_stand_beside_each_other(compared):
    names = [(row["name"], row["scorer"]) for row in compared[1]["table"]["evidence"]]
    assert ("whole", "cf") in names
    assert ("other", "joint") in names


def test_seconds_count_as_if_each_row_ran_alone(compared):
    folder, result, _ = compared
    runs = [RunFolder.open(folder / "runs" / f"other-seed{seed}") for seed in (0, 1)]
    stages = ("backbone", "text", "alignment", "language_model")
    seconds = result["table"]["rows"][1]["seconds"]
    assert seconds["training"] == pytest.approx(sum(run.seconds(stage) for run in runs for stage in stages) / 2)
    assert seconds["total"] == seconds["training"] + seconds["inference"]


def test_its_own_cost_is_measured_without_what_was_taken_over(compared):
    folder, result, _ = compared
    entries = [
        entry
        for path in (folder / "runs").iterdir()
        for entry in RunFolder.open(path).manifest["stages"].values()
        if "adopted" not in entry
    ]
    assert result["seconds"]["stages"] == pytest.approx(sum(entry["seconds"] for entry in entries))
    assert result["seconds"]["compare"] >= result["seconds"]["stages"]


class Killed(BaseException):
    """As deep as a keyboard interrupt."""


@pytest.mark.parametrize("stage", ["backbone", "language_model", "evaluate"])
def test_killed_and_resumed_it_ends_in_the_same_numbers(world, compared, tmp_path, stage):
    killed = []

    def watch(sentence):
        def observer(name, share, values):
            if name == stage and not killed and not sentence.startswith("whole-seed0"):
                killed.append(sentence)
                raise Killed

        return nullcontext(observer)

    with pytest.raises(Killed):
        world.compare(tmp_path / "out", watch=watch)
    with pytest.raises(InputError, match="already holds a comparison"):
        world.compare(tmp_path / "out")
    result = world.compare(tmp_path / "out", resume=True)
    assert without_seconds(result["table"]) == without_seconds(compared[1]["table"])
    assert result["seconds"]["compare"] >= result["seconds"]["stages"] > 0


def without_seconds(table):
    return [{key: row[key] for key in row if key != "seconds"} for row in table["rows"] + table["evidence"]]


def test_more_seeds_join_a_comparison_and_nothing_is_trained_again(world, compared, tmp_path, monkeypatch):
    shutil.copytree(compared[0], tmp_path / "out", copy_function=os.link)
    monkeypatch.setattr("allrec.runs.stages.train_backbone", lambda *_, **__: pytest.fail("trained again"))
    again = world.compare(tmp_path / "out", resume=True)
    assert without_seconds(again["table"]) == without_seconds(compared[1]["table"])
    assert world.compare(tmp_path / "out", seeds=(1,), resume=True)["table"]["seeds"] == [1]


def test_a_folder_of_something_else_is_refused(world, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="does not hold a comparison"):
        world.compare(tmp_path)
    with pytest.raises(InputError, match="each once"):
        world.compare(tmp_path / "out", seeds=(1, 1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("update", "changed"),
    [
        ("seed=7", {"backbone", "alignment", "content", "ensemble", "language_model"}),
        ("backbone.loop.epochs=3", {"backbone", "alignment", "content", "ensemble", "language_model"}),
        ("text.max_tokens=15", {"text", "alignment", "content", "ensemble", "language_model"}),
        ("alignment.network.beta=0.3", {"alignment", "content", "ensemble", "language_model"}),
        ("fusion.evidence.tower.batch_size=32", {"content", "ensemble"}),
        ("fusion.evidence.ensemble=3", {"ensemble"}),
        ("fusion.evidence.depth=50", set()),
        ("prompt.max_history=2", {"language_model"}),
        ("cold_below=2", {"language_model"}),
        ("evaluation.llm_users=10", set()),
        ("name=another", set()),
    ],
)
def test_a_stage_depends_on_what_it_reads(world, tmp_path, update, changed):
    from allrec.config import load_recipe

    facts = {"sha256": "a" * 64, "name": "world"}
    runs = [
        RunFolder.create(tmp_path / name, load_recipe(str(world.paths[0]), sets), facts, {"name": "tiny"}, False)
        for name, sets in (("one", ()), ("two", (update,)))
    ]
    stages = ("catalogue", "backbone", "text", "alignment", "content", "ensemble", "language_model")
    differing = {stage for stage in stages if stage_inputs(runs[0], stage) != stage_inputs(runs[1], stage)}
    assert differing == changed


def test_another_language_model_shares_all_but_stage_2(world, tmp_path):
    recipe, facts = world.rows[0].recipe, {"sha256": "a" * 64, "name": "world"}
    one, two = (
        RunFolder.create(tmp_path / name, recipe, facts, {"name": name, "sha256": name}, False) for name in ("a", "b")
    )
    assert stage_inputs(one, "alignment") == stage_inputs(two, "alignment")
    assert stage_inputs(one, "language_model") != stage_inputs(two, "language_model")


def test_a_refitted_row_counts_the_refit_and_has_no_validation(small_world, tmp_path):
    recipe = small_world.recipe("llm.enabled=false", "refit=valid", 'evaluation.protocols=["paper"]')
    rows = [Row(scorer, "refitted", recipe, scorer) for scorer in ("cf", "cf-refit")]
    result = compare(small_world.dataset, rows, tmp_path / "out", cache=small_world.cache)
    before, after = result["table"]["rows"]
    run = RunFolder.open(tmp_path / "out" / "runs" / "refitted-seed0")
    assert after["seconds"]["training"] == before["seconds"]["training"] + run.seconds("refit")
    assert (set(before["valid"]), after["valid"]) == ({"NDCG@10", "HR@10", "HR@1"}, {})
    assert after["against_first"]["HR@1"]["users"] == before["users"]["test"]
    assert "cf-refit" in {row["scorer"] for row in result["table"]["evidence"]}
