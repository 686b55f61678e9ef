"""Text embeddings on disk, by content: a text is encoded once for a model, whatever its data set."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allrec.alignment.text_encoder import TextEncoder, TextEncoderConfig, fingerprint
from allrec.errors import InputError
from allrec.files import load_tensors, save_tensors, sha256_text
from allrec.parallel import OnProgress, no_progress

CHUNK = 256
"""Texts encoded between two writes: the most that are encoded again after a kill."""


Encode = Callable[[list[str]], Float[Tensor, "texts text_dim"]]
"""Embeddings of some texts, float32, on the CPU."""


def text_embeddings(
    texts: Sequence[str | None],
    config: TextEncoderConfig,
    cache: Path,
    *,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = no_progress,
) -> Float[Tensor, "texts text_dim"]:
    """Embeddings of item texts by a sentence encoder; see ``cached_embeddings``.

    Args:
        texts: an item's text each.
        config: the text encoder.
        cache: folder of the caches of all text encoders.
        device: where the encoder runs.
        on_progress: see ``cached_embeddings``.
    """

    def load() -> Encode:
        return TextEncoder(config, device).encode

    return cached_embeddings(texts, fingerprint(config), load, cache, on_progress)


def cached_embeddings(
    texts: Sequence[str | None],
    identity: str,
    load: Callable[[], Encode],
    cache: Path,
    on_progress: OnProgress = no_progress,
) -> Float[Tensor, "texts text_dim"]:
    """Embeddings of item texts, read from the cache where it has them, else encoded, chunk after chunk.

    Args:
        texts: an item's text each; None and "" have the embedding of no text at all, a vector of zeros.
        identity: all that an embedding depends on, beside its text.
        load: makes the encoder; called only where the cache lacks a text.
        cache: folder of the caches of all encoders.
        on_progress: called after each chunk, with the number of ``texts`` encoded so far.

    Returns:
        float32, in the order of ``texts``.

    Raises:
        InputError: no item has a text.
    """
    folder = Path(cache) / sha256_text(identity)[:16]
    hashes = [sha256_text(text) if text else None for text in texts]
    stored = dict(_read(folder))
    wanted = {key: text for key, text in zip(hashes, texts, strict=True) if key is not None and text is not None}
    missing = sorted((key for key in wanted if key not in stored), key=lambda key: (len(wanted[key]), key))
    if missing:
        encode = load()
        for start in range(0, len(missing), CHUNK):
            keys = missing[start : start + CHUNK]
            embeddings = encode([wanted[key] for key in keys])
            _write(folder, keys, embeddings)
            stored.update(zip(keys, embeddings, strict=True))
            done = start + len(keys)
            on_progress(done / len(missing), {"texts": float(done)})
    if not wanted:
        raise InputError("no item has a text, expected titles or descriptions. Give an items file with a title column.")
    nothing = torch.zeros_like(stored[next(iter(wanted))])
    return torch.stack([nothing if key is None else stored[key] for key in hashes])


def _write(folder: Path, keys: list[str], embeddings: Float[Tensor, "chunk text_dim"]) -> None:
    hashes = torch.from_numpy(np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), 32).copy())
    save_tensors(folder / f"{keys[0]}.safetensors", {"hashes": hashes, "embeddings": embeddings})


def _read(folder: Path) -> Iterator[tuple[str, Float[Tensor, "text_dim"]]]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            chunk = load_tensors(path)
            keys = [row.numpy().tobytes().hex() for row in chunk["hashes"]]
        except (InputError, KeyError):
            path.unlink()  # a damaged chunk is encoded again
            continue
        yield from zip(keys, chunk["embeddings"], strict=True)


def default_cache() -> Path:
    """Where text embeddings are cached: ``ALLREC_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("ALLREC_CACHE") or Path.home() / ".cache" / "allrec") / "texts"
