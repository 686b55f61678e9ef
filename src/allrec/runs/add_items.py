"""New items join a trained run: their text is encoded, and nothing is trained or written anew."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from allrec.alignment.text_cache import text_embeddings
from allrec.alignment.text_encoder import TextEncoder, embed_texts, fingerprint
from allrec.data.catalogue import Catalogue
from allrec.data.items import NewItems, clean_new_items
from allrec.files import load_tensors, save_tensors, sha256_file, sha256_text
from allrec.runs.further_texts import encode_further, save_further
from allrec.runs.run_folder import RunFolder
from allrec.runs.trained_model import PRIORS

TUNED = "text_encoder.safetensors"
PriorsOf = Callable[[Sequence[str | None]], Float[ndarray, "items"]]


def add_items(
    run: RunFolder,
    catalogue: Catalogue,
    rows: Sequence[Mapping[str, Any]],
    cache: Path,
    priors_of: PriorsOf | None = None,
    device: str = "cpu",
) -> NewItems:
    """Stores new items and their text embeddings in a folder of their own; the manifest takes note of it last.

    Args:
        run: a trained run.
        catalogue: its items.
        rows: item_id, title, description, genres.
        cache: folder of cached text embeddings.
        priors_of: titles -> log P(title | no history), by the run's language model; None leaves it for later.
        device: where the text encoder runs.

    Raises:
        InputError: an id is known, missing or given twice, or an item has no text.
    """
    items = clean_new_items(rows, {item_id: place for place, item_id in enumerate(catalogue.item_ids)})
    store_items(run, items, cache, priors_of, device)
    return items


def store_items(
    run: RunFolder, items: NewItems, cache: Path, priors_of: PriorsOf | None = None, device: str = "cpu"
) -> None:
    """Stores clean items, none of which the run has, and their text embeddings."""
    with run.adding() as folder:
        items.save(folder)
        save_tensors(folder / "embeddings.safetensors", {"embeddings": encode_texts(run, items.texts, cache, device)})
        save_further(folder, encode_further(run, items.texts, cache, device))
        if priors_of is not None:
            save_tensors(folder / PRIORS, {"priors": torch.from_numpy(priors_of(items.titles))})


def encode_texts(
    run: RunFolder, texts: Sequence[str | None], cache: Path, device: str = "cpu"
) -> Float[Tensor, "texts text_dim"]:
    """Q of texts that the run was not trained on, by its own text encoder, tuned or not."""
    recipe = run.recipe()
    if not recipe.alignment.tune_text:
        return text_embeddings(texts, recipe.text, cache, device=device)
    encoder = text_encoder_of(run, device)
    with torch.no_grad():
        return embed_texts(texts, encoder.encode, encoder.dim)


def text_encoder_of(run: RunFolder, device: str = "cpu") -> TextEncoder:
    """The text encoder that a run was trained with, tuned or not."""
    recipe = run.recipe()
    encoder = TextEncoder(recipe.text, device)
    if recipe.alignment.tune_text:
        encoder.load_weights(load_tensors(run.verified_folder("alignment") / TUNED))
    return encoder


def encoder_fingerprint(run: RunFolder) -> str:
    """What an embedding of a run's text encoder depends on, beside the text."""
    recipe = run.recipe()
    known = fingerprint(recipe.text)
    if recipe.alignment.tune_text:
        known += sha256_file(run.verified_folder("alignment") / TUNED)
    return sha256_text(known)
