"""A run folder's states, what may be resumed, and what is refused."""

import json

import pytest
import torch

from allrec.config import load_recipe
from allrec.errors import InputError, Wording
from allrec.files import save_tensors, write_json
from allrec.runs.run_folder import CHECKPOINT, MANIFEST, METRICS_FILE, RECIPE, RunFolder

RECIPE_OF_TESTS = load_recipe("a-llmrec", ("seed=3",))
DATASET = {
    "name": "shop", "sha256": "a" * 64, "users": 3, "items": 4, "interactions": 9,
    "wording": Wording(noun="song", verb="hear", past="heard").model_dump(),
}  # fmt: skip
LLM = {"name": "tiny", "revision": None, "sha256": "b" * 64}


class Killed(BaseException):
    """As deep as a keyboard interrupt."""


def create(path, recipe=RECIPE_OF_TESTS, dataset=DATASET, llm=LLM, resume=False):
    return RunFolder.create(path, recipe, dataset, llm, resume)


def finish(run, stage="backbone", value=1.0):
    with run.stage(stage) as folder:
        save_tensors(folder / "model.safetensors", {"weight": torch.full((3,), value)})
        write_json(folder / "training.json", {"steps": 3})


def fail_in(run, stage):
    with run.stage(stage) as folder:
        (folder / CHECKPOINT).write_bytes(b"half")
        raise Killed


def test_a_new_run_remembers_what_it_was_begun_with(tmp_path):
    create(tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert run.recipe() == RECIPE_OF_TESTS
    assert run.wording() == Wording(noun="song", verb="hear", past="heard")
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    assert (manifest["format"], manifest["recipe"], manifest["seed"]) == (1, "a-llmrec", 3)
    assert (manifest["dataset"], manifest["llm"], manifest["stages"]) == (DATASET, LLM, {})
    assert manifest["versions"].keys() >= {"allrec", "torch", "transformers"}
    assert f"{torch.get_num_threads()} of " in manifest["machine"]


def test_a_stage_is_missing_then_running_then_done(tmp_path):
    run = create(tmp_path)
    assert run.state() == "just begun"
    with run.stage("backbone") as folder:
        assert folder == tmp_path / "backbone"
        assert "backbone: running" in RunFolder.open(tmp_path).state()
        assert not run.is_done("backbone")
    assert "backbone: done" in RunFolder.open(tmp_path).state()
    assert run.is_done("backbone")
    assert not run.is_done("alignment")


def test_a_done_stage_lists_its_files_and_keeps_no_checkpoint(tmp_path):
    run = create(tmp_path)
    with run.stage("backbone") as folder:
        (folder / CHECKPOINT).write_bytes(b"half")
        (folder / "inner").mkdir()
        save_tensors(folder / "model.safetensors", {"weight": torch.zeros(2)})
    assert set(run.manifest["stages"]["backbone"]["sha256"]) == {"model.safetensors"}
    assert not (tmp_path / "backbone" / CHECKPOINT).exists()
    assert run.verified_folder("backbone") == tmp_path / "backbone"


def test_a_stage_that_failed_stays_running_and_keeps_its_checkpoint(tmp_path):
    run = create(tmp_path)
    with pytest.raises(Killed):
        fail_in(run, "backbone")
    again = RunFolder.open(tmp_path)
    assert not again.is_done("backbone")
    assert "backbone: running" in again.state()
    assert (tmp_path / "backbone" / CHECKPOINT).read_bytes() == b"half"


def test_what_a_kill_left_of_a_file_is_swept_away(tmp_path):
    run = create(tmp_path)
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / ".model.safetensors.123.part").write_bytes(b"half")
    finish(run)
    assert set(run.manifest["stages"]["backbone"]["sha256"]) == {"model.safetensors", "training.json"}
    assert len(list((tmp_path / "backbone").iterdir())) == 2


def test_seconds_add_up_over_attempts(tmp_path, monkeypatch):
    clock = iter([10.0, 14.0, 100.0, 101.5])
    monkeypatch.setattr("allrec.runs.run_folder.time.perf_counter", lambda: next(clock))
    run = create(tmp_path)
    with pytest.raises(Killed):
        fail_in(run, "backbone")
    assert run.seconds("backbone") == 14 - 10
    with RunFolder.open(tmp_path).stage("backbone"):
        pass
    again = RunFolder.open(tmp_path)
    assert again.seconds("backbone") == (14 - 10) + (101.5 - 100)
    assert again.seconds("alignment") == 0


# Resuming


def test_a_run_is_resumed_where_everything_is_as_it_was(tmp_path):
    finish(create(tmp_path))
    run = create(tmp_path, resume=True)
    assert run.is_done("backbone")


def test_resuming_where_there_is_no_run_begins_one(tmp_path):
    assert create(tmp_path / "run", resume=True).recipe() == RECIPE_OF_TESTS


def test_a_run_is_not_overwritten(tmp_path):
    finish(create(tmp_path))
    with pytest.raises(InputError, match=r"already holds a run \(.*backbone: done.*\)\. Go on with it: --resume"):
        create(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"dataset": DATASET | {"sha256": "c" * 64, "name": "other"}},
            r"was trained on data set 'shop' \(aaaaaaaaaaaa\), got 'other' \(cccccccccccc\)\. Give the run's own",
        ),
        ({"llm": LLM | {"sha256": "d" * 64, "name": "other"}}, r"begun with the language model 'tiny' .*, got 'other'"),
        (
            {"recipe": load_recipe("a-llmrec", ("seed=4",))},
            r"begun with another recipe\. Resume with the one in .*recipe",
        ),
    ],
)
def test_a_run_of_something_else_is_not_resumed(tmp_path, changed, message):
    create(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(InputError, match=message):
        create(tmp_path, resume=True, **changed)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_moved_data_set_is_the_same(tmp_path):
    create(tmp_path).check_dataset("a" * 64, "renamed")


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(InputError, match="is in use and holds no run, expected a new or empty folder"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]
    with pytest.raises(InputError, match="is in use"):
        create(tmp_path / "letters.txt")


def test_a_run_that_was_killed_before_its_manifest_may_begin_anew(tmp_path):
    (tmp_path / RECIPE).write_text("half")
    (tmp_path / f".{MANIFEST}.77.part").write_text("half")
    assert create(tmp_path).recipe() == RECIPE_OF_TESTS


# Reading


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no run in .*: it has no manifest.json\. Make one: allrec train DATASET"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("manifest", ['{"format": 99}', "[]", "{}"])
def test_a_run_of_another_version_is_refused(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(InputError, match=r"has run format (99|None), this version reads 1\. Train it anew"):
        RunFolder.open(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path):
    create(tmp_path)
    (tmp_path / MANIFEST).write_text((tmp_path / MANIFEST).read_text()[:50])
    with pytest.raises(InputError, match=r"manifest.json is damaged, expected JSON"):
        RunFolder.open(tmp_path)


def test_a_manifest_that_lacks_something_is_refused(tmp_path):
    run = create(tmp_path)
    del run.manifest["llm"]
    run._write()
    with pytest.raises(InputError, match=r"manifest\.json is damaged: it says nothing of 'llm'"):
        RunFolder.open(run.path)


def test_a_damaged_recipe_is_refused(tmp_path):
    run = create(tmp_path)
    assert run.recipe().seed == 3
    text = (run.path / RECIPE).read_text()
    (run.path / RECIPE).write_text(text.replace("seed = 3", "seed = 4", 1))
    with pytest.raises(InputError, match=r"recipe\.toml is damaged"):
        RunFolder.open(run.path).recipe()


def test_a_missing_stage_says_what_to_do(tmp_path):
    run = create(tmp_path)
    with pytest.raises(
        InputError, match=r"no alignment in .*: stage 'alignment' is 'missing'\. Resume with: allrec train"
    ):
        run.verified_folder("alignment")
    with pytest.raises(Killed):
        fail_in(run, "alignment")
    with pytest.raises(InputError, match=r"stage 'alignment' is 'running'\. Resume with: .* --run .* --resume"):
        run.verified_folder("alignment")


def test_a_damaged_artifact_is_refused(tmp_path):
    run = create(tmp_path)
    finish(run)
    path = tmp_path / "backbone" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model.safetensors is damaged: its sha256 is"):
        RunFolder.open(tmp_path).verified_folder("backbone")
    path.unlink()
    with pytest.raises(InputError, match=r"no such file: .*model.safetensors"):
        run.verified_folder("backbone")


def test_metrics_are_read_where_they_are(tmp_path):
    run = create(tmp_path)
    with pytest.raises(InputError, match=r"no such file: .*metrics.json"):
        run.metrics()
    write_json(tmp_path / METRICS_FILE, {"format": 1})
    assert run.metrics() == {"format": 1}
