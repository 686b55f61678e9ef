"""The stages of a run, each trained where it is missing and read where it is done."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from allrec.artifacts import load_tensors, read_json, save_tensors, write_json
from allrec.data import Dataset
from allrec.data.catalogue import Catalogue
from allrec.models.alignment import Alignment, NoAlignment, new_alignment
from allrec.models.backbones.base import Backbone, freeze
from allrec.models.backbones.registry import make_backbone
from allrec.models.language_model import LanguageModel
from allrec.models.soft_tokens import SoftTokens
from allrec.models.text_encoder import TextEncoder
from allrec.run_folder import CHECKPOINT, RunFolder
from allrec.scoring import Scoring
from allrec.training.alignment import train_alignment
from allrec.training.backbone import BackboneConfig, train_backbone
from allrec.training.examples import OnStep
from allrec.training.loop import FitReport
from allrec.training.soft_tokens import train_soft_tokens
from allrec.training.text_cache import text_embeddings
from allrec.training.tuned_text import embed_texts

SHAPE = "model.json"
Observer = Callable[[str, float, dict[str, float]], None]
"""Called with a stage's name, the share of it that is done, and named values such as losses."""


def ignore(stage: str, share: float, values: dict[str, float]) -> None:
    """An observer that looks away."""


def train_stages(
    run: RunFolder, dataset: Dataset, llm: LanguageModel, cache: Path, observer: Observer = ignore
) -> Scoring:
    """Runs every stage that is not done yet and returns what all of them learned.

    Args:
        run: the run; its recipe decides.
        dataset: the run's data set.
        llm: the frozen language model.
        cache: folder of cached text embeddings.
        observer: told of progress.
    """
    recipe = run.recipe()
    if not run.is_done("catalogue"):
        with run.stage("catalogue") as folder:
            Catalogue.of(dataset).save(folder)
    if not run.is_done("backbone"):
        _train_backbone(run, dataset, observer)
    if not run.is_done("text"):
        with run.stage("text") as folder:
            _encode_texts(folder, dataset, run, cache, observer)
    if not run.is_done("alignment"):
        _train_alignment(run, dataset, observer)
    scoring = load_scoring(run, llm)
    if not run.is_done("language_model"):
        with run.stage("language_model") as folder:
            scoring.soft_tokens, report = train_soft_tokens(
                dataset, scoring.backbone, scoring.item_inputs, llm, scoring.builder, recipe.soft_tokens,
                seed=recipe.seed, checkpoint=folder / CHECKPOINT, on_step=_on_step(observer, "language_model"),
                on_warm_up=_on_step(observer, "warm_up"),
            )  # fmt: skip
            _save(folder, scoring.soft_tokens, report)
    return scoring


class Aligned(NamedTuple):
    """What is known before stage 2, all of it frozen; no language model takes part.

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
    """Reads what the stages up to the alignment learned.

    Raises:
        InputError: one of them is not done, or a file is damaged.
    """
    catalogue = Catalogue.load(run.folder("catalogue"), run.wording())
    backbone = _read_backbone(run, catalogue.num_items)
    texts = _read_texts(run, "alignment" if run.recipe().alignment.tune_text else "text")
    alignment = new_alignment(backbone.dim, texts.shape[1], run.recipe().alignment.network)
    alignment.load_state_dict(load_tensors(run.folder("alignment") / "model.safetensors"))
    return Aligned(catalogue, backbone, texts, freeze(alignment))


def load_scoring(run: RunFolder, llm: LanguageModel) -> Scoring:
    """Reads what the stages of a run learned; the soft tokens are None where stage 2 is not done.

    Raises:
        InputError: an earlier stage is not done, or a file is damaged.
    """
    aligned = load_aligned(run)
    backbone = aligned.backbone
    scoring = Scoring(run.recipe(), *aligned, llm, None)
    if run.is_done("language_model"):
        soft_tokens = SoftTokens(backbone.dim, scoring.joint_items.shape[1], llm.dim)
        soft_tokens.load_state_dict(load_tensors(run.folder("language_model") / "model.safetensors"))
        scoring.soft_tokens = freeze(soft_tokens)
    return scoring


def _train_backbone(run: RunFolder, dataset: Dataset, observer: Observer) -> None:
    recipe = run.recipe()
    with run.stage("backbone") as folder:
        model, report = train_backbone(
            dataset,
            recipe.backbone,
            seed=recipe.seed,
            checkpoint=folder / CHECKPOINT,
            on_step=_on_step(observer, "backbone"),
        )
        _save(folder, model, report)
        # What others trained decides on its sizes itself, so the recipe does not tell them.
        write_json(folder / SHAPE, model.config.model_dump(mode="json"))


def _encode_texts(folder: Path, dataset: Dataset, run: RunFolder, cache: Path, observer: Observer) -> None:
    def on_chunk(done: int, total: int) -> None:
        observer("text", done / total, {"texts": float(done)})

    embeddings = text_embeddings(dataset.texts, run.recipe().text, cache, on_chunk=on_chunk)
    save_tensors(folder / "embeddings.safetensors", {"embeddings": embeddings})


def _train_alignment(run: RunFolder, dataset: Dataset, observer: Observer) -> None:
    recipe = run.recipe()
    backbone, texts = _read_backbone(run, dataset.num_items), _read_texts(run)
    with run.stage("alignment") as folder:
        encoder = TextEncoder(recipe.text) if recipe.alignment.tune_text else None
        alignment, report = train_alignment(
            dataset, backbone, texts, recipe.alignment, encoder=encoder,
            seed=recipe.seed, checkpoint=folder / CHECKPOINT, on_step=_on_step(observer, "alignment"),
        )  # fmt: skip
        if encoder is not None:
            save_tensors(folder / "text_encoder.safetensors", encoder.weights())
            tuned = embed_texts(dataset.texts, encoder.encode, encoder.dim)
            save_tensors(folder / "embeddings.safetensors", {"embeddings": tuned})
        _save(folder, alignment, report)


def _read_backbone(run: RunFolder, num_items: int) -> Backbone:
    folder = run.folder("backbone")
    config = run.recipe().backbone
    if (folder / SHAPE).is_file():
        config = BackboneConfig(model=read_json(folder / SHAPE))
    model = make_backbone(num_items, config.model, torch.Generator())
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
    return freeze(model)


def _read_texts(run: RunFolder, stage: str = "text") -> Float[Tensor, "items text_dim"]:
    return load_tensors(run.folder(stage) / "embeddings.safetensors")["embeddings"]


def _save(folder: Path, module: torch.nn.Module, report: FitReport) -> None:
    save_tensors(folder / "model.safetensors", module.state_dict())
    write_json(folder / "training.json", vars(report))


def _on_step(observer: Observer, stage: str) -> OnStep:
    return lambda step, values: observer(stage, values["progress"], values | {"step": float(step)})
