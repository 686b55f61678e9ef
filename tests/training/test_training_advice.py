"""What messages of the training loop and of files advise, done."""

import resource

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.remedies import refused
from tests.training.test_loop import make_module, train
from tests.worlds import QUICK
from torch import nn

from allrec.backbones.training import train_backbone
from allrec.config import load_recipe
from allrec.data import prepare
from allrec.files import (
    FullError,
    check_sha256,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    staging,
    write_json,
    write_text,
)
from allrec.training.loop import LoopConfig, fit


def test_a_checkpoint_is_resumed_as_it_was_made_or_removed(tmp_path):
    path = tmp_path / "c"
    train(make_module(), LoopConfig(epochs=1), checkpoint=path)
    with refused("Resume with the settings it was made with, or remove the file to train anew."):
        train(make_module(), LoopConfig(epochs=1), checkpoint=path, seed=1)
    assert train(make_module(), LoopConfig(epochs=1), checkpoint=path).epochs == 1
    path.unlink()
    assert train(make_module(), LoopConfig(epochs=1), checkpoint=path, seed=1).epochs == 1


def test_a_foreign_checkpoint_is_removed(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with refused("it has no record of progress. Remove it to train anew."):
        train(make_module(), LoopConfig(epochs=1), checkpoint=tmp_path / "foreign")
    (tmp_path / "foreign").unlink()
    assert train(make_module(), LoopConfig(epochs=1), checkpoint=tmp_path / "foreign").epochs == 1


SLOPES = [np.array([slope]) for slope in (1.0, -1.0) * 5 + (1e6,) + (1.0, -1.0) * 10]


class Cliff(nn.Module):
    """A slope of 1 up and down, one step of a million; the loss is infinite further than 0.3 from where it began."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, slopes):
        is_over = self.place.abs() > 0.3
        return (self.place * torch.from_numpy(slopes)).masked_fill(is_over, torch.inf).mean()


@pytest.mark.parametrize("remedy", [{"learning_rate": 0.01}, {"gradient_clip": 1.0}])
def test_a_loss_that_explodes_is_calmed(remedy):
    def train_on_a_cliff(**setting):
        config = LoopConfig(**{"epochs": 1, "learning_rate": 0.1, "gradient_clip": 0} | setting)
        module = Cliff()
        return fit(module, lambda epoch: SLOPES, module, config, seed=0, stream="cliff")

    with refused("Lower learning_rate, or set gradient_clip (1.0 is usual)."):
        train_on_a_cliff()
    assert train_on_a_cliff(**remedy).steps == len(SLOPES)


def test_users_get_histories_to_learn_from(tmp_path):
    def learn(rows):
        (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id", *rows]))
        dataset = prepare(tmp_path / "log.csv", tmp_path / "out")
        return train_backbone(dataset, load_recipe("a-llmrec", QUICK).backbone, seed=0)

    with refused("expected at least one. Does every user have too short a history?"):
        learn([f"{user},{item}" for user in "uvw" for item in "abc"])
    learn([f"{user},{item}" for user in "uvw" for item in "abcdef"])


# Files


def test_the_folder_that_was_meant_is_given(tmp_path):
    with refused("Is this the folder that you meant?"):
        read_json(tmp_path / "metrics.json")
    write_json(tmp_path / "metrics.json", {})
    assert read_json(tmp_path / "metrics.json") == {}


def test_damaged_files_are_made_anew(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with refused("is damaged, expected JSON: {}. Make the folder anew."):
        read_json(tmp_path / "a.json")
    write_json(tmp_path / "a.json", [1])
    assert read_json(tmp_path / "a.json") == [1]
    (tmp_path / "a.safetensors").write_bytes(b"torn")
    with refused("expected a safetensors file: {}. Make it anew."):
        load_tensors(tmp_path / "a.safetensors")
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    whole = sha256_file(tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")["a"].item() == 1
    (tmp_path / "a.safetensors").write_bytes(b"torn")
    with refused("is damaged: its sha256 is {}…, expected {}…. Make it anew."):
        check_sha256(tmp_path / "a.safetensors", whole)
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    check_sha256(tmp_path / "a.safetensors", whole)


def test_missing_files_are_made_or_another_folder_given(tmp_path):
    with refused("Train again, or give the right folder."):
        load_tensors(tmp_path / "a.safetensors")
    with refused("It is named in the manifest; make the folder anew."):
        check_sha256(tmp_path / "a.safetensors", "0" * 64)
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    whole = sha256_file(tmp_path / "a.safetensors")
    check_sha256(tmp_path / "a.safetensors", whole)
    assert load_tensors(tmp_path / "a.safetensors")["a"].item() == 1
    assert sha256_file(tmp_path / "a.safetensors") == whole


def test_another_folder_is_given_where_something_else_lies(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")

    def make(folder):
        with staging(folder, lambda path: (path / "set").is_file(), "data set") as new:
            write_text(new / "set", "1")

    with refused("it is left as it is. Give another --out."):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    make(tmp_path / "other")
    assert (tmp_path / "other" / "set").read_text() == "1"


def test_space_is_freed_and_the_command_run_again(tmp_path):
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
    try:
        with refused("Free some space, or give another place, and run the command again", error=FullError):
            write_text(tmp_path / "a", "1" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "a", "1" * 100)
    assert (tmp_path / "a").read_text() == "1" * 100
