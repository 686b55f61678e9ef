"""Tiny language models with random weights, and a tokenizer for them, saved the way real ones are."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig

KINDS = ("opt", "llama", "qwen3")
BEGIN, END = "<|begin|>", "<|end|>"
CORPUS = [
    "This user has bought before. Recommend one item for this user to buy next, out of these item titles:",
    " is a user representation. The recommendation is new nothing",
    "hand cream rose lotion velvet soap silver comb brush mirror perfume oil night serum",
] * 5


def tiny_backend(vocabulary: int = 400) -> Tokenizer:
    """A byte-level BPE; ids 0 and 1 are ``BEGIN`` and ``END``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def tiny_model(kind: str, vocabulary: int = 400, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A model of two layers, 32 wide; OPT embeds tokens in 24, as OPT-350m does in fewer than it has."""
    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    rotary: dict[str, Any] = {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "opt":
            narrow = {"ffn_dim": 64, "word_embed_proj_dim": 24, "init_std": 0.2, "dropout": 0.1}
            return OPTForCausalLM(OPTConfig(**(shared | narrow | options)))
        if kind == "llama":
            return LlamaForCausalLM(LlamaConfig(**(shared | rotary | options)))
        return Qwen3ForCausalLM(Qwen3Config(**(shared | rotary | {"head_dim": 8} | options)))


def save_tiny(folder: Path, kind: str = "llama", backend: Tokenizer | None = None, **options: Any) -> Path:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    backend = tiny_backend() if backend is None else backend
    tiny_model(kind, backend.get_vocab_size(), **options).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END).save_pretrained(folder)
    return folder


def load_tiny(folder: Path, kind: str = "llama", **options: Any) -> LanguageModel:
    """A tiny model, saved and loaded again."""
    return LanguageModel.load(LanguageModelConfig(name=str(save_tiny(folder, kind, **options))))
