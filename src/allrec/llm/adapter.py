"""LoRA: low-rank adapters that tune a language model beside its frozen weights. Beyond the paper, which tunes nothing.

Source: Hu et al., arXiv:2106.09685; the layers are peft's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from allrec.errors import Config, InputError
from allrec.training.examples import initialized

STREAM = "adapter"


class LoraConfig(Config):
    """Sizes of the adapters, one for each linear layer of the model but its head."""

    rank: int = Field(8, ge=1, description="Rank r of each adapter's two matrices.")
    alpha: float = Field(16.0, gt=0, description="What an adapter adds is scaled by alpha / rank.")


class Adapter(nn.Module):
    """The weights of a model's adapters, by name, as a module of their own: the model is no part of it.

    Args:
        weights: parameters of the model, by their names there.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for name, weight in weights.items():
            # A parameter's name has no dots.
            self.register_parameter(name.replace(".", "/"), weight)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and their names."""
        total = hashlib.sha256()
        for name, weight in self.state_dict().items():
            total.update(name.encode() + weight.detach().cpu().float().numpy().tobytes())
        return total.hexdigest()

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes weights that were stored, and freezes them.

        Raises:
            InputError: they belong to another model or are of another rank.
        """
        try:
            self.load_state_dict(dict(tensors))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"the adapter does not fit the language model: {reason} Train stage 2 anew.") from error
        self.requires_grad_(False)


def check_lora() -> None:
    """Fails fast where peft is not installed.

    Raises:
        InputError: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise InputError("llm.tuning is lora and peft is not installed: pip install 'allrec[lora]'") from None


def sharing_copy(model: Any) -> Any:
    """A copy of a model's modules that holds the very same weights, so that a second one costs no memory."""
    shared = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in shared})


def add_adapter(model: Any, config: LoraConfig, seed: int) -> Adapter:
    """Puts an adapter beside each linear layer of a model but its head; at first none changes what the model says.

    Args:
        model: frozen, of transformers; changed in place.
        config: sizes.
        seed: of the first weights.

    Raises:
        InputError: peft is not installed.
    """
    check_lora()
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    peft_config = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear")  # type: ignore[arg-type]
    initialized(lambda: inject_adapter_in_model(peft_config, model), seed, STREAM)
    weights = {name: weight for name, weight in model.named_parameters() if ".lora_" in name}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in weights)
    for weight in weights.values():
        weight.data = weight.data.to(torch.float32)
    model.eval()
    return Adapter(weights)
