"""A stage that another run has done, taken over: its files, checksums, seconds and origin."""

import json
import os

import pytest
import torch

from allrec.config import load_recipe
from allrec.errors import InputError, Wording
from allrec.files import link_or_copy, load_tensors, save_tensors
from allrec.runs.run_folder import CHECKPOINT, RunFolder

DATASET = {"name": "shop", "sha256": "a" * 64, "wording": Wording().model_dump()}


def create(path):
    return RunFolder.create(path, load_recipe("a-llmrec"), DATASET, {"name": "tiny"}, False)


@pytest.fixture
def trained(tmp_path):
    run = create(tmp_path / "trained")
    with run.stage("backbone") as folder:
        save_tensors(folder / "model.safetensors", {"weight": torch.ones(3)})
        (folder / "inner").mkdir()
        (folder / "inner" / "config.json").write_text("{}")
    return run


def test_files_checksums_seconds_and_origin_come_along(tmp_path, trained):
    run, last = create(tmp_path / "run"), create(tmp_path / "last")
    run.adopt("backbone", trained)
    last.adopt("backbone", RunFolder.open(tmp_path / "run"))
    again = RunFolder.open(tmp_path / "last")
    assert (again.verified_folder("backbone") / "model.safetensors").samefile(
        trained.path / "backbone" / "model.safetensors"
    )
    assert (again.verified_folder("backbone") / "inner" / "config.json").read_text() == "{}"
    assert again.seconds("backbone") == trained.seconds("backbone") > 0
    noted = json.loads((tmp_path / "last" / "manifest.json").read_text())["stages"]["backbone"]
    assert noted["adopted"] == "trained"


def test_a_half_trained_stage_gives_way(tmp_path, trained):
    run = create(tmp_path / "run")
    (run.path / "backbone").mkdir()
    (run.path / "backbone" / CHECKPOINT).write_bytes(b"half")
    run.adopt("backbone", trained)
    assert run.is_done("backbone")
    assert not (run.path / "backbone" / CHECKPOINT).exists()


def test_writing_anew_leaves_the_other_runs_bytes_alone(tmp_path, trained):
    run = create(tmp_path / "run")
    run.adopt("backbone", trained)
    save_tensors(run.path / "backbone" / "model.safetensors", {"weight": torch.zeros(3)})
    assert load_tensors(trained.verified_folder("backbone") / "model.safetensors")["weight"].tolist() == [1, 1, 1]


def test_what_is_not_done_or_damaged_is_not_taken_over(tmp_path, trained):
    run = create(tmp_path / "run")
    with pytest.raises(InputError, match="stage 'text' is 'missing'"):
        run.adopt("text", trained)
    (trained.path / "backbone" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="is damaged"):
        run.adopt("backbone", trained)
    assert not run.is_done("backbone")


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    (tmp_path / "one").write_text("text")
    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "one", tmp_path / "deep" / "two")
    assert (tmp_path / "deep" / "two").read_text() == "text"
    assert not (tmp_path / "one").samefile(tmp_path / "deep" / "two")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["two"]
