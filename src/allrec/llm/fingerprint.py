"""Which weights a language model has, so that a run can tell whether they are still the same."""

import hashlib
from pathlib import Path
from typing import Any

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def fingerprint_of(name: str, folder: Path | None, model: Any) -> dict[str, str | None]:
    """Name, revision and SHA-256 of a model: of a folder's files, or of a hub model's configuration at its commit."""
    if folder is None:
        revision = getattr(model.config, "_commit_hash", None)
        digest = hashlib.sha256(model.config.to_json_string().encode())
        return {"name": name, "revision": revision, "sha256": digest.hexdigest()}
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in ("config.json", *TOKENIZER_FILES):
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return {"name": name, "revision": None, "sha256": total.hexdigest()}
