"""Causal attention whose gradient costs a CPU less than the built-in one's; results are the same.

The built-in gradient works out the attention weights once more, and does so everywhere. Here they are kept, in strips
of queries that look at no key behind their own. Where most of what is read are constants, as the words of a prompt are
beside its soft tokens, the first layer's gradient is worked out at the other places alone: that of its attention, and
of what makes queries, keys and values.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from math import log
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

STRIP = 64
"""Queries of a strip: of 64, 128 and 256 the fastest on an AMD EPYC core."""
KEPT_WEIGHTS = 1 << 25
"""So many attention weights (64 MiB, half of them kept) of a layer; where there are more, the built-in gradient."""

LOG2_E = 1 / log(2)

_wanted: ContextVar[Bool[Tensor, "batch length"] | None] = ContextVar("wanted", default=None)


@contextmanager
def gradients_wanted_at(places: Bool[Tensor, "batch length"] | None) -> Iterator[None]:
    """Inside, what a model reads has gradients at these places alone, up to its first attention; None is everywhere.

    That goes for linear layers before a first layer's ``causal_attention``, and for the latter.
    """
    token = _wanted.set(places)
    try:
        with nullcontext() if places is None else _LinearAtPlaces():
            yield
    finally:
        _wanted.reset(token)


def wanted_places() -> Bool[Tensor, "batch length"] | None:
    """What ``gradients_wanted_at`` was told; None from the first attention on."""
    return _wanted.get()


def taken_places() -> Bool[Tensor, "batch length"] | None:
    """The same, once: every attention takes them, for what comes behind it needs gradients everywhere."""
    wanted = _wanted.get()
    if wanted is not None:
        _wanted.set(None)
    return wanted


def causal_attention(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch heads length dim"],
    value: Float[Tensor, "batch heads length dim"],
    scale: float,
    *,
    is_first: bool,
) -> Float[Tensor, "batch heads length dim"]:
    """Attention of every place to itself and those before it.

    Args:
        query: what each place asks.
        key: what it is asked for.
        value: what it answers.
        scale: of the products of queries and keys.
        is_first: whether this is the first layer, so that a place's query, key and value depend on it alone.
    """
    wanted = taken_places()
    if wanted is not None and is_first:
        return _attend(_AtPlaces, query, key, value, scale, _columns(wanted))
    if query.shape[0] * query.shape[1] * query.shape[2] ** 2 <= KEPT_WEIGHTS:
        return _attend(_Kept, query, key, value, scale)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


def _attend(how: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    attended: Tensor = how.apply(*inputs)  # type: ignore[no-untyped-call]
    return attended


def _exp(values: Tensor) -> Tensor:
    """e to the power of them, in place; torch's own is slow where that comes near zero."""
    return values.mul_(LOG2_E).exp2_()


def _columns(wanted: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch places"]:
    """The wanted places of each row, in order; ``length`` where a row has fewer than another."""
    length = wanted.shape[1]
    columns = torch.where(wanted, torch.arange(length, device=wanted.device), length).sort(1).values
    return columns[:, : int(wanted.sum(1).max())]


class _Kept(torch.autograd.Function):
    """Attention that keeps its weights for the gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        flat = [part.flatten(0, 1) for part in (query, key, value)]
        attended, weights = torch.empty_like(flat[2]), []
        ahead = torch.full((STRIP, STRIP), -torch.inf, device=query.device).triu_(1)
        for start in range(0, query.shape[2], STRIP):
            end = min(start + STRIP, query.shape[2])
            scores = flat[0].new_empty(len(flat[0]), end - start, end)
            scores.baddbmm_(flat[0][:, start:end], flat[1][:, :end].mT, beta=0, alpha=scale)
            scores[:, :, start:] += ahead[: end - start, : end - start]
            weights.append(scores.softmax(-1))
            torch.bmm(weights[-1], flat[2][:, :end], out=attended[:, start:end])
        ctx.save_for_backward(*flat, *weights)
        ctx.scale = scale
        return attended.view(value.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *kept = ctx.saved_tensors
        gradients = gradient.flatten(0, 1)
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        # The last strip sees all keys, so it begins their sums, which others add to.
        is_sum = False
        for start, weights in zip(reversed(range(0, query.shape[1], STRIP)), reversed(kept), strict=True):
            strip, seen = slice(start, start + weights.shape[1]), slice(weights.shape[2])
            of_value[:, seen].baddbmm_(weights.mT, gradients[:, strip], beta=is_sum)
            of_weights = torch.bmm(gradients[:, strip], value[:, seen].mT)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query[:, strip].baddbmm_(of_scores, key[:, seen], beta=0, alpha=ctx.scale)
            of_key[:, seen].baddbmm_(of_scores.mT, query[:, strip], beta=is_sum, alpha=ctx.scale)
            is_sum = True
        shape = gradient.shape
        return of_query.view(shape), of_key.view(shape), of_value.view(shape), None


class _AtPlaces(torch.autograd.Function):
    """Attention whose gradient is worked out at some places, and is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, columns: Tensor) -> Tensor:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        attended, log_sums = attend(query, key, value, 0.0, True, scale=scale)
        ctx.save_for_backward(query, key, value, attended, log_sums, columns)
        ctx.scale = scale
        kept: Tensor = attended
        return kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, attended, log_sums, columns = ctx.saved_tensors
        length = query.shape[2]
        index = columns[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
        own = [part.gather(2, index.clamp(max=length - 1)) for part in (query, key, value, gradient)]
        sums = (gradient * attended).sum(-1, keepdim=True)
        log_sums = log_sums[:, :, :, None]
        of_place = index[:, :, :, :1].clamp(max=length - 1)
        places = torch.arange(length, device=query.device)
        is_ahead = places > columns[:, None, :, None]
        # These places as queries, before all keys.
        scores = (own[0] @ key.mT).mul_(ctx.scale) - log_sums.gather(2, of_place)
        weights = _exp(scores.masked_fill_(is_ahead, -torch.inf))
        of_scores = weights * (own[3] @ value.mT - sums.gather(2, of_place))
        of_query = (of_scores @ key).mul_(ctx.scale)
        # As keys and values, before all queries.
        scores = (own[1] @ query.mT).mul_(ctx.scale) - log_sums.mT
        weights = _exp(scores.masked_fill_(places < columns[:, None, :, None], -torch.inf))
        of_value = weights @ gradient
        of_key = (weights * (own[2] @ gradient.mT - sums.mT) @ query).mul_(ctx.scale)
        shape = (*query.shape[:2], length + 1, query.shape[3])
        found = (query.new_zeros(shape).scatter_(2, index, part) for part in (of_query, of_key, of_value))
        of_query, of_key, of_value = (part[:, :, :length] for part in found)
        return of_query, of_key, of_value, None, None


class _LinearAtPlaces(TorchFunctionMode):
    """Inside, frozen linear layers over a batch's places have the gradient of what they read at wanted places alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wanted = wanted_places()
        if func is functional.linear and wanted is not None and not kwargs:
            inputs, weight, *bias = args
            if inputs.requires_grad and not weight.requires_grad and inputs.shape[:-1] == wanted.shape:
                return _Linear.apply(inputs, weight, *(bias or [None]), wanted)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """A linear layer of frozen weights, whose gradient is worked out at some places, and is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor) -> Tensor:
        ctx.save_for_backward(weight, wanted)
        return functional.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, wanted = ctx.saved_tensors
        of_inputs = gradient.new_zeros(*wanted.shape, weight.shape[1])
        of_inputs[wanted] = gradient[wanted] @ weight
        return of_inputs, None, None, None
