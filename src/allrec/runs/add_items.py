"""New items join a trained run: their text is encoded, and nothing is trained or written anew."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allrec.files import load_tensors, save_tensors
from allrec.data.items import NewItems, clean_new_items
from allrec.alignment.text_encoder import TextEncoder
from allrec.runs.run_folder import RunFolder
from allrec.runs.scoring import Scoring
from allrec.alignment.text_cache import text_embeddings
from allrec.alignment.text_encoder import embed_texts


def add_items(run: RunFolder, scoring: Scoring, rows: Sequence[Mapping[str, Any]], cache: Path) -> NewItems:
    """Stores new items and their text embeddings in a folder of their own; the manifest takes note of it last.

    Args:
        run: a trained run.
        scoring: what it learned.
        rows: item_id, title, description, genres.
        cache: folder of cached text embeddings.

    Raises:
        InputError: an id is known, missing or given twice, or an item has no text.
    """
    catalogue = scoring.catalogue
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
    encoder.load_weights(load_tensors(run.folder("alignment") / "text_encoder.safetensors"))
    with torch.no_grad():
        return embed_texts(texts, encoder.encode, encoder.dim)
