"""Large embedding tables, whose sparse gradients cost what a batch looks up and not the size of the table.

A freshly allocated dense gradient of a million items costs several times the rest of a step.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

LARGE = 1 << 20
"""Numbers in a table from which its gradient is sparse."""


def look_up(ids: Int[Tensor, "*places"], table: Float[Tensor, "items dim"]) -> Float[Tensor, "*places dim"]:
    """Rows of a table; of a large one that is itself a parameter, the gradient is sparse.

    Optimizers without sparse gradients need ``DenseGradients`` before each step, as ``training.loop`` has.
    """
    return functional.embedding(ids, table, sparse=table.is_leaf and table.numel() >= LARGE)


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
