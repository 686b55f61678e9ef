"""Tiny sentence encoders with random weights, saved the way real ones are."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tests.tiny import END, tiny_backend
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """A BERT of one layer, 16 wide, with dropout, and mean pooling; folder ``base`` beside it holds the bare BERT."""
    base = folder.with_name(f"{folder.name}-base")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=400, max_position_embeddings=64, **shape)).save_pretrained(base)
    PreTrainedTokenizerFast(tokenizer_object=tiny_backend(), pad_token=END, unk_token=END).save_pretrained(base)
    transformer = Transformer(str(base))
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(folder))
    return folder
