"""Reads checkpoints in the layout of the public PyTorch SASRec, on which A-LLMRec builds. Tensors and nothing else."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.errors import InputError

REMEDY = (
    "Where you trust the file, save the state dict alone with the code that wrote it: torch.save(model.state_dict(), "
    "path), or torch.save(pair[1], path) for a pair of arguments and state dict as A-LLMRec writes."
)


def import_sasrec(
    path: Path | str,
    *,
    heads: int = 1,
    norm: Literal["query", "pre", "post"] = "query",
    padding: Literal["zeroed", "carried"] | None = None,
) -> SASRec:
    """Turns a public checkpoint into a frozen SASRec that gives the same outputs.

    Items keep their order: item n of the checkpoint, whose ids start at 1, becomes item n - 1.

    Args:
        path: a file that ``torch.save`` wrote, holding a state dict.
        heads: attention heads, which the tensors do not tell.
        norm: where layer norms stood, which they do not tell either: ``query`` in the original and in A-LLMRec; in
            later versions ``pre`` with ``norm_first`` and ``post`` without.
        padding: what became of padding, see ``SASRecConfig``. By default the checkpoint tells: later versions keep a
            position of zeros for padding, and carry it on.

    Raises:
        InputError: no such file, anything in it but tensors, or tensors of another layout.
    """
    tensors = _read_tensors(Path(path))
    try:
        return _translate(tensors, heads, norm, padding)
    except KeyError as error:
        raise InputError(
            f"{path} lacks the tensor {error}, expected the layout of the public SASRec; it holds {_some(tensors)}"
        ) from None
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{path} has tensors of other shapes than the public SASRec: {error}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no such file: {path}. Give the checkpoint that torch.save wrote.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} holds more than tensors, or is no checkpoint: {reason}. {REMEDY}") from None
    is_state = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state:
        raise InputError(f"{path} holds a {type(content).__name__}, expected a dict of nothing but tensors. {REMEDY}")
    for name, value in content.items():
        if not value.isfinite().all():
            raise InputError(f"{path} has numbers in {name} that are not finite. Was its training broken off?")
    return {str(name): value.float() for name, value in content.items()}


def _translate(
    tensors: dict[str, Tensor],
    heads: int,
    norm: Literal["query", "pre", "post"],
    padding: Literal["zeroed", "carried"] | None,
) -> SASRec:
    items, positions = tensors["item_emb.weight"], tensors["pos_emb.weight"]
    has_padding_position = not positions[0].any()
    if padding is None:
        padding = "carried" if has_padding_position else "zeroed"
    if padding == "carried" and items[0].any():
        raise InputError("padding can be carried only where the item embedding of padding, row 0, is all zeros")
    positions = positions[1:] if has_padding_position else positions
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("attention_layers.")})
    config = SASRecConfig(
        dim=items.shape[1], blocks=blocks, heads=heads, max_length=len(positions), norm=norm, padding=padding
    )
    state = {"item_table": items[1:], "position_table": positions}
    state |= {f"last_norm.{kind}": tensors[f"last_layernorm.{kind}"] for kind in ("weight", "bias")}
    for block in range(blocks):
        state |= {f"blocks.{block}.{name}": value for name, value in _block(tensors, block).items()}
    model = SASRec(len(items) - 1, config, torch.Generator().manual_seed(0))
    model.load_state_dict(state)
    return freeze(model)


def _block(tensors: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        attention, network = f"attention_layers.{block}", f"forward_layers.{block}"
        projections = tensors[f"{attention}.in_proj_{kind}"].chunk(3)
        state |= {f"attention.{name}.{kind}": projections[i] for i, name in enumerate(("query", "key", "value"))}
        state[f"attention.output.{kind}"] = tensors[f"{attention}.out_proj.{kind}"]
        state[f"attention_norm.{kind}"] = tensors[f"attention_layernorms.{block}.{kind}"]
        state[f"network_norm.{kind}"] = tensors[f"forward_layernorms.{block}.{kind}"]
        # A convolution of kernel size 1 is a linear layer with one more axis.
        for ours, theirs in (("network.0", "conv1"), ("network.3", "conv2")):
            value = tensors[f"{network}.{theirs}.{kind}"]
            state[f"{ours}.{kind}"] = value.squeeze(2) if kind == "weight" else value
    return state


def _some(tensors: dict[str, Tensor]) -> str:
    return ", ".join(list(tensors)[:5]) + (", ..." if len(tensors) > 5 else "") if tensors else "none"
