"""Causal models of transformers, packaged ones among them: found by name, loaded in the requested precision."""

import hashlib
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from allrec.errors import InputError
from allrec.files import is_hub_reachable
from allrec.llm.attention import causal_attention
from allrec.llm.checkpointing import checkpoint_layer
from allrec.llm.model_config import LanguageModelConfig
from allrec.llm.packaged import PACKAGED, converted, is_gguf, packaged_fingerprint
from allrec.llm.sharding import is_sharded, sharded
from allrec.training.distributed import place

TRIED = (256, 576, 1536)
"""Tokens, width in and width out of the product that a trial of precisions times."""
WORTH_IT = 1.2
"""Times as fast as float32 that bfloat16 must be to be chosen on a CPU."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
ATTENTION = "allrec"
"""What transformers knows our attention by."""


def local_folder(name: str) -> Path | None:
    """The folder that a name means, None for a name on the hub; a GGUF file is converted at first use.

    Raises:
        InputError: the folder lacks what a model needs.
    """
    if name in PACKAGED or is_gguf(name):
        return converted(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or name.startswith((".", "~")):
            raise InputError(f"no folder {folder}: a language model is a folder with config.json. Correct the path.")
        return None
    has = {path.name for path in folder.iterdir()}
    needed = {
        "a config.json": "config.json" in has,
        "a tokenizer": bool(has.intersection(TOKENIZER_FILES)),
        "weights as *.safetensors": any(file.endswith(".safetensors") for file in has),
    }
    lacking = " and ".join(thing for thing, is_there in needed.items() if not is_there)
    if lacking:
        is_pickled = any(file.endswith(".bin") for file in has)
        hint = " Pickled weights are never read: convert them to safetensors." if is_pickled else ""
        raise InputError(f"{folder} lacks {lacking}: expected what save_pretrained writes, tokenizer included.{hint}")
    return folder


def fingerprint_of(name: str, folder: Path | None, model: Any) -> dict[str, str | None]:
    """Name, revision and SHA-256 of a model: of a folder's files, or of a hub model's configuration at its commit."""
    if folder is None:
        revision = getattr(model.config, "_commit_hash", None)
        digest = hashlib.sha256(model.config.to_json_string().encode())
        return {"name": name, "revision": revision, "sha256": digest.hexdigest()}
    packaged = packaged_fingerprint(folder)
    if packaged is not None:
        return {"name": name, "revision": None, "sha256": packaged}
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in ("config.json", *TOKENIZER_FILES):
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return {"name": name, "revision": None, "sha256": total.hexdigest()}


def load_model(
    folder: Path | None, config: LanguageModelConfig, device: torch.device
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model with its head, on its device, and its tokenizer.

    Args:
        folder: where it lies; None means the hub, or what was once taken from there.
        config: name, revision and precision.
        device: where it goes.

    Raises:
        InputError: weights are missing, or fewer bits a weight are requested where they are not available.
    """
    dtype = getattr(torch, faster_dtype(device.type) if config.dtype == "auto" else config.dtype)
    if config.is_sharded and (config.weights != "whole" or config.is_compiled):
        raise InputError(
            f"got is_sharded with weights = {config.weights}, is_compiled = {config.is_compiled}, expected whole and "
            "False: layers that lie in parts are neither of fewer bits nor compiled."
        )
    is_split = config.is_sharded and place().size > 1
    source = str(folder or config.name)
    is_local = folder is not None or not is_hub_reachable()
    given = {"revision": config.revision or "main", "trust_remote_code": False, "local_files_only": is_local}
    quantized = {} if config.weights == "whole" else {"quantization_config": _fewer_bits(config.weights, device)}
    tokenizer = AutoTokenizer.from_pretrained(source, **given)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        **given,
        use_safetensors=True,
        dtype="auto" if is_split else dtype,
        output_loading_info=True,
        **quantized,
    )
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"{config.name} is no whole causal language model: its weights lack {sorted(report['missing_keys'])[0]}. "
            "Choose one that was saved with its head."
        )
    return spared(sharded(model, dtype, device) if is_split else model, config, device), tokenizer


def _fewer_bits(weights: Literal["8bit", "4bit"], device: torch.device) -> BitsAndBytesConfig:
    if device.type != "cuda":
        raise InputError(
            f"llm weights are {weights}, which needs CUDA, and the device is {device.type}; there whole weights are "
            "faster. Leave them whole: --set llm.published.weights=whole"
        )
    if find_spec("bitsandbytes") is None:
        raise InputError(f"llm weights are {weights} and bitsandbytes is not installed: pip install 'allrec[quant]'")
    given = {"load_in_8bit": weights == "8bit", "load_in_4bit": weights == "4bit", "bnb_4bit_quant_type": "nf4"}
    return BitsAndBytesConfig(**given)  # type: ignore[no-untyped-call]


@cache
def faster_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """The precision that multiplies faster; on a CPU, where few know bfloat16, that is tried, once a process."""
    if device != "cpu":
        return "bfloat16"

    def seconds(dtype: torch.dtype) -> float:
        inputs, weight = torch.ones(TRIED[0], TRIED[1], dtype=dtype), torch.ones(TRIED[2], TRIED[1], dtype=dtype)
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            functional.linear(inputs, weight)
            taken.append(time.perf_counter() - start)
        return min(taken)

    return "bfloat16" if seconds(torch.bfloat16) * WORTH_IT < seconds(torch.float32) else "float32"


def spared(model: Any, config: LanguageModelConfig, device: torch.device) -> Any:
    """The model on its device, compiled or checkpointed as configured, on a CPU with our attention."""
    if config.weights == "whole" and not is_sharded(model):
        model = model.to(device)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if config.is_compiled:
        for layer in layers:
            layer.compile(dynamic=True)
    elif device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    if config.is_checkpointed:
        # Of the last layer a prompt's keys and values alone are kept anyway.
        for layer in layers[:-1]:
            checkpoint_layer(layer)
    return model


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any) -> Any:
    """Attention as transformers asks for it: ours where a gradient is wanted of causal attention, else the built-in."""
    known = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "past_key_values"}
    is_plain = mask is None and getattr(module, "is_causal", False) and given.get("is_causal") is not False
    is_plain = is_plain and not given.get("dropout") and all(given[name] is None for name in given.keys() - known)
    if not (is_plain and query.requires_grad and query.shape[2] == key.shape[2] and query.dtype == torch.float32):
        return sdpa_attention_forward(module, query, key, value, mask, **given)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    scale = given.get("scaling") or query.shape[3] ** -0.5
    return causal_attention(query, key, value, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
