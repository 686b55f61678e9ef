"""The backbone as a stage of a run: every kind is trained, or taken from files, stored, and read back without them."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.backbones.test_importer import PublicLayout
from tests.training.histories import checkerboard, dataset_of

from allrec.backbones import pretrained
from allrec.backbones.pretrained import import_sasrec
from allrec.backbones.registry import KINDS
from allrec.backbones.training import BackboneConfig, backbone_ranks, train_backbone
from allrec.config import load_recipe
from allrec.errors import InputError
from allrec.runs import stages
from allrec.runs.run_folder import RECIPE, RunFolder
from allrec.runs.stages import Training
from allrec.runs.trained_model import TrainedModel, read_backbone

NUM_ITEMS = 12
DATASET = dataset_of(checkerboard(40, NUM_ITEMS, np.random.default_rng(0))[0], NUM_ITEMS)
HISTORIES = torch.tensor([[1, 3, 5, -1], [2, 4, 0, 6], [7, -1, -1, -1]])


def run_stage(folder, *changes):
    recipe = load_recipe("a-llmrec", ("backbone.loop.epochs=2", *changes))
    run = RunFolder.create(folder, recipe, {"name": "small", "sha256": ""}, {"name": "tiny"}, resume=False)
    with run.stage("backbone") as folder:
        stages._train_backbone(Training(TrainedModel(run), DATASET, folder), folder)
    return run


def read(folder):
    return read_backbone(RunFolder.open(folder), NUM_ITEMS)


def report_of(run):
    return json.loads((run.path / "backbone" / "training.json").read_text())


def write_external(folder, with_users=True):
    """Items of one parity alike, and users of the same parity like them; two items and some users are missing."""
    folder.mkdir()
    parity = np.eye(2)[np.arange(NUM_ITEMS) % 2]
    items = np.concatenate([parity, np.random.default_rng(0).normal(0, 0.1, (NUM_ITEMS, 2))], axis=1)
    np.save(folder / "items.npy", items[2:])
    (folder / "item_ids.txt").write_text("".join(f"item {item}\n" for item in range(2, NUM_ITEMS)))
    if with_users:
        users = np.concatenate([10 * np.eye(2)[np.arange(30) % 2] - 5, np.zeros((30, 2))], axis=1)
        np.save(folder / "users.npy", np.concatenate([users, users[:1]]))
        np.save(folder / "user_ids.npy", np.array([*(f"user {user}" for user in range(30)), "a stranger"]))
    keys = ['kind="external"', f'items="{folder / "items.npy"}"']
    keys += [f'users="{folder / "users.npy"}"'] if with_users else []
    return f"backbone.model={{{', '.join(keys)}}}"


def write_checkpoint(path, **shape):
    torch.save(PublicLayout("query", "zeroed", heads=1, num_items=NUM_ITEMS, **shape).state_dict(), path)
    return f'backbone.checkpoint="{path}"'


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "external"])
def test_every_kind_goes_through_the_stage_and_comes_back(tmp_path, kind):
    run = run_stage(tmp_path / "run", f'backbone.model={{kind="{kind}", dim=8}}')
    backbone = read(tmp_path / "run")
    expected = train_backbone(DATASET, run.recipe().backbone, seed=0).model
    assert type(backbone).__name__.lower() == kind
    assert torch.equal(backbone.encode(HISTORIES), expected.encode(HISTORIES))
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_a_run_from_before_there_were_kinds_is_read(tmp_path):
    run = run_stage(tmp_path / "run", "backbone.model.blocks=1")
    expected, recipe = read(tmp_path / "run").encode(HISTORIES), run.recipe()
    text = (run.path / RECIPE).read_text()
    assert 'kind = "sasrec"\n' in text
    (run.path / RECIPE).write_text(text.replace('kind = "sasrec"\n', ""))
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["stages"]["backbone"]["sha256"].pop("model.json")
    manifest.pop("recipe_sha256")
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    (run.path / "backbone" / "model.json").unlink()
    assert torch.equal(read(tmp_path / "run").encode(HISTORIES), expected)
    assert RunFolder.open(run.path).recipe() == recipe


def test_external_embeddings_become_a_run_that_needs_them_no_more(tmp_path):
    run = run_stage(tmp_path / "run", write_external(tmp_path / "made"))
    shutil.rmtree(tmp_path / "made")
    backbone = read(tmp_path / "run")
    assert (backbone.num_items, backbone.dim, backbone.max_length) == (NUM_ITEMS, 4, 50)
    assert not backbone.item_embeddings()[:2].any()
    report = report_of(run)
    assert report["counts"] == {"missing_items": 2, "unknown_items": 0, "missing_users": 10, "unknown_users": 1}
    assert (report["steps"], report["losses"], len(report["validations"])) == (0, [], 1)
    users = backbone.encode(torch.tensor([[3, 5, 7], [4, 6, 8], [-1, -1, -1]]))
    expected = torch.tensor([[-5.0, 5.0, 0, 0], [5.0, -5.0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(users, expected, rtol=0, atol=0.5)


def test_an_ensemble_has_what_others_trained_in_each_training(tmp_path):
    run = run_stage(tmp_path / "run", write_external(tmp_path / "made"))
    shutil.rmtree(tmp_path / "made")
    training = Training(TrainedModel(run), DATASET, tmp_path)
    backbone = stages._further_backbone(training, tmp_path, 1, lambda share, values: None)
    assert torch.equal(backbone.encode(HISTORIES), read(tmp_path / "run").encode(HISTORIES))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("with_users", [True, False])
def test_external_embeddings_recommend_far_above_popularity(tmp_path, with_users):
    recipe = load_recipe("a-llmrec", (write_external(tmp_path / "made", with_users),))
    trained = train_backbone(DATASET, recipe.backbone, seed=0)
    ranks = backbone_ranks(trained.model, DATASET, DATASET.targets["test"], "full-repeat")
    known = DATASET.targets["test"].items >= 2
    # The items of a user's own parity come first.
    assert (ranks[known] < NUM_ITEMS / 2).all()


def test_the_fold_in_reads_each_users_whole_training_history_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDED_TOGETHER", 7)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 9, length).tolist() for length in rng.integers(0, 9, 60)]
    dataset = dataset_of(histories, 9)
    items = rng.normal(size=(9, 2))
    # A library whose users are the means of what they trained on, turned and moved.
    users = np.full((60, 2), 99.0)
    for user in range(60):
        if len(dataset.train_history(user)):
            users[user] = items[dataset.train_history(user)].mean(axis=0) @ [[1, 2], [-3, 1]] + [4, 5]
    for noun, vectors, ids in (("item", items, dataset.item_ids), ("user", users, dataset.user_ids)):
        np.save(tmp_path / f"{noun}s.npy", vectors)
        np.save(tmp_path / f"{noun}_ids.npy", np.array(ids))
    files = {"items": str(tmp_path / "items.npy"), "users": str(tmp_path / "users.npy")}
    config = BackboneConfig(model={"kind": "external", "penalty": 1e-9, **files})
    backbone = train_backbone(dataset, config, seed=0).model
    for user in (0, 8, 33, 59):
        history = torch.from_numpy(dataset.train_history(user).astype(np.int64))[None]
        expected = torch.from_numpy(users[user]).float() if history.numel() else torch.zeros(2)
        torch.testing.assert_close(backbone.encode(history)[0], expected, rtol=1e-3, atol=1e-3)


def test_external_files_that_do_not_fit_are_refused(tmp_path):
    change = write_external(tmp_path / "made")
    config = load_recipe("a-llmrec", (change,)).backbone
    np.save(tmp_path / "made" / "users.npy", np.zeros((31, 3)))
    with pytest.raises(InputError, match="has users 3 wide, the items are 4 wide"):
        train_backbone(DATASET, config, seed=0)
    np.save(tmp_path / "made" / "users.npy", np.zeros((31, 4)))
    np.save(tmp_path / "made" / "items.npy", np.zeros((10, 4)))
    with pytest.raises(
        InputError, match=r"no user of .* has a training interaction with an item that has an embedding"
    ):
        train_backbone(DATASET, config, seed=0)


def test_a_checkpoint_is_taken_and_read_back_without_the_file(tmp_path):
    change = write_checkpoint(tmp_path / "public.pth", dim=6, max_length=4, blocks=3)
    imported = import_sasrec(tmp_path / "public.pth")
    run = run_stage(tmp_path / "run", change)
    (tmp_path / "public.pth").unlink()
    backbone = read(tmp_path / "run")
    # The recipe of the paper says 50, 50 and 2.
    assert (backbone.dim, backbone.max_length, backbone.config.blocks) == (6, 4, 3)
    assert backbone.config.padding == "zeroed"
    assert torch.equal(backbone.encode(HISTORIES), imported.encode(HISTORIES))
    assert (report_of(run)["steps"], report_of(run)["counts"]) == (0, {})


def test_a_checkpoints_heads_and_norm_come_from_the_recipe(tmp_path):
    changes = (write_checkpoint(tmp_path / "public.pth"), "backbone.model.heads=2", "backbone.model.norm=post")
    run_stage(tmp_path / "run", *changes)
    expected = import_sasrec(tmp_path / "public.pth", heads=2, norm="post")
    assert torch.equal(read(tmp_path / "run").encode(HISTORIES), expected.encode(HISTORIES))


def test_a_checkpoint_of_another_catalogue_or_kind_is_refused(tmp_path):
    change = write_checkpoint(tmp_path / "public.pth")
    other = dataset_of([[0, 1, 2, 3]], NUM_ITEMS + 1)
    message = f"public.pth has {NUM_ITEMS} items, data set 'small' has {NUM_ITEMS + 1}. Give one"
    with pytest.raises(InputError, match=message):
        train_backbone(other, load_recipe("a-llmrec", (change,)).backbone, seed=0)
    with pytest.raises(InputError, match="a checkpoint is read for the kind sasrec alone, got ncf"):
        BackboneConfig(model={"kind": "ncf"}, checkpoint="public.pth")
    with pytest.raises(InputError, match=r"no such file: nowhere\.pth"):
        train_backbone(DATASET, BackboneConfig(checkpoint="nowhere.pth"), seed=0)
