import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.killing import Killed, killed_at
from torch import nn

from allrec.errors import InputError
from allrec.training.loop import LoopConfig, fit

INPUTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def make_module(dropout=0.5):
    generator = torch.Generator().manual_seed(2)
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 1)).double()
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator)
    return module


def make_batches(epoch):
    return list(np.random.default_rng([0, 1, epoch]).permutation(12).reshape(3, 4))


def squared_error(module):
    return lambda rows: (module(INPUTS[rows]).squeeze(-1) - TARGETS[rows]).square().mean()


def train(module, config, **arguments):
    return fit(module, make_batches, squared_error(module), config, **{"seed": 0, "stream": "test", **arguments})


def bytes_of(module):
    return b"".join(value.detach().numpy().tobytes() for value in module.parameters())


def steps_by_hand(config):
    """Gradients of the mean squared error and Adam's update, written out; decay is coupled, clipping by norm."""
    weight, inputs, targets = np.array([1.0, -2.0, 0.5]), INPUTS.numpy(), TARGETS.numpy()
    mean, square, step = np.zeros(3), np.zeros(3), 0
    for epoch in range(config.epochs):
        for rows in make_batches(epoch):
            step += 1
            gradient = 2 / 4 * inputs[rows].T @ (inputs[rows] @ weight - targets[rows])
            if config.gradient_clip:
                gradient = gradient * min(1, config.gradient_clip / (np.linalg.norm(gradient) + 1e-6))
            if config.optimizer == "adam":
                gradient = gradient + config.weight_decay * weight
            else:
                weight = weight * (1 - config.learning_rate * config.weight_decay)
            mean = config.betas[0] * mean + (1 - config.betas[0]) * gradient
            square = config.betas[1] * square + (1 - config.betas[1]) * gradient**2
            scale = np.sqrt(square / (1 - config.betas[1] ** step)) + 1e-8
            weight = weight - config.learning_rate * mean / (1 - config.betas[0] ** step) / scale
    return weight


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"betas": (0.0, 0.5)},
        {"weight_decay": 0.3},
        {"optimizer": "adamw", "weight_decay": 0.3},
        {"gradient_clip": 0.5},
    ],
)
def test_equals_gradient_descent_by_hand(settings):
    config = LoopConfig(epochs=3, learning_rate=0.1, **settings)
    module = nn.Linear(3, 1, bias=False).double()
    module.weight.data.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    report = train(module, config)
    np.testing.assert_allclose(module.weight.detach().numpy()[0], steps_by_hand(config), rtol=1e-9)
    assert (report.steps, report.epochs, report.best_epoch) == (3 * 3, 3, None)


def test_dropout_differs_by_step_and_seed_and_leaves_the_global_generator_alone():
    losses, modules = {0: [], 1: []}, {0: make_module(), 1: make_module()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for seed, module in modules.items():
        # The same batch each time and a learning rate that moves no weight, so only dropout moves the loss.
        fit(
            module,
            lambda epoch: [np.arange(12)] * 4,
            squared_error(module),
            LoopConfig(epochs=1, learning_rate=1e-30),
            seed=seed,
            stream="test",
            on_progress=lambda _, values, seed=seed: losses[seed].append(values["total"]),
        )
    assert len(set(losses[0] + losses[1])) == 2 * 4
    assert torch.equal(torch.rand(3), expected)


def test_only_parameters_with_gradient_learn_and_are_stored(tmp_path):
    module = make_module()
    module[0].requires_grad_(False)
    before = bytes_of(module[0])
    train(module, LoopConfig(epochs=1), checkpoint=tmp_path / "checkpoint")
    assert bytes_of(module[0]) == before
    assert b"parameter/2.weight" in (tmp_path / "checkpoint").read_bytes()
    assert b"parameter/0.weight" not in (tmp_path / "checkpoint").read_bytes()


def scripted(values):
    values = iter(values)
    return lambda: next(values)


@pytest.mark.parametrize(
    ("patience_steps", "least_steps", "epochs"), [(1, 0, 3), (6, 0, 4), (7, 0, 5), (1, 12, 4), (1, 13, 5), (0, 0, 9)]
)
def test_the_best_parameters_are_kept_and_patience_in_steps_ends_training(patience_steps, least_steps, epochs):
    # An epoch is three steps; the second is the best.
    config = LoopConfig(epochs=9, patience_steps=patience_steps, least_steps=least_steps)
    best = make_module()
    train(best, config.model_copy(update={"epochs": 2}))
    module = make_module()
    values = [0.1, 0.3, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0]
    report = train(module, config, validate=scripted(values))
    assert bytes_of(module) == bytes_of(best)
    assert (report.steps, report.epochs, report.best_epoch) == (3 * epochs, epochs, 1)
    assert report.validations == values[:epochs]
    assert not module.training


def test_a_first_epoch_that_is_best_for_a_while_is_not_kept():
    # As on a small data set: the validation falls for three short epochs and then rises far above the first.
    falls_then_rises = [0.5, 0.49, 0.48, 0.49, 0.6, 0.64]
    config = LoopConfig(epochs=6, patience_steps=9, least_steps=15)
    assert train(make_module(), config, validate=scripted(falls_then_rises)).best_epoch == 5
    stopped = train(make_module(), config.model_copy(update={"least_steps": 0}), validate=scripted(falls_then_rises))
    assert stopped.best_epoch == 0


def test_killed_within_an_epoch_patience_ends_where_it_would_have(tmp_path):
    config = LoopConfig(epochs=9, patience_steps=4, checkpoint_every=1)
    values = [0.3, 0.1, 0.1, 0.1]
    whole = train(make_module(), config, validate=scripted(values))
    with pytest.raises(Killed):
        train(make_module(), config, checkpoint=tmp_path / "c", validate=scripted(values), on_progress=killed_at(8))
    # After step 8 patience is used up, and its epoch is finished first all the same.
    assert train(make_module(), config, checkpoint=tmp_path / "c", validate=scripted(values[2:])) == whole


def test_validation_sees_no_dropout_and_no_gradient():
    module = make_module()
    seen = []

    def validate():
        seen.append((module.training, torch.is_grad_enabled()))
        return 0.0

    train(module, LoopConfig(epochs=2), validate=validate)
    assert seen == [(False, False)] * 2


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7, 8, 9, 11, 15])
@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_killed_and_resumed_ends_in_the_same_bytes(tmp_path, step, every):
    config = LoopConfig(epochs=5, learning_rate=0.1, checkpoint_every=every)

    def run(module, **arguments):
        # Any function of the parameters whose best epoch is neither the first nor the last will do.
        return train(module, config, validate=lambda: module[2].weight.sum().mul(9).sin().item(), **arguments)

    whole, killed, resumed = make_module(), make_module(), make_module()
    expected = run(whole)
    with pytest.raises(Killed):
        run(killed, checkpoint=tmp_path / "c", on_progress=killed_at(step))
    assert run(resumed, checkpoint=tmp_path / "c") == expected
    assert bytes_of(resumed) == bytes_of(whole)
    assert 0 < expected.best_epoch < 4


def test_a_finished_run_takes_no_further_step(tmp_path):
    config = LoopConfig(epochs=2)
    first, second = make_module(), make_module()
    whole = train(first, config, checkpoint=tmp_path / "c", validate=scripted([0.2, 0.1]))
    again = train(second, config, checkpoint=tmp_path / "c", validate=scripted([]), on_progress=killed_at(7))
    assert again == whole
    assert bytes_of(first) == bytes_of(second)


SCRIPT = """
import os, signal, sys
from pathlib import Path
from test_loop import LoopConfig, bytes_of, make_module, train
checkpoint, kill_at = Path(sys.argv[1]), int(sys.argv[2])
def on_progress(share, values):
    if values["step"] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
train(make_module(), LoopConfig(epochs=4, checkpoint_every=3), checkpoint=checkpoint, on_progress=on_progress)
"""


def test_a_killed_process_is_resumed_to_the_same_bytes(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "c"), "8"]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    config = LoopConfig(epochs=4, checkpoint_every=3)
    resumed, whole, steps = make_module(), make_module(), []
    train(resumed, config, checkpoint=tmp_path / "c", on_progress=lambda _, values: steps.append(values["step"]))
    train(whole, config)
    assert steps == list(range(3 * 2 + 1, 3 * 4 + 1))
    assert bytes_of(resumed) == bytes_of(whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "c"
    train(make_module(), LoopConfig(epochs=1), checkpoint=checkpoint)
    with pytest.raises(InputError, match="another run: its seed differ"):
        train(make_module(), LoopConfig(epochs=1), checkpoint=checkpoint, seed=1)
    with pytest.raises(InputError, match="its config differ"):
        train(make_module(), LoopConfig(epochs=2), checkpoint=checkpoint)
    with pytest.raises(InputError, match="its parameters differ"):
        train(make_module()[2:], LoopConfig(epochs=1), checkpoint=checkpoint)
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(InputError, match="is no checkpoint of allrec"):
        train(make_module(), LoopConfig(epochs=1), checkpoint=tmp_path / "foreign")
    (tmp_path / "torn").write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        train(make_module(), LoopConfig(epochs=1), checkpoint=tmp_path / "torn")


def test_named_losses_are_reported_with_the_place():
    module, seen = make_module(), []
    fit(
        module,
        make_batches,
        lambda rows: {"total": squared_error(module)(rows), "part": torch.tensor(2.0)},
        LoopConfig(epochs=2),
        seed=0,
        stream="test",
        validate=scripted([0.5, 0.6]),
        on_progress=lambda share, values: seen.append((share, values)),
    )
    assert [values["step"] for _, values in seen] == [1, 2, 3, 4, 5, 6]
    assert all(values["part"] == 2 for _, values in seen)
    assert [share for share, _ in seen] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert [values.get("validation") for _, values in seen] == [None] * 3 + [0.5] * 3


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="no training batch"):
        fit(make_module(), lambda epoch: [], lambda rows: torch.zeros(()), LoopConfig(), seed=0, stream="test")
    module = make_module()
    with pytest.raises(InputError, match="became nan at step 0"):
        fit(
            module,
            make_batches,
            lambda rows: squared_error(module)(rows) * torch.nan,
            LoopConfig(),
            seed=0,
            stream="test",
        )
    with pytest.raises(ValueError, match="validation gave nan after epoch 0"):
        train(module, LoopConfig(), validate=lambda: float("nan"))
    with pytest.raises(ValueError, match="nothing to train"):
        train(make_module().requires_grad_(False), LoopConfig())
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        LoopConfig(learning_rte=1)
