"""What makes a frozen language model cheaper: fewer bits a weight, compiled layers, activations worked out twice,
norms whose gradient takes fewer passes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from allrec.llm.attention import gradients_wanted_at, wanted_places

RUN = 64
"""Weights that share a scale."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Steps of equal probability under a normal distribution."""

_is_repeated: ContextVar[bool] = ContextVar("is_repeated", default=False)


def is_repeated() -> bool:
    """Whether a layer is being run once more, for its gradient: then it must leave no trace."""
    return _is_repeated.get()


class SmallLinear(nn.Module):
    """A linear layer whose frozen weights are held in 8 or 4 bits and made whole again when they are multiplied by.

    Each run of 64 weights of an output has a scale, the largest of them; a weight is the nearest of 255 even steps, or
    of the 16 steps of NF4, times that scale. Nothing of full size is kept for the gradient.

    Source: QLoRA, arXiv:2305.14314, appendix E, for NF4; scales stay in the model's precision.
    """

    codes: Tensor
    scales: Tensor
    levels: Tensor

    def __init__(self, linear: nn.Linear, bits: Literal["8bit", "4bit"]) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.width, self.is_packed, self.bias = weight.shape[1], bits == "4bit", linear.bias
        levels = torch.tensor(NF4) if self.is_packed else torch.linspace(-1, 1, 255)
        runs = functional.pad(weight, (0, -self.width % RUN)).reshape(len(weight), -1, RUN).float()
        scales = runs.abs().amax(2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        codes = torch.bucketize(runs / scales, ((levels[1:] + levels[:-1]) / 2).to(weight.device)).to(torch.uint8)
        self.register_buffer("codes", codes[..., ::2] * 16 + codes[..., 1::2] if self.is_packed else codes)
        self.register_buffer("scales", scales.to(weight.dtype))
        self.register_buffer("levels", levels.to(weight))

    def weight(self) -> Float[Tensor, "out in"]:
        """The weights at full size."""
        codes = self.codes
        if self.is_packed:
            codes = torch.stack([codes >> 4, codes & 15], 3).flatten(2)
        runs = self.levels[codes.int()] * self.scales
        return runs.flatten(1)[:, : self.width]

    def forward(self, inputs: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """What the linear layer gives, weights rounded."""
        product: Tensor = _Product.apply(inputs, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """Inputs times weights that are made whole twice, and are not kept in between."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: SmallLinear) -> Tensor:
        ctx.layer = layer
        return inputs @ layer.weight().T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight(), None


def quantize(model: nn.Module, bits: Literal["8bit", "4bit"]) -> None:
    """Puts ``SmallLinear`` in the place of every linear layer."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, SmallLinear(module, bits))


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension, with frozen weights and one gradient in one go.

    Source: arXiv:1910.07467, equation 4.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True).square_()
        scales = squares.div_(inputs.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(inputs, scales, weight)
        return (inputs * scales).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        inputs, scales, weight = ctx.saved_tensors
        weighted = gradient * weight
        along = torch.linalg.vecdot(weighted, inputs)[..., None].mul_(scales.square()).div_(-inputs.shape[-1])
        return weighted.addcmul_(inputs, along).mul_(scales), None, None


def quicken_norms(model: nn.Module) -> None:
    """Gives every RMS norm of a model in float32 a gradient in fewer passes; one that comes out otherwise is left."""
    for module in model.modules():
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight, norm = getattr(module, "weight", None), cast(Callable[[Tensor], Tensor], module)
        is_norm = type(module).__name__.endswith("RMSNorm")
        if not is_norm or not isinstance(epsilon, float) or not isinstance(weight, Tensor):
            continue
        forward = partial(_normed, weight=weight, epsilon=epsilon)
        tried = torch.linspace(-2, 3, 2 * weight.numel(), device=weight.device).view(2, -1)
        if weight.dtype == torch.float32 and torch.allclose(forward(tried), norm(tried), rtol=1e-5, atol=1e-6):
            module.forward = forward


def _normed(inputs: Tensor, *, weight: Tensor, epsilon: float) -> Tensor:
    normed: Tensor = _RMSNorm.apply(inputs, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


def checkpoint_layer(layer: nn.Module) -> None:
    """Keeps only what a layer reads for the gradient, and runs the layer once more when that is asked for.

    Where a layer reads on behind keys and values that are there already, a few answers behind a prompt, it is run as
    it was.
    """
    forward: Callable[..., Any] = layer.forward

    def run(*args: Any, **given: Any) -> Any:
        caches = [value for value in given.values() if hasattr(value, "is_reading")]
        if not torch.is_grad_enabled() or any(not cache.is_reading for cache in caches):
            return forward(*args, **given)
        places = wanted_places()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _repeating(places)

        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **given)

    layer.forward = run


@contextmanager
def _repeating(places: Tensor | None) -> Iterator[None]:
    token = _is_repeated.set(True)
    try:
        with gradients_wanted_at(places):
            yield
    finally:
        _is_repeated.reset(token)
