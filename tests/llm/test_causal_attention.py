"""Causal attention with a gradient of its own, against attention written out plainly."""

import pytest
import torch

from allrec.llm import attention as module
from allrec.llm.attention import STRIP, causal_attention

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


def ours(*inputs):
    return causal_attention(*inputs, SCALE)


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
