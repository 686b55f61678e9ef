import torch
from torch import nn
from torch.nn import functional

from allrec.training import layers
from allrec.training.layers import DenseGradients, look_up


def gradients_of(table, ids, gradients=None):
    table.grad = None
    weights = torch.arange(1.0, ids.numel() + 1).view(*ids.shape, 1)
    (look_up(ids, table) * weights).sum().backward()
    if gradients is not None:
        gradients.take_over({"table": table})
    return table.grad


def test_a_large_table_has_the_dense_gradient_step_after_step(monkeypatch):
    table, gradients = nn.Parameter(torch.randn(9, 3)), DenseGradients()
    steps = [[[1, 1, 4], [8, 1, 0]], [[2, 2, 2], [2, 2, 2]], [], [[5, 4, 3], [2, 1, 0]], [[8, 8, 7], [0, 0, 0]]]
    for step in steps:
        ids = torch.tensor(step, dtype=torch.int64)
        monkeypatch.setattr(layers, "LARGE", 1)
        sparse = gradients_of(table, ids, gradients).clone()
        # What clipping does to the gradient must not be there at the next step.
        table.grad.mul_(0.5)
        monkeypatch.setattr(layers, "LARGE", 1 << 20)
        assert torch.equal(sparse, gradients_of(table, ids))


def test_only_a_large_parameter_has_a_sparse_gradient(monkeypatch):
    monkeypatch.setattr(layers, "LARGE", 27)
    ids = torch.tensor([1, 1, 0])
    assert gradients_of(nn.Parameter(torch.randn(9, 3)), ids).is_sparse
    assert not gradients_of(nn.Parameter(torch.randn(8, 3)), ids).is_sparse
    table = nn.Parameter(torch.randn(9, 3))
    look_up(ids, table * 2).sum().backward()
    assert not table.grad.is_sparse


def test_a_dense_gradient_and_none_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(layers, "LARGE", 1)
    table, other = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2))
    gradients, ids = DenseGradients(), torch.tensor([1, 4])
    gradients_of(table, ids, gradients)
    table.grad = None
    # Looked up and used whole: the sum is dense already.
    (look_up(ids, table).sum() + (table * 3).sum()).backward()
    gradients.take_over({"table": table, "other": other})
    assert other.grad is None
    assert torch.equal(table.grad, 3 + functional.one_hot(ids, 5).sum(dim=0)[:, None].expand(5, 2))
    assert torch.equal(gradients_of(table, ids, gradients)[:, 0], torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0]))
