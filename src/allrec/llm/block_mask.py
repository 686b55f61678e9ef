"""Attention under a mask of blocks, FlexAttention: what no query of a block sees is never looked at.

For a GPU, where candidates of several users are read behind their prompts: the mask is mostly blocks that see all or
nothing. Where it is not compiled, as in tests on a CPU, it is slow, and right.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


def block_mask(is_seen: Bool[Tensor, "batch length keys"]) -> BlockMask:
    """A mask of blocks of 128 by 128 from one of single places, the same for all heads."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_seen[batch, query, key]

    batch, length, keys = is_seen.shape
    return create_block_mask(sees, batch, None, length, keys, device=str(is_seen.device))


def block_attention(
    query: Float[Tensor, "batch heads length dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    mask: BlockMask,
    scale: float,
) -> Float[Tensor, "batch heads length dim"]:
    """Attention under a mask of blocks.

    Args:
        query: what each place asks.
        key: what it is asked for; of fewer heads where several of the queries share one.
        value: what it answers.
        mask: who sees whom.
        scale: of the products of queries and keys.

    Source: Dong et al., arXiv:2412.05496.
    """
    attend = _compiled() if query.device.type == "cuda" else flex_attention
    attended: Tensor = attend(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
