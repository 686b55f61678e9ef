"""Soft tokens: their size, their scale, and that they go where they belong and nowhere else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from allrec.llm.soft_tokens import Projection, SoftTokens, insert


@pytest.fixture(autouse=True)
def _fixed_start():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@given(is_marker=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_insert_touches_its_places_alone(is_marker):
    is_marker = torch.tensor(is_marker)
    embeddings = torch.arange(is_marker.numel() * 3.0).reshape(*is_marker.shape, 3)
    soft = -1 - torch.arange(int(is_marker.sum()) * 3.0).reshape(-1, 3)
    expected, following = embeddings.clone(), iter(soft)
    for row, place in is_marker.nonzero().tolist():
        expected[row, place] = next(following)
    before = embeddings.clone()
    assert torch.equal(insert(embeddings, is_marker, soft), expected)
    assert torch.equal(embeddings, before)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_insert_refuses_a_wrong_count(count):
    is_marker = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match=f"2 places for {count} soft tokens; was it truncated"):
        insert(torch.zeros(1, 3, 4), is_marker, torch.zeros(count, 4))


def test_insert_refuses_a_wrong_width():
    with pytest.raises(ValueError, match="soft tokens are 5 wide, the model's embeddings 4"):
        insert(torch.zeros(1, 2, 4), torch.tensor([[True, False]]), torch.zeros(1, 5))


def test_gradient_reaches_each_soft_token_from_its_own_place():
    soft = torch.zeros(2, 3, requires_grad=True)
    weights = torch.arange(12.0).reshape(1, 4, 3)
    (insert(torch.zeros(1, 4, 3), torch.tensor([[False, True, False, True]]), soft) * weights).sum().backward()
    assert torch.equal(soft.grad, weights[0, [1, 3]])


def test_soft_tokens_take_the_precision_of_the_embeddings():
    mixed = insert(torch.zeros(1, 1, 2, dtype=torch.bfloat16), torch.tensor([[True]]), torch.ones(1, 2))
    assert mixed.dtype == torch.bfloat16


def test_projection_equals_its_equation():
    projection = Projection(3, 4, nn.LeakyReLU(), 0.5)
    inputs = torch.randn(6, 3) * 3 + 1
    projection.standardize(inputs)
    weights = {name: value.detach().numpy().astype(np.float64) for name, value in projection.state_dict().items()}
    x = inputs.numpy().astype(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    x = x @ weights["inner.weight"].T + weights["inner.bias"]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = np.where(x > 0, x, 0.01 * x)
    expected = x @ weights["outer.weight"].T + weights["outer.bias"]
    np.testing.assert_allclose(projection(inputs).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_soft_tokens_begin_at_about_the_models_own_size(scale):
    soft = SoftTokens(50, 128, 256, scale)
    for tokens in (soft.user(torch.randn(200, 50)), soft.item(torch.randn(200, 128))):
        size = tokens.square().mean().sqrt().item()
        assert 0.6 * scale < size < 0.9 * scale


@pytest.mark.parametrize("value", [0.1, 1 / 3, 123.456])
def test_feature_that_never_varies_is_centred_and_not_scaled(value):
    """Rounding gives such a column a deviation of 1e-8 and more."""
    projection = Projection(1, 4, nn.GELU())
    projection.standardize(torch.full((6141, 1), value))
    assert projection.deviation.item() == 1
    assert projection.mean.item() == pytest.approx(value)


def test_centre_and_scale_are_saved_and_do_not_learn():
    projection = Projection(2, 4, nn.GELU())
    assert {"mean", "deviation"} <= set(projection.state_dict())
    assert not {"mean", "deviation"} & {name for name, _ in projection.named_parameters()}
