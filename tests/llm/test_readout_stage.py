"""The read-out stage: that it learns, that nothing else moves, and that a kill leaves no trace."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.killing import Killed, killed_at
from tests.oracles import readout as oracle
from tests.runs.test_stages import TITLES, bytes_of, make_backbone
from tests.tiny import load_tiny
from tests.training.histories import checkerboard, dataset_of

from allrec.backbones.base import freeze, represent_users
from allrec.backbones.training import drawn_shares, shared_negatives
from allrec.errors import InputError
from allrec.evaluation.ranks import dot_product_ranks
from allrec.llm import readout_training as stage
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.llm.readout import ReadOutConfig
from allrec.llm.readout_training import Reader, ReadOutStageConfig, train_readout
from allrec.llm.soft_token_training import new_soft_tokens
from allrec.llm.soft_tokens import SoftTokensConfig
from allrec.training.loop import LoopConfig

NUM_ITEMS = 12


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("llm"))


def scene_of(llm, histories, **options):
    dataset = replace(dataset_of(histories, NUM_ITEMS), titles=TITLES)
    layout = {"begin": llm.begin, "end": llm.end, "max_length": llm.max_length}
    config = PromptConfig(**({"max_history": 5} | options))
    builder = PromptBuilder(llm.encode, TITLES, dataset.wording, config, **layout)
    backbone = make_backbone(NUM_ITEMS)
    joint = torch.from_numpy(np.random.default_rng(1).normal(size=(NUM_ITEMS, 10))).float()
    soft_tokens = freeze(new_soft_tokens(torch.randn(20, 8), joint, llm, SoftTokensConfig(), 0))
    reader = Reader(llm, builder, backbone, joint, joint, soft_tokens)
    return SimpleNamespace(dataset=dataset, backbone=backbone, joint=joint, reader=reader)


@pytest.fixture(scope="module")
def board(llm):
    """Each user has all items of one parity but one, so that the rest of the parity is what comes next."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return scene_of(llm, checkerboard(160, NUM_ITEMS, np.random.default_rng(0))[0])


def config_of(epochs=2, checkpoint_every=1, **settings):
    loop = LoopConfig(epochs=epochs, learning_rate=1e-2, checkpoint_every=checkpoint_every)
    return ReadOutStageConfig(**({"head": ReadOutConfig(dim=16), "batch_tokens": 400, "loop": loop} | settings))


def train_on(scene, config, **arguments):
    return train_readout(scene.dataset, scene.reader, config, **({"seed": 0} | arguments))


def vectors_of(scene, readout, split):
    targets = scene.dataset.targets[split]
    users = represent_users(scene.backbone, scene.dataset, targets.users, targets.positions)
    pairs = zip(targets.users, targets.positions, strict=True)
    return scene.reader.read(readout, users, [scene.dataset.history(user)[:place] for user, place in pairs], 400)


@pytest.mark.parametrize(("soft_tokens", "share"), [("frozen", 0.45), ("trained", 0.85)])
def test_a_checkerboard_is_learned(board, soft_tokens, share):
    """Protocol full leaves eight items, two of them of the user's parity, the target among them: chance is 2 / 8."""
    readout, report = train_on(board, config_of(5, soft_tokens=soft_tokens))
    assert report.losses[-1] < 0.8 * report.losses[0]
    targets = board.dataset.targets["test"]
    items = readout.items(board.joint)
    ranks = dot_product_ranks(vectors_of(board, readout, "test"), items, board.dataset, targets, "full")
    assert (ranks <= 1).mean() > share
    assert not readout.training
    assert not any(parameter.requires_grad for parameter in readout.parameters())


@pytest.mark.parametrize("soft_tokens", ["frozen", "trained"])
def test_nothing_moves_but_the_head(board, soft_tokens):
    reader = board.reader
    frozen = (reader.llm._model, board.backbone, reader.soft_tokens)
    before = [bytes_of(module) for module in frozen]
    readout, _ = train_on(board, config_of(1, soft_tokens=soft_tokens))
    assert [bytes_of(module) for module in frozen] == before
    assert all(parameter.grad is None for module in frozen for parameter in module.parameters())
    assert not reader.llm._model.training
    untrained = stage.new_readout(torch.zeros(2, 8), reader, config_of(soft_tokens=soft_tokens), 0)
    for name, parameter in untrained.named_parameters():
        assert not torch.equal(parameter, readout.get_parameter(name)), f"{name} did not learn"
    assert (readout.soft_tokens is None) == (soft_tokens == "frozen")


def test_the_control_is_the_same_head_on_user_representations(board, monkeypatch):
    """It learns, and never asks the language model, whose vector stays as it began."""
    monkeypatch.setattr(stage, "read_out", None)
    head = ReadOutConfig(dim=16, reads="user")
    readout, report = train_on(board, config_of(8, head=head))
    assert report.losses[-1] < report.losses[0]
    untrained = stage.new_readout(torch.zeros(1, 8), board.reader, config_of(head=head), 0)
    assert torch.equal(readout.vector, untrained.vector)
    users = torch.randn(3, 8)
    read = board.reader.read(readout, users, [np.array([0]), np.array([1, 2]), np.array([3])], 100)
    torch.testing.assert_close(read, readout.users(users))


def test_the_same_seed_gives_the_same_bytes(board):
    made = [bytes_of(train_on(board, config_of(1), seed=seed)[0]) for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert made[0] != made[2]


@pytest.mark.parametrize(("step", "settings"), [(1, {}), (3, {"soft_tokens": "trained", "sampled_softmax_above": 5})])
def test_killed_and_resumed_it_ends_in_the_same_bytes(board, tmp_path, step, settings):
    config = config_of(checkpoint_every=2, sample=60, batch_tokens=200, **settings)
    whole, report = train_on(board, config)
    assert report.steps > 4
    with pytest.raises(Killed):
        train_on(board, config, checkpoint=tmp_path / "c", on_progress=killed_at(step))
    resumed, again = train_on(board, config, checkpoint=tmp_path / "c")
    assert bytes_of(resumed) == bytes_of(whole)
    assert again == report


def test_batch_equals_single_and_order_changes_nothing(board):
    readout, _ = train_on(board, config_of(1))
    targets = board.dataset.targets["test"].take(np.arange(6))
    users = represent_users(board.backbone, board.dataset, targets.users, targets.positions)
    histories = [board.dataset.history(user)[: 1 + user] for user in range(6)]
    together = board.reader.read(readout, users, histories, 10_000)
    for row, history in enumerate(histories):
        alone = board.reader.read(readout, users[row : row + 1], [history], 1)
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)
    back = board.reader.read(readout, users.flip(0), histories[::-1], 40)
    torch.testing.assert_close(back.flip(0), together, atol=1e-4, rtol=1e-4)


def test_losses_are_those_of_the_equations(board):
    """One step on one batch, against plain NumPy."""
    seen = []
    config = config_of(1, batch_tokens=100_000, head=ReadOutConfig(dim=16, distillation=0.5, uniformity=0.25))
    train_on(board, config, on_progress=lambda _, values: seen.append(values))
    values = seen[0]
    weighted = values["retrieval"] + 0.5 * values["distillation"] + 0.25 * values["uniformity"]
    assert values["total"] == pytest.approx(weighted, rel=1e-6)
    readout = stage.new_readout(torch.zeros(1, 8), board.reader, config, 0)
    vectors, targets = torch.randn(3, 16), np.array([0, 5, 11])
    with torch.no_grad():
        items = readout.items(board.joint)
        loss = stage._retrieval(board.dataset, board.joint, config)(readout, vectors, targets, None)
    assert loss.item() == pytest.approx(oracle.retrieval(vectors.numpy(), targets, items.numpy()), rel=1e-5)


def test_a_sample_weighs_each_negative_by_its_expected_count(board):
    config = config_of(sampled_softmax_above=NUM_ITEMS - 1, num_negatives=7)
    readout = stage.new_readout(torch.zeros(1, 8), board.reader, config, 0)
    vectors, targets = torch.randn(3, 16), np.array([0, 5, 11])
    counts = board.dataset.train_counts() + 1.0
    shares = counts / counts.sum()
    drawn, log_expected = shared_negatives(drawn_shares(board.dataset.train_counts()), 7, np.random.default_rng(4))
    np.testing.assert_allclose(log_expected.exp(), 7 * shares[drawn], rtol=1e-5)
    with torch.no_grad():
        items = readout.items(board.joint).numpy()
        loss = stage._retrieval(board.dataset, board.joint, config)(readout, vectors, targets, np.random.default_rng(4))
    total = 0.0
    for user, target in zip(vectors.numpy(), targets, strict=True):
        others = [item for item in drawn if item != target]
        mass = sum(np.exp(user @ items[item]) / (7 * shares[item]) for item in others)
        total += np.log(np.exp(user @ items[target]) + mass) - user @ items[target]
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


def test_the_best_epoch_on_validation_is_kept(board):
    readout, report = train_on(board, config_of(3))
    assert len(report.validations) == 3
    targets = board.dataset.targets["valid"]
    ranks = dot_product_ranks(
        vectors_of(board, readout, "valid"), readout.items(board.joint), board.dataset, targets, "full"
    )
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)
    assert gains.mean() == pytest.approx(max(report.validations))


def test_a_prompt_of_bare_text_is_read_too(llm):
    scene = scene_of(llm, [[0, 1, 2, 3, 4], [5, 6, 7, 8]], soft_token="none", has_user=False)
    _, report = train_on(scene, config_of(1))
    assert report.steps > 0


def test_without_validation_targets_the_last_epoch_is_kept(llm):
    _, report = train_on(scene_of(llm, [[0, 1], [2, 3]]), config_of(1))
    assert (report.steps, report.validations) == (1, [])


def test_without_examples_it_is_refused(llm):
    with pytest.raises(InputError, match="small has no user with two training interactions"):
        train_on(scene_of(llm, [[0, 1, 2], [1]]), config_of())
