"""A frozen language model that does not fit: its layers, embeddings and head lie in parts over the workers of a group.

Torch's ``fully_shard`` has each worker hold a part of every matrix, and makes a layer whole while it is read. Workers
read layers at the same time, so each must read as often as the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from allrec.errors import InputError
from allrec.training.distributed import place


class ShardedHead(nn.Module):
    """The head's logits of weights that are made whole for one product: its own, or those of the input embeddings.

    Args:
        holder: has the weights, in parts.
        is_tied: whether that is the module that reads tokens.
    """

    def __init__(self, holder: nn.Module, is_tied: bool) -> None:
        super().__init__()
        # In a list, since weights that two modules share are parameters of one of them.
        self.holders, self.own = [holder], None if is_tied else holder

    @property
    def weight(self) -> Tensor:
        """In parts."""
        weight: Tensor = self.holders[0].get_parameter("weight")
        return weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states."""
        logits: Tensor = _Product.apply(hidden, self.holders[0])  # type: ignore[no-untyped-call]
        return logits


class _Product(torch.autograd.Function):
    """States times a frozen matrix that is whole only meanwhile."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, holder: Any) -> Tensor:
        ctx.holder = holder
        holder.unshard()
        product = functional.linear(hidden, holder.weight, getattr(holder, "bias", None))
        holder.reshard()
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.holder.unshard()
        own = gradient @ ctx.holder.weight
        ctx.holder.reshard()
        return own, None


def sharded(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The model with its layers, embeddings and head in parts over this process's group; norms and positions are whole.

    Args:
        model: a causal model with its head, on the CPU, whose weights may lie in a mapped file.
        dtype: of the weights; a layer is converted as it is taken apart, so that no second whole copy is made.
        device: where the parts go.

    Raises:
        InputError: its head is no matrix product.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = getattr(head, "weight", None) is table.weight
    if not isinstance(head, nn.Linear) or (is_tied and head.bias is not None):
        raise InputError(
            f"got a head of the kind {type(head).__name__} to shard, expected a linear one without a bias of its own."
        )
    model.requires_grad_(False)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mesh = init_device_mesh(device.type, (place().size,))
    for unit in [*layers, table, *([] if is_tied else [head])]:
        _convert(unit, dtype, device)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    model.set_output_embeddings(ShardedHead(table if is_tied else head, is_tied))
    _convert(model, dtype, device)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether a model lies in parts over a group."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights that this process holds."""
    parts = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)


def _convert(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Floating weights to a precision and a device; buffers, such as rotary frequencies, keep their precision."""
    for weight in module.parameters():
        if not isinstance(weight, DTensor):
            weight.data = weight.data.to(device, dtype if weight.is_floating_point() else None)
