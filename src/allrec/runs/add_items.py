"""New items join a trained run: their text is encoded, and nothing is trained or written anew."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allrec.alignment.text_cache import text_embeddings
from allrec.alignment.text_encoder import TextEncoder, embed_texts
from allrec.data.catalogue import Catalogue
from allrec.data.items import NewItems, clean_new_items
from allrec.files import load_tensors, save_tensors
from allrec.runs.run_folder import RunFolder


def add_items(run: RunFolder, catalogue: Catalogue, rows: Sequence[Mapping[str, Any]], cache: Path) -> NewItems:
    """Stores new items and their text embeddings in a folder of their own; the manifest takes note of it last.

    Args:
        run: a trained run.
        catalogue: its items.
        rows: item_id, title, description, genres.
        cache: folder of cached text embeddings.

    Raises:
        InputError: an id is known, missing or given twice, or an item has no text.
    """
    items = clean_new_items(rows, {item_id: place for place, item_id in enumerate(catalogue.item_ids)})
    store_items(run, items, cache)
    return items


def store_items(run: RunFolder, items: NewItems, cache: Path) -> None:
    """Stores clean items, none of which the run has, and their text embeddings."""
    with run.adding() as folder:
        items.save(folder)
        save_tensors(folder / "embeddings.safetensors", {"embeddings": encode_texts(run, items.texts, cache)})


def encode_texts(run: RunFolder, texts: Sequence[str | None], cache: Path) -> Float[Tensor, "texts text_dim"]:
    """Q of texts that the run was not trained on, by its own text encoder, tuned or not."""
    recipe = run.recipe()
    if not recipe.alignment.tune_text:
        return text_embeddings(texts, recipe.text, cache)
    encoder = TextEncoder(recipe.text)
    encoder.load_weights(load_tensors(run.verified_folder("alignment") / "text_encoder.safetensors"))
    with torch.no_grad():
        return embed_texts(texts, encoder.encode, encoder.dim)
