"""The loss of a choice among candidates, against every candidate run alone by a plain model."""

import numpy as np
import pytest
import torch
from tests.llm.test_adapter import LORA, load, randomized
from tests.llm.test_candidate_scoring import CANDIDATES, about, one_by_one
from tests.tiny import KINDS, save_tiny
from transformers import AutoModelForCausalLM

from allrec.llm.likelihood import choice_loss, take_prompts

TARGETS = np.array([2, 1, 0])
PRIORS = np.where(CANDIDATES >= 0, np.linspace(-30, -10, CANDIDATES.size).reshape(CANDIDATES.shape), -np.inf)
SCALE = 0.3


@pytest.fixture(scope="module", params=KINDS)
def scene(request, tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("llm"), request.param)
    return about(load(folder), AutoModelForCausalLM.from_pretrained(folder).eval())


def loss_of(scene, soft=None, **changed):
    given = {"priors": PRIORS, "targets": TARGETS, "scale": SCALE, **changed}
    soft = scene.soft if soft is None else soft
    return choice_loss(scene.llm, scene.prompts, scene.answers, soft=soft, **given)


def oracle(scores, priors=PRIORS, scale=SCALE):
    """Minus the logarithm of the target's share among exp(scale · (score - prior)), user by user."""
    losses = []
    for row, held, target in zip(scores, priors, TARGETS, strict=True):
        shares = [np.exp(scale * (one - prior)) for one, prior in zip(row, held, strict=True) if np.isfinite(prior)]
        losses.append(-np.log(shares[target] / sum(shares)))
    return np.mean(losses)


def test_loss_is_that_of_every_candidate_run_alone(scene):
    np.testing.assert_allclose(loss_of(scene).item(), oracle(one_by_one(scene)), rtol=1e-5)


@pytest.mark.parametrize("most", [1, 60, 1000])
def test_how_many_are_read_at_once_changes_nothing(scene, most, monkeypatch):
    expected = loss_of(scene)
    monkeypatch.setattr("allrec.llm.likelihood.CACHED_TOKENS", most)
    torch.testing.assert_close(loss_of(scene), expected, rtol=1e-5, atol=1e-6)


def test_a_prior_is_taken_off_its_own_title(scene):
    """Held against its own score everything is as likely, so that a choice among n candidates costs log n."""
    own = one_by_one(scene)
    expected = np.mean(np.log((CANDIDATES >= 0).sum(axis=1)))
    np.testing.assert_allclose(loss_of(scene, priors=own).item(), expected, atol=1e-5)


def test_gradient_is_the_slope_of_the_loss(scene):
    soft = scene.soft.clone().requires_grad_()
    loss_of(scene, soft).backward()
    direction = soft.grad / soft.grad.norm()
    step = 4e-3 * float(scene.soft.norm())
    with torch.no_grad():
        slope = (loss_of(scene, soft + step * direction) - loss_of(scene, soft - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, soft.grad.norm(), rtol=2e-2, atol=1e-5)
    assert (soft.grad != 0).any(1).all()
    assert all(weight.grad is None for weight in scene.llm._model.parameters())


def test_an_adapter_learns_what_dense_weights_would(scene):
    """One step against the gradient lowers the loss by as much as the gradient says, adapter and soft tokens alike."""
    tuned = about(randomized(scene.llm.adapted(LORA, seed=0)), None)
    loss = loss_of(tuned)
    loss.backward()
    step, size = 1e-3, sum(float(weight.grad.square().sum()) for weight in tuned.llm.learning)
    assert size > 0
    with torch.no_grad():
        for weight in tuned.llm.learning:
            weight -= step * weight.grad
    torch.testing.assert_close((loss - loss_of(tuned)).item() / step, size, rtol=5e-2, atol=1e-6)


def test_loss_of_a_batch_is_the_mean_of_its_users(scene):
    losses, offsets = [], np.concatenate([[0], np.cumsum((CANDIDATES >= 0).sum(axis=1))])
    for user in range(3):
        prompts, rows = take_prompts(scene.prompts, np.array([user]))
        answers = scene.answers.take(np.arange(offsets[user], offsets[user + 1]))
        priors, targets, soft = PRIORS[[user]], TARGETS[[user]], scene.soft[torch.from_numpy(rows)]
        losses.append(choice_loss(scene.llm, prompts, answers, priors, targets, soft, SCALE))
    torch.testing.assert_close(loss_of(scene), torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


def test_answers_of_padding_are_refused(scene):
    with pytest.raises(ValueError, match="padding has no answer"):
        loss_of(scene, priors=np.zeros(CANDIDATES.shape))
