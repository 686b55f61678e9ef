"""Causal attention with a gradient of its own, against attention written out plainly."""

import pytest
import torch
from tests.tiny import load_tiny
from torch import nn

from allrec.llm import attention as module
from allrec.llm import loading
from allrec.llm.attention import STRIP, causal_attention, gradients_wanted_at, wanted_places

SCALE = 0.3
LENGTH = 2 * STRIP + 5
NAMES = ("query", "key", "value")


def plainly(query, key, value):
    """Softmax over all earlier places, written out; autograd finds the gradient."""
    scores = query @ key.mT * SCALE
    is_ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(is_ahead, -torch.inf).softmax(-1) @ value


def with_gradients(attend, length=LENGTH):
    """What comes out, and the gradients of a weighted sum of it; laid out as a model lays them out."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, length, 3, 4, generator=generator).transpose(1, 2).requires_grad_() for _ in NAMES]
    attended = attend(*inputs)
    weights = torch.randn(attended.shape, generator=generator)
    return attended, torch.autograd.grad((attended * weights).sum(), inputs)


def ours(*inputs, is_first=False):
    return causal_attention(*inputs, SCALE, is_first=is_first)


@pytest.mark.parametrize("length", [2, STRIP, LENGTH])
def test_it_equals_attention_written_out(length):
    for got, expected in zip(with_gradients(ours, length), with_gradients(plainly, length), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_where_weights_are_too_many_to_keep_the_built_in_gradient_is_taken(monkeypatch):
    expected = with_gradients(plainly)
    monkeypatch.setattr(module, "KEPT_WEIGHTS", 2 * 3 * LENGTH**2 - 1)
    monkeypatch.setattr(module._Kept, "apply", lambda *_: pytest.fail("weights were kept"))
    for got, wanted in zip(with_gradients(ours), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_a_first_layer_has_gradients_where_they_are_wanted_alone():
    is_wanted = torch.zeros(2, LENGTH, dtype=torch.bool)
    is_wanted[0, [0, 3, 70, LENGTH - 1]] = True
    is_wanted[1, 9] = True
    attended, gradients = with_gradients(plainly)
    with gradients_wanted_at(is_wanted):
        got, found = with_gradients(lambda *inputs: ours(*inputs, is_first=True))
        _, elsewhere = with_gradients(ours)
    torch.testing.assert_close(got, attended, atol=1e-5, rtol=1e-4)
    for name, part, expected in zip(NAMES, found, gradients, strict=True):
        at_places = expected * is_wanted[:, None, :, None]
        torch.testing.assert_close(part, at_places, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(elsewhere, gradients, atol=1e-5, rtol=1e-4)


def test_places_of_low_weight_before_one_of_overwhelming_weight_do_not_overflow():
    is_wanted = torch.tensor([[True, False, True]])
    inputs = [torch.full((1, 1, 3, 2), 1.0) for _ in NAMES]
    inputs[1][0, 0, 2] = 1e4  # as a key before it, this would be e^6000
    inputs = [part.requires_grad_() for part in inputs]
    with gradients_wanted_at(is_wanted):
        found = torch.autograd.grad(ours(*inputs, is_first=True).sum(), inputs)
    assert all(part.isfinite().all() for part in found)
    # The first place sees itself alone; the last one sees itself alone as well, by its weight.
    torch.testing.assert_close(found[2][0, 0, :, 0], torch.tensor([1.0, 0.0, 1.0]) + torch.tensor([0.5, 0, 0]))


def test_wanted_places_are_forgotten_outside_and_after_the_first_attention():
    with gradients_wanted_at(torch.ones(1, 2, dtype=torch.bool)):
        ours(*(torch.ones(1, 1, 2, 4) for _ in NAMES), is_first=True)
        assert wanted_places() is None
    with gradients_wanted_at(torch.ones(1, 1, dtype=torch.bool)):
        pass
    assert wanted_places() is None


def test_frozen_linear_layers_before_attention_have_gradients_where_they_are_wanted_alone():
    generator = torch.Generator().manual_seed(0)
    is_wanted = torch.rand(2, 5, generator=generator) < 0.4
    inputs = torch.randn(2, 5, 3, generator=generator, requires_grad=True)
    frozen, bare, learning = nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.Linear(3, 4)
    factor = torch.randn(2, 5, 4, generator=generator)

    def gradient(layer, places):
        with gradients_wanted_at(places):
            outputs = layer(inputs)
        return outputs, torch.autograd.grad((outputs * factor).sum(), inputs)[0]

    for layer in (frozen.requires_grad_(False), bare.requires_grad_(False)):
        outputs, expected = gradient(layer, None)
        got, found = gradient(layer, is_wanted)
        torch.testing.assert_close(got, outputs)
        torch.testing.assert_close(found, expected * is_wanted[:, :, None])
    # One that learns needs every place; and rows that are no batch of places are none of its business.
    torch.testing.assert_close(gradient(learning, is_wanted)[1], gradient(learning, None)[1])
    torch.testing.assert_close(gradient(frozen, is_wanted[:, :1])[1], gradient(frozen, None)[1])


def test_an_attention_that_is_not_ours_takes_the_wanted_places_as_well(tmp_path):
    llm = load_tiny(tmp_path)
    attention = llm._model.base_model.layers[0].self_attn
    states = torch.zeros(1, 4, 2, 8)
    with gradients_wanted_at(torch.ones(1, 2, dtype=torch.bool)):
        # No gradient is asked for, so the built-in one attends.
        loading._attention(attention, states, states[:, :2], states[:, :2], None)
        assert wanted_places() is None
