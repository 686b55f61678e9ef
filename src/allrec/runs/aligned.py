"""What the stages up to the alignment learned, read back from a run; no language model takes part."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from allrec.files import load_tensors, read_json
from allrec.data.catalogue import Catalogue
from allrec.data.items import NewItems
from allrec.alignment.model import Alignment, NoAlignment, new_alignment
from allrec.backbones.base import Backbone, StatesBackbone, freeze
from allrec.backbones.registry import extended, make_backbone
from allrec.runs.run_folder import RunFolder
from allrec.backbones.training import BackboneConfig

SHAPE = "model.json"


class Aligned(NamedTuple):
    """What is known before stage 2, all of it frozen.

    Attributes:
        catalogue: items and known users.
        backbone: x_u and E.
        text_embeddings: Q of every item.
        alignment: stage 1.
    """

    catalogue: Catalogue
    backbone: Backbone
    text_embeddings: Float[Tensor, "items text_dim"]
    alignment: Alignment | NoAlignment


def load_aligned(run: RunFolder) -> Aligned:
    """Reads what the stages up to the alignment learned, with the items that were added to the run.

    Raises:
        InputError: one of them is not done, or a file is damaged.
    """
    catalogue, texts = Catalogue.load(run.folder("catalogue"), run.wording()), read_texts(run)
    backbone = read_backbone(run, catalogue.num_items)
    alignment = read_alignment(run, backbone.dim, texts.shape[1])
    for folder in run.added():
        catalogue = catalogue.extended(NewItems.load(folder))
        texts = torch.cat([texts, load_tensors(folder / "embeddings.safetensors")["embeddings"]])
    return Aligned(catalogue, with_added(backbone, alignment, texts), texts, alignment)


@torch.no_grad()
def with_added(
    backbone: Backbone, alignment: Alignment | NoAlignment, text_embeddings: Float[Tensor, "items text_dim"]
) -> Backbone:
    """A backbone over the items that joined, too: each has the row that stage 1 decodes from its text.

    Args:
        backbone: frozen, over the items that were trained on.
        alignment: frozen.
        text_embeddings: of all items, new ones last.
    """
    embeddings = backbone.item_embeddings()
    num_added = len(text_embeddings) - len(embeddings)
    if num_added == 0:
        return backbone
    if not isinstance(backbone, StatesBackbone):
        raise ValueError(f"{type(backbone).__name__} takes no new items")
    # A cold item's joint embedding does not read its item embedding, so these rows only have to be there.
    every = torch.cat([embeddings, torch.zeros(num_added, embeddings.shape[1])])
    is_cold = torch.arange(len(every)) >= len(embeddings)
    joint = alignment.joint_items(every, text_embeddings, is_cold)
    return extended(backbone, alignment.scored_items(joint[len(embeddings) :]))


def read_backbone(run: RunFolder, num_items: int, file: Path | None = None) -> Backbone:
    """A backbone of a run, frozen; those of its ensemble have the shape of its own.

    Args:
        run: whose recipe it was trained by.
        num_items: that were trained on.
        file: its tensors; those of the run's own stage where None.
    """
    config, folder = run.recipe().backbone, run.folder("backbone")
    if (folder / SHAPE).is_file():
        config = BackboneConfig(model=read_json(folder / SHAPE))
    model = make_backbone(num_items, config.model, torch.Generator())
    model.load_state_dict(load_tensors(file or folder / "model.safetensors"))
    return freeze(model)


def read_alignment(run: RunFolder, dim: int, text_dim: int, file: Path | None = None) -> Alignment | NoAlignment:
    """Stage 1 of a run, frozen; ``file`` has its tensors, those of the run's own stage where None."""
    alignment = new_alignment(dim, text_dim, run.recipe().alignment.network)
    alignment.load_state_dict(load_tensors(file or run.folder("alignment") / "model.safetensors"))
    return freeze(alignment)


def read_texts(run: RunFolder, stage: str | None = None) -> Float[Tensor, "items text_dim"]:
    """Q of the items that were trained on: as a stage left it, the run's last word where None."""
    last = "alignment" if run.recipe().alignment.tune_text else "text"
    return load_tensors(run.folder(stage or last) / "embeddings.safetensors")["embeddings"]
