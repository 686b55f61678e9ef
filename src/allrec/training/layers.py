"""Layers faster than torch's on a CPU: dropout with cheap random numbers, and large embedding tables.

A freshly allocated dense gradient of a million items costs several times the rest of a step; sparse gradients cost what
a batch looks up and not the size of the table.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from allrec.training.distributed import place
from allrec.training.row_shards import RowShard

SHARES = 1 << 16
"""A share dropped is a multiple of one over this, to the nearest."""
LARGE = 1 << 20
"""Numbers in a table from which its gradient is sparse."""


def dropout(x: Float[Tensor, "*shape"], share: float) -> Float[Tensor, "*shape"]:
    """Sets a share of the numbers to zero and scales the rest, so that the mean stays.

    On a CPU torch draws a number of its own for each, which costs more than a backbone's products of matrices. Here 16
    bits of torch's global generator decide, four numbers a draw.

    Args:
        x: of any shape.
        share: dropped, at least 0 and below 1.
    """
    if share == 0 or x.device.type != "cpu":
        return functional.dropout(x, share)
    dropped = min(round(share * SHARES), SHARES - 1)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    drawn = bits.view(torch.int16)[: x.numel()].view(x.shape)
    is_kept = drawn >= dropped - SHARES // 2
    return x * is_kept.to(x.dtype).mul_(SHARES / (SHARES - dropped))


def attention_with_dropout(
    query: Float[Tensor, "batch heads places head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length head_dim"],
    bias: Float[Tensor, "batch 1 places length"] | None,
    share: float,
) -> Float[Tensor, "batch heads places head_dim"]:
    """Attention, causal without ``bias``, of which a share of the weights is dropped after the softmax.

    On a CPU torch's own writes the weights out too, but draws a number for each.
    """
    if query.device.type != "cpu":
        attend = functional.scaled_dot_product_attention
        return attend(query, key, value, bias, dropout_p=share, is_causal=bias is None)
    logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(2, 3)
    if bias is None:
        bias = torch.full(logits.shape[2:], -torch.inf, dtype=logits.dtype, device=logits.device).triu(1)
    return dropout((logits + bias).softmax(dim=3), share) @ value


class Dropout(nn.Module):
    """``dropout`` while training."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Any shape."""
        return dropout(x, self.share) if self.training else x


def look_up(ids: Int[Tensor, "*places"], table: Float[Tensor, "items dim"]) -> Float[Tensor, "*places dim"]:
    """Rows of a table; of a large one that is itself a parameter, the gradient is sparse, but among several workers.

    Optimizers without sparse gradients need ``DenseGradients`` before each step, as ``training.loop`` has.
    """
    if isinstance(table, RowShard):
        return table.look_up(ids, table.numel() >= LARGE)
    # Workers add up gradients in buffers that are laid out before the first of them.
    is_sparse = table.is_leaf and table.numel() >= LARGE and place().size == 1
    return functional.embedding(ids, table, sparse=is_sparse)


class DenseGradients:
    """Turns sparse gradients into dense ones, as Adam needs them, in memory that is reused from step to step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.touched: dict[str, Tensor] = {}

    def take_over(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replaces every sparse gradient by a dense one, which is valid until the next call."""
        for name, value in parameters.items():
            if value.grad is None or not value.grad.is_sparse:
                continue
            # A CPU adds rows in order. Elsewhere the order is not fixed, so equal rows are summed first.
            sparse = value.grad if value.device.type == "cpu" else value.grad.coalesce()
            if name in self.gradients:
                self.gradients[name].index_fill_(0, self.touched[name], 0)
            else:
                self.gradients[name] = torch.zeros_like(value)
            self.touched[name] = sparse._indices()[0]
            value.grad = self.gradients[name].index_add_(0, self.touched[name], sparse._values())
