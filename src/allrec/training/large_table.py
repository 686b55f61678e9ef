"""Tables of which a batch looks up few rows: their gradients cost what was looked up, not what they hold.

A dense gradient of a million items in new memory costs several times what the work of a batch does.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from allrec.training.distributed import place

LARGE = 1 << 20
"""Numbers in a table from which its gradient is sparse."""


def look_up(ids: Int[Tensor, "*places"], table: Float[Tensor, "items dim"]) -> Float[Tensor, "*places dim"]:
    """Rows of a table; of a large one that is itself a parameter, the gradient is sparse, but among several workers.

    Optimizers that know dense gradients alone need ``DenseGradients`` before each step, as ``training.loop`` has.
    """
    # Workers add up gradients in buffers that are laid out before the first of them.
    is_sparse = table.is_leaf and table.numel() >= LARGE and place().size == 1
    return functional.embedding(ids, table, sparse=is_sparse)


class DenseGradients:
    """Sparse gradients as dense ones, which Adam steps by, in memory that stays from step to step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.touched: dict[str, Tensor] = {}

    def take_over(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Puts a dense gradient in place of every sparse one; it is good until the next is taken over."""
        for name, value in parameters.items():
            if value.grad is None or not value.grad.is_sparse:
                continue
            # A processor adds rows one after the other. Elsewhere they are summed first, as no order is sure there.
            sparse = value.grad if value.device.type == "cpu" else value.grad.coalesce()
            if name in self.gradients:
                self.gradients[name].index_fill_(0, self.touched[name], 0)
            else:
                self.gradients[name] = torch.zeros_like(value)
            self.touched[name] = sparse._indices()[0]
            value.grad = self.gradients[name].index_add_(0, self.touched[name], sparse._values())
