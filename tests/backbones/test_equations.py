"""NCF, NextItNet and GRU4Rec against their equations, written a second time."""

import numpy as np
import pytest
import torch
from tests.oracles import backbones as oracles

from allrec.backbones.base import freeze
from allrec.backbones.gru4rec import GRU4RecConfig
from allrec.backbones.ncf import NCFConfig
from allrec.backbones.nextitnet import NextItNetConfig
from allrec.backbones.registry import KINDS, make_backbone
from allrec.backbones.training import BackboneConfig
from allrec.errors import InputError

SHAPES = {
    "ncf": (NCFConfig(dim=6, hidden=(7, 5)), oracles.ncf),
    "ncf, mean, odd width": (NCFConfig(dim=5, hidden=(4,), pooling_power=1), oracles.ncf),
    "ncf, sum": (NCFConfig(dim=6, hidden=(4, 4, 3), pooling_power=0), oracles.ncf),
    "nextitnet": (NextItNetConfig(dim=6), oracles.nextitnet),
    "nextitnet, other dilations": (NextItNetConfig(dim=4, dilations=(1, 2, 3), kernel=2), oracles.nextitnet),
    "gru4rec": (GRU4RecConfig(dim=6, hidden=5), oracles.gru4rec),
    "gru4rec, two layers": (GRU4RecConfig(dim=4, hidden=7, layers=2), oracles.gru4rec),
}
HISTORIES = [[3], [0, 8, 8], [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 3, 5], [7, 7]]


def with_large_weights(config):
    generator = torch.Generator().manual_seed(0)
    model = make_backbone(9, config, generator)
    for parameter in model.parameters():
        # Larger than at the start, and biases that are not zero, so that every term shows.
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    return freeze(model)


@pytest.mark.parametrize(("config", "oracle"), SHAPES.values(), ids=SHAPES.keys())
def test_equals_plain_numpy(config, oracle):
    model = with_large_weights(config)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    padded = torch.tensor([history + [-1] * (12 - len(history)) for history in HISTORIES])
    states, users = model.states(padded), model.encode(padded)
    for row, history in enumerate(HISTORIES):
        expected = oracle(weights, config, history)
        np.testing.assert_allclose(states[row, : len(history)], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(users[row], expected[-1], rtol=1e-5, atol=1e-5)


def test_ncf_scores_are_the_equations_of_the_paper():
    model = with_large_weights(NCFConfig(dim=6, hidden=(4,), pooling_power=1))
    history, item = [1, 4], 2
    mean = model.history_table[history].mean(dim=0)
    product = (model.product_weight * mean[:3] * model.item_table[item, :3]).sum()
    network = model.network[0](mean[3:]) @ model.item_table[item, 3:]
    score = model.encode(torch.tensor([history]))[0] @ model.item_embeddings()[item]
    torch.testing.assert_close(score, product + network)


def test_nextitnet_reaches_as_far_back_as_its_dilations_and_no_further():
    model = with_large_weights(NextItNetConfig(dim=6, dilations=(1, 4), kernel=3, max_length=50))
    reach = 1 + (3 - 1) * (1 + 2 + 4 + 8)
    history = torch.randint(9, (1, 40), generator=torch.Generator().manual_seed(1))
    for back, is_seen in ((reach - 1, True), (reach, False)):
        changed = history.clone()
        changed[0, 39 - back] = (changed[0, 39 - back] + 1) % 9
        assert torch.equal(model.encode(history), model.encode(changed)) != is_seen


@pytest.mark.parametrize("kind", ["ncf", "nextitnet", "gru4rec"])
def test_dropout_acts_in_training_alone(kind):
    model = with_large_weights(KINDS[kind].config(dropout=0.3))
    history = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.encode(history), model.encode(history))
    model.train()
    assert not torch.equal(model.encode(history), model.encode(history))


@pytest.mark.parametrize("kind", ["ncf", "nextitnet", "gru4rec"])
def test_all_weights_learn_and_padding_gets_no_gradient(kind):
    model = with_large_weights(KINDS[kind].config()).requires_grad_(True)
    (model.states(torch.tensor([[2, 3, -1, -1], [4, 2, 3, 3]]))[:, :2] @ model.item_table[5]).sum().backward()
    assert all(value.grad.isfinite().all() and value.grad.any() for value in model.parameters())
    table = model.history_table if kind == "ncf" else model.item_table
    touched = table.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert touched == ([2, 3, 4] if kind == "ncf" else [2, 3, 4, 5])


def test_the_kind_chooses_and_is_sasrec_where_none_is_named():
    assert BackboneConfig(model={"dim": 6}).model == BackboneConfig(model={"kind": "sasrec", "dim": 6}).model
    for kind, kind_of in KINDS.items():
        given = {"items": "items.npy", "dim": 4} if kind == "external" else {}
        chosen = BackboneConfig(model={"kind": kind, **given}).model
        assert type(chosen) is kind_of.config
        assert type(make_backbone(3, chosen, torch.Generator())).__name__.lower() == kind


def test_unknown_kinds_and_keys_are_refused_with_the_nearest_known():
    with pytest.raises(InputError, match="unknown backbone 'gru': did you mean 'gru4rec'"):
        BackboneConfig(model={"kind": "gru"})
    with pytest.raises(InputError, match="unknown backbone '3'"):
        BackboneConfig(model={"kind": 3})
    with pytest.raises(InputError, match=r"unknown key 'blocks' in NextItNetConfig.*known: dilations, dim"):
        BackboneConfig(model={"kind": "nextitnet", "blocks": 2})
    with pytest.raises(InputError, match="unknown key 'hiden' in GRU4RecConfig: did you mean 'hidden'"):
        BackboneConfig(model={"kind": "gru4rec", "hiden": 2})
    with pytest.raises(InputError, match="items"):
        BackboneConfig(model={"kind": "external"})
