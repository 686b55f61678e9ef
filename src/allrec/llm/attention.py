"""Attention masks, and causal attention that keeps its weights for the gradient, which costs a CPU less.

Results are the built-in one's, whose gradient works out the attention weights once more. Here they are kept, in strips
of queries that look at no key behind their own.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

STRIP = 64
"""Queries of a strip: of 64, 128 and 256 the fastest on an AMD EPYC core."""
KEPT_WEIGHTS = 1 << 25
"""Attention weights of a layer at most (64 MiB, half of them kept); where there are more, the built-in gradient."""


def causal_attention(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch heads length dim"],
    value: Float[Tensor, "batch heads length dim"],
    scale: float,
) -> Float[Tensor, "batch heads length dim"]:
    """Attention of every place to itself and those before it.

    Args:
        query: what each place asks.
        key: what each query is compared with.
        value: what it answers.
        scale: of the products of queries and keys.
    """
    if query.shape[0] * query.shape[1] * query.shape[2] ** 2 <= KEPT_WEIGHTS:
        attended: Tensor = _Kept.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
        return attended
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


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


def additive_mask(is_seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where it sees, else the lowest number (minus infinity would make NaN)."""
    return torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill_(~is_seen, torch.finfo(dtype).min)
