"""A table whose rows lie over the workers that train together: item embeddings that one machine cannot hold.

Every worker takes whole batches, so that a table is all that is shared: what a batch looks up is summed over the
workers, each of which has some of the rows, and a softmax over the catalogue is joined from theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from allrec.training.distributed import Place, place


class RowShard(nn.Parameter):
    """This worker's rows of a table.

    Attributes:
        num_rows: of the whole table.
        start: the first of this worker's rows.
    """

    num_rows: int
    start: int

    def __new__(cls, table: Float[Tensor, "rows dim"]) -> RowShard:
        """Keeps of a whole table what is this worker's."""
        rows = place().share(len(table))
        own = table.detach()[rows].clone()
        shard: RowShard = torch.Tensor._make_subclass(cls, own, True)
        shard.num_rows, shard.start = len(table), rows.start
        return shard

    def own(self, table: Float[Tensor, "rows dim"]) -> Float[Tensor, "own_rows dim"]:
        """Of a whole table of the same shape, such as a running mean, this worker's rows."""
        return table[self.start : self.start + len(self)]

    def gathered(self, own: Float[Tensor, "own_rows dim"]) -> Float[Tensor, "rows dim"] | None:
        """The whole of what each worker has its rows of, in rank 0; None in the others. All workers call it."""
        here = place()
        if here.rank > 0:
            distributed.send(own.detach().contiguous(), 0)
            return None
        whole = own.new_empty(self.num_rows, *own.shape[1:])
        whole[: len(own)] = own.detach()
        for rank in range(1, here.size):
            distributed.recv(whole[Place(rank, here.size).share(self.num_rows)], rank)
        return whole

    def look_up(self, ids: Int[Tensor, "*places"], is_sparse: bool) -> Float[Tensor, "*places dim"]:
        """Rows of the table, the same bytes in all workers: of all but one of them they are zeros.

        Args:
            ids: rows of the whole table.
            is_sparse: whether the gradient is sparse.
        """
        is_own = (ids >= self.start) & (ids < self.start + len(self))
        rows = functional.embedding(ids[is_own] - self.start, self, sparse=is_sparse)
        zeros = rows.new_zeros(*ids.shape, self.shape[1])
        found: Tensor = _Summed.apply(zeros.masked_scatter(is_own[..., None], rows))  # type: ignore[no-untyped-call]
        return found

    def softmax_sum(self, states: Float[Tensor, "tokens dim"], targets: Int[Tensor, "tokens"]) -> Float[Tensor, ""]:
        """Cross-entropy of a softmax over all rows, in nats, summed over tokens; each worker scores its own rows."""
        shared: Tensor = _Copied.apply(states)  # type: ignore[no-untyped-call]
        scores = shared @ self.T
        largest = scores.detach().amax(dim=1) if len(self) else scores.new_full((len(states),), -torch.inf)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        is_own = (targets >= self.start) & (targets < self.start + len(self))
        own = scores[is_own, targets[is_own] - self.start]
        of_target = scores.new_zeros(len(states)).masked_scatter(is_own, own)
        both = torch.stack([(scores - largest[:, None]).exp().sum(dim=1), of_target])
        total, target = _Summed.apply(both)  # type: ignore[no-untyped-call]
        return (total.log() + largest - target).sum()


class _Summed(torch.autograd.Function):
    """A sum over workers of which all make the same: the gradient of each part is that of the sum."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Copied(torch.autograd.Function):
    """What all workers have and each uses in its own way: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        return whole.view_as(whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def split_tables(module: nn.Module, names: tuple[str, ...]) -> dict[str, RowShard]:
    """Puts this worker's rows in the place of whole tables, and returns them by their names."""
    return {name: _put(module, name, RowShard(module.get_parameter(name))) for name in names}


def join_tables(module: nn.Module, shards: dict[str, RowShard]) -> None:
    """Puts whole tables back in rank 0; the others keep their rows. All workers call it."""
    for name, shard in shards.items():
        whole = shard.gathered(shard)
        if whole is not None:
            _put(module, name, nn.Parameter(whole, shard.requires_grad))


def part_tables(module: nn.Module, shards: dict[str, RowShard]) -> None:
    """Puts the shards of ``split_tables`` in their places again."""
    for name, shard in shards.items():
        _put(module, name, shard)


def gradient_norm(parameters: Mapping[str, nn.Parameter], shards: Mapping[str, RowShard]) -> Float[Tensor, ""]:
    """Norm of all gradients, those of split tables over all workers."""
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    whole = nn.utils.get_total_norm([gradient for name, gradient in gradients.items() if name not in shards])
    if not shards:
        return whole
    split = nn.utils.get_total_norm([gradient for name, gradient in gradients.items() if name in shards]).square()
    distributed.all_reduce(split)
    return (whole.square() + split).sqrt()


def _put(module: nn.Module, name: str, value: Any) -> Any:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, value)
    return value
