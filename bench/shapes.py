"""Language models of known shapes with random weights: as slow as the trained ones, and made without a network."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedModel

from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig, local_folder, spared
from allrec.llm.packaged import DEFAULT

VOCABULARY, POSITIONS = 50272, 2048
SIZES = {"tiny": (64, 2, 2), "opt-125m": (768, 12, 12), "opt-6.7b": (4096, 32, 32), "opt-13b": (5120, 40, 40)}
"""Width, layers and heads (arXiv:2205.01068, table 1; tiny is ours)."""
SHAPES = (DEFAULT, *SIZES)


def make_model(shape: str, device: str, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A model on its device; ``smollm2-135m`` has its own weights, all others random ones."""
    if shape not in SIZES:
        return AutoModelForCausalLM.from_pretrained(local_folder(shape), dtype=dtype).to(device).eval()
    dim, layers, heads = SIZES[shape]
    config = OPTConfig(
        vocab_size=VOCABULARY, max_position_embeddings=POSITIONS,
        hidden_size=dim, word_embed_proj_dim=dim, ffn_dim=4 * dim, num_hidden_layers=layers, num_attention_heads=heads,
    )  # fmt: skip
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return OPTForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def make_llm(
    shape: str, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, **savings: Any
) -> LanguageModel:
    """A frozen language model; all shapes have SmolLM2's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(local_folder(DEFAULT))
    model = make_model(shape, device, dtype, seed).requires_grad_(False)
    model = spared(model, LanguageModelConfig(**savings), torch.device(device))
    return LanguageModel(model, tokenizer, {"name": shape, "revision": None, "sha256": None})


def num_weights(llm: LanguageModel) -> tuple[int, int]:
    """Weights that a token is multiplied by: those of the layers, and those of the head."""
    model = llm._model
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings().weight
    layers = (value for value in model.parameters() if value.dim() == 2 and id(value) not in tables | {id(head)})
    return sum(value.numel() for value in layers), head.numel()
