"""Item texts as a language model reads them: pooled hidden states, an encoder unlike the sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allrec.alignment.text_cache import Encode, cached_embeddings
from allrec.errors import Config
from allrec.llm.model_config import LanguageModelConfig
from allrec.parallel import OnProgress, no_progress

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel


class SecondTextConfig(Config):
    """A second encoder of item texts: a language model's states, whitened; further evidence beside the first."""

    enabled: bool = Field(False, description="Whether there is one.")
    model: LanguageModelConfig = Field(
        LanguageModelConfig(dtype="float32"), description="The language model; with dtype auto a run depends on where."
    )
    num_layers: int = Field(8, ge=1, description="Layers that read a text; later ones tell items apart no better.")
    max_tokens: int = Field(24, ge=8, description="Tokens of a text that are read, at most.")
    batch_size: int = Field(32, ge=1, description="Texts read at once.")
    added: float = Field(
        0.1, ge=0, description="Share of the mean variance that whitening adds in every direction; 0 whitens in full."
    )


def pooled_states(
    texts: Sequence[str | None],
    config: SecondTextConfig,
    cache: Path,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = no_progress,
) -> Float[Tensor, "texts hidden_dim"]:
    """Mean states of item texts, not whitened, cached by content like text embeddings; see ``cached_embeddings``.

    Args:
        texts: an item's text each.
        config: the language model.
        cache: folder of the caches of all text encoders.
        device: where the language model runs.
        on_progress: see ``cached_embeddings``.

    Raises:
        InputError: the language model cannot be loaded, or no item has a text.
    """
    from allrec.llm.language_model import LanguageModel
    from allrec.llm.loading import fingerprint_of, local_folder

    def load() -> Encode:
        llm = loaded or LanguageModel.load(config.model, device)
        return lambda some: _encode(llm, some, config)

    folder = local_folder(config.model.name)
    # Only a loaded model says which commit of the hub it is of.
    loaded = None if folder else LanguageModel.load(config.model, device)
    known = loaded.fingerprint if loaded else fingerprint_of(config.model.name, folder, None)
    identity = f"{known}|{config.model.dtype}|{config.model.weights}|{config.num_layers}|{config.max_tokens}"
    return cached_embeddings(texts, identity, load, cache, on_progress)


def _encode(llm: LanguageModel, texts: list[str], config: SecondTextConfig) -> Float[Tensor, "texts hidden_dim"]:
    rows = [(llm.begin + ids or llm.end)[: config.max_tokens] for ids in llm.encode(texts)]
    parts = [rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size)]
    return torch.cat([llm.pooled(part, config.num_layers) for part in parts])
