"""What gives evidence, in a run folder: tensors as safetensors, names and words as JSON."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allrec.backbones.base import Module, freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.errors import InputError
from allrec.files import load_tensors, read_json, save_tensors, write_json
from allrec.hybrid.collect import ContentParts, EvidenceConfig, TrainingHistories
from allrec.hybrid.content import CatalogueContent, ContentTower, ItemContent, Vocabulary
from allrec.hybrid.fusion import EvidenceScale, Fusion, FusionConfig

TABLE = "model.item_table"


def save_content_parts(folder: Path, parts: ContentParts, name: str = "content") -> dict[str, str]:
    """Writes ``NAME.safetensors`` and ``NAME.json``, without the texts. Returns the tensors' SHA-256."""
    modules = {"tower": parts.tower, "content": parts.content, "model": parts.model}
    tensors = {
        f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()
    }
    write_json(folder / f"{name}.json", {"words": parts.catalogue.vocabulary.words})
    rarity = parts.catalogue.vocabulary.rarity
    return {f"{name}.safetensors": save_tensors(folder / f"{name}.safetensors", {**tensors, "rarity": rarity})}


def save_training_histories(folder: Path, train: TrainingHistories) -> None:
    """Writes ``histories.safetensors``."""
    arrays = {"offsets": train.offsets, "items": train.items, "num_items": np.array([train.num_items])}
    save_tensors(folder / "histories.safetensors", {name: torch.from_numpy(array) for name, array in arrays.items()})


def load_training_histories(folder: Path) -> TrainingHistories:
    """Reads what ``save_training_histories`` wrote."""
    tensors = load_tensors(folder / "histories.safetensors")
    return TrainingHistories(tensors["offsets"].numpy(), tensors["items"].numpy(), int(tensors["num_items"]))


def load_content_parts(
    folder: Path,
    titles: Sequence[str | None],
    text_embeddings: Float[Tensor, "items text_dim"],
    config: EvidenceConfig,
    name: str = "content",
    catalogue: CatalogueContent | None = None,
) -> ContentParts:
    """Reads what ``save_content_parts`` wrote; items beyond those that were trained enter by their content.

    Args:
        folder: the folder.
        titles: of the catalogue, new items last.
        text_embeddings: of the same items.
        config: what the parts were trained with.
        name: of the files.
        catalogue: of the same items where it is known, so that their titles are not weighed again.

    Raises:
        InputError: a file is missing or damaged, or the catalogue has fewer items.
    """
    tensors = load_tensors(folder / f"{name}.safetensors")
    num_trained = len(tensors[TABLE])
    if len(titles) < num_trained:
        raise InputError(
            f"{folder} holds content of {num_trained} items, got {len(titles)}. Give the catalogue it was trained on."
        )
    if catalogue is None:
        vocabulary = Vocabulary(read_json(folder / f"{name}.json")["words"], tensors["rarity"])
        catalogue = CatalogueContent(text_embeddings, vocabulary, vocabulary.weigh(titles))
    shape = config.content.backbone.model
    if not isinstance(shape, SASRecConfig):
        raise InputError(f"content.backbone.model is {type(shape).__name__}, expected SASRecConfig: leave kind out.")
    generator, sizes = torch.Generator(), (text_embeddings.shape[1], len(catalogue.vocabulary))
    content_config = config.content.content.model_copy(update={"dim": shape.dim})
    content = _filled(ItemContent(*sizes, content_config, generator), tensors, "content")
    tower = ContentTower(ItemContent(*sizes, config.tower.content, generator), config.tower.dropout)
    with torch.no_grad():
        new_rows = content.embed(catalogue.texts, catalogue.words)[num_trained:]
    tensors[TABLE] = torch.cat([tensors[TABLE], new_rows])
    model = _filled(SASRec(len(titles), shape, generator), tensors, "model")
    return ContentParts(catalogue, _filled(tower, tensors, "tower"), model, content)


def save_fusion(folder: Path, fusion: Fusion, name: str = "fusion") -> dict[str, str]:
    """Writes ``NAME.safetensors`` and ``NAME.json``. Returns the tensors' SHA-256."""
    described = {"names": fusion.names, "free": fusion.free, "context": fusion.context}
    write_json(folder / f"{name}.json", described | {"config": fusion.config.model_dump()})
    return {f"{name}.safetensors": save_tensors(folder / f"{name}.safetensors", fusion.state_dict())}


def save_addition(folder: Path, fusion: Fusion | None, name: str) -> None:
    """Writes what is added to a fusion, or that nothing is: ``NAME.json`` is then null."""
    if fusion is None:
        write_json(folder / f"{name}.json", None)
    else:
        save_fusion(folder, fusion, name)


def load_addition(folder: Path, name: str) -> Fusion | None:
    """Reads what ``save_addition`` wrote.

    Raises:
        InputError: a file is missing or damaged.
    """
    return None if read_json(folder / f"{name}.json") is None else load_fusion(folder, name)


def load_fusion(folder: Path, name: str = "fusion") -> Fusion:
    """Reads what ``save_fusion`` wrote, frozen.

    Raises:
        InputError: a file is missing or damaged.
    """
    described, tensors = read_json(folder / f"{name}.json"), load_tensors(folder / f"{name}.safetensors")
    scale = EvidenceScale(tensors["mean"], tensors["spread"], tensors["members.0.knots"])
    config = FusionConfig(**described["config"])
    fusion = Fusion(
        described["names"], described["free"], described["context"], config, scale, torch.Generator().manual_seed(0)
    )
    fusion.load_state_dict(tensors)
    return freeze(fusion)


def _filled(module: Module, tensors: dict[str, Tensor], prefix: str) -> Module:
    start = f"{prefix}."
    module.load_state_dict(
        {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    )
    return freeze(module)
