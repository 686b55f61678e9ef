"""Texts through an encoder that is being tuned: nothing can be cached while its weights move."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def embed_texts(
    texts: Sequence[str | None], encode: Callable[[list[str]], Float[Tensor, "distinct text_dim"]], dim: int
) -> Float[Tensor, "texts text_dim"]:
    """Embeddings in the order of ``texts``, each distinct text encoded once; no text has a vector of zeros.

    Args:
        texts: an item's text each, or None.
        encode: embeddings of some texts, with gradients or without.
        dim: width of an embedding.
    """
    distinct = sorted({text for text in texts if text}, key=lambda text: (len(text), text))
    nothing = torch.zeros(1, dim)
    table = torch.cat([nothing, encode(distinct)]) if distinct else nothing
    rows = {text: row for row, text in enumerate(distinct, start=1)}
    return table[torch.tensor([rows[text] if text else 0 for text in texts], dtype=torch.int64)]
