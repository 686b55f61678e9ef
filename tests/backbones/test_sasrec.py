import itertools

import numpy as np
import pytest
import torch
from tests.oracles import sasrec as oracle

from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.errors import InputError

SHAPES = list(itertools.product(["query", "pre", "post"], ["unseen", "zeroed", "carried"], [1, 2]))


def make_model(seed=0, **settings):
    config = SASRecConfig(**{"dim": 6, "blocks": 2, "max_length": 5, "dropout": 0.3, **settings})
    generator = torch.Generator().manual_seed(seed)
    model = SASRec(9, config, generator)
    for parameter in model.parameters():
        # Larger weights than at the start, and biases that are not zero, so that every term shows.
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    return freeze(model)


@pytest.mark.parametrize(("norm", "padding", "heads"), SHAPES)
def test_equals_plain_numpy(norm, padding, heads):
    model = make_model(norm=norm, padding=padding, heads=heads)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    histories = [[3], [0, 8, 8], [1, 2, 3, 4, 5], [7, 7]]
    padded = torch.tensor([history + [-1] * (5 - len(history)) for history in histories])
    states = model.states(padded)
    users = model.encode(padded)
    for row, history in enumerate(histories):
        expected = oracle.states(weights, model.config, history)
        np.testing.assert_allclose(states[row, : len(history)], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(users[row], expected[-1], rtol=1e-5, atol=1e-5)


def test_shapes_differ_from_each_other():
    history = torch.tensor([[1, 2, 3]])
    users = [make_model(norm=n, padding=p, heads=h).encode(history) for n, p, h in SHAPES]
    for first, second in itertools.combinations(users, 2):
        assert not torch.allclose(first, second, atol=1e-3)


def test_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (make_model(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_new_weights_have_glorots_variance():
    model = SASRec(400, SASRecConfig(dim=100, blocks=1), torch.Generator().manual_seed(0))
    assert model.item_table.std().item() == pytest.approx((2 / (400 + 100)) ** 0.5, rel=0.05)
    assert model.blocks[0].attention.query.weight.std().item() == pytest.approx((2 / (100 + 100)) ** 0.5, rel=0.05)
    assert not model.blocks[0].attention.query.bias.any()


def test_padding_gets_no_gradient():
    model = make_model(dropout=0).requires_grad_(True).train()
    model.states(torch.tensor([[2, 3, -1, -1], [4, 2, 3, 3]]))[0, :2].sum().backward()
    assert model.item_table.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [2, 3]
    assert all(value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("padding", ["zeroed", "carried"])
def test_gradients_are_finite_where_nothing_is_padded(padding):
    model = make_model(padding=padding).requires_grad_(True)
    model.states(torch.tensor([[1, 2, 3, 4, 5], [1, -1, -1, -1, -1]])).square().sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


def test_dropout_acts_in_training_alone():
    model = make_model()
    history = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.encode(history), model.encode(history))
    model.train()
    assert not torch.equal(model.encode(history), model.encode(history))


@pytest.mark.parametrize(("norm", "padding", "heads"), SHAPES)
def test_attention_while_training_is_that_of_use_where_nothing_is_dropped(norm, padding, heads):
    # A share so small that no number is dropped: attention's weights are written out, where use has torch's own.
    model = make_model(norm=norm, padding=padding, heads=heads, dropout=1e-7)
    histories = torch.tensor([[3, -1, -1, -1], [0, 8, 8, -1], [1, 2, 3, 4]])
    used, trained = model.states(histories), model.train().states(histories)
    torch.testing.assert_close(trained[histories >= 0], used[histories >= 0])


def test_dropped_attention_differs_from_step_to_step():
    model = make_model(dropout=0.5).train()
    for block in model.blocks:
        block.network[1].share = block.network[4].share = 0.0
    model.dropout.share = 0.0
    first, second = (model.states(torch.tensor([[1, 2, 3]])) for _ in range(2))
    assert not torch.equal(first, second)


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="dim must be a multiple of heads, got 50 and 3"):
        SASRecConfig(heads=3)
