import numpy as np
import pytest
import torch
from torch.nn import functional

from allrec.training.layers import Dropout, dropout


def dropped(share, size=(4, 50_001), seed=0, **made):
    torch.manual_seed(seed)
    return dropout(torch.ones(size, **made), share)


@pytest.fixture(autouse=True)
def _generator_as_it_was():
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_a_share_is_zero_and_the_rest_keeps_the_mean(share):
    values = dropped(share)
    kept = 1 - round(share * 65_536) / 65_536
    # Six standard errors of a share of 200,004 numbers.
    assert (values == 0).float().mean().item() == pytest.approx(share, abs=6 * (share * (1 - share) / 200_004) ** 0.5)
    assert torch.unique(values).tolist() == pytest.approx([0, 1 / kept])


def test_every_place_is_dropped_as_often_and_by_itself():
    # Four numbers share a draw of 64 bits, so each of four neighbours is looked at, with the next three.
    torch.manual_seed(0)
    zeros = (dropout(torch.ones(50_000, 8), 0.3) == 0).double()
    assert (zeros.mean(dim=0) - 0.3).abs().max() < 6 * (0.3 * 0.7 / 50_000) ** 0.5
    correlations = np.corrcoef(zeros.numpy(), rowvar=False) - np.eye(8)
    assert np.abs(correlations).max() < 6 / 50_000**0.5


@pytest.mark.parametrize("size", [(0,), (1,), (3,), (2, 5), (7, 1, 3)])
def test_it_takes_any_shape(size):
    values = dropped(0.5, size)
    assert values.shape == size
    assert set(values.unique().tolist()) <= {0.0, 2.0}


def test_the_gradient_flows_where_numbers_were_kept():
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)).T.requires_grad_()
    values = dropout(x, 0.5)
    values.sum().backward()
    assert torch.equal(x.grad, torch.where(values == 0, 0.0, 2.0))
    assert torch.equal(values, x * x.grad)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_it_keeps_the_kind_of_numbers(kind):
    assert dropped(0.5, dtype=kind).dtype == kind


def test_the_global_generator_decides():
    assert torch.equal(dropped(0.5), dropped(0.5))
    assert not torch.equal(dropped(0.5), dropped(0.5, seed=1))


@pytest.mark.parametrize("share", [0.0, 1e-7])
def test_a_share_of_nothing_leaves_all(share):
    assert torch.equal(dropped(share), torch.ones(4, 50_001))


def test_a_share_just_below_one_leaves_a_number_now_and_then():
    values = dropped(1 - 1e-9)
    assert values.isfinite().all()
    assert 0 < (values != 0).sum() < 40


def test_the_layer_drops_while_training_alone():
    layer, x = Dropout(0.5), torch.ones(1000)
    assert (layer.train()(x) == 0).any()
    assert torch.equal(layer.eval()(x), x)


def test_it_drops_as_much_as_torch_does():
    theirs = functional.dropout(torch.ones(4, 50_001), 0.2)
    ours = dropped(0.2)
    assert ours.max().item() == pytest.approx(theirs.max().item(), rel=1e-4)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
