"""Activation checkpointing of a frozen model's layers: what a layer computes is computed again for the gradient."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_is_repeated: ContextVar[bool] = ContextVar("is_repeated", default=False)


def is_repeated() -> bool:
    """Whether a layer is being run once more, for its gradient: then it must leave no trace."""
    return _is_repeated.get()


def checkpoint_layer(layer: nn.Module) -> None:
    """Keeps only what a layer reads for the gradient, and recomputes the layer in the backward pass.

    Where a layer reads on behind keys and values that are there already, a few answers behind a prompt, it is run as
    it was.
    """
    forward: Callable[..., Any] = type(layer).forward

    def run(self: nn.Module, *args: Any, **given: Any) -> Any:
        caches = [value for value in given.values() if hasattr(value, "is_reading")]
        if not torch.is_grad_enabled() or any(cache.is_behind or not cache.is_reading for cache in caches):
            return forward(self, *args, **given)
        return checkpoint(
            forward, self, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts, **given
        )

    # A method of the layer, so that a copy of the layer runs itself.
    layer.forward = MethodType(run, layer)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _repeating()


@contextmanager
def _repeating() -> Iterator[None]:
    token = _is_repeated.set(True)
    try:
        yield
    finally:
        _is_repeated.reset(token)
