"""The stages of a run, each trained where it is missing and read where it is done."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from numpy import ndarray

from allrec.parallel import OnProgress
from allrec.runs.aligned import SHAPE, load_aligned, read_backbone, read_texts
from allrec.files import load_tensors, save_tensors, write_json
from allrec.data.dataset import Dataset
from allrec.data.catalogue import Catalogue
from allrec.runs.ensemble import load_ensemble, train_ensemble
from allrec.evaluation.llm_scores import Asked, stored_llm_scores
from allrec.hybrid.collect import Learned, TrainingHistories, collect, train_content_parts
from allrec.hybrid.features import Evidence
from allrec.hybrid.fitting import LISTED, SCOPES, fit_fusions
from allrec.hybrid.fused import LLM_EVIDENCE, Fused, Scope
from allrec.hybrid.storage import (
    load_addition,
    load_content_parts,
    load_fusion,
    load_training_histories,
    save_addition,
    save_content_parts,
    save_training_histories,
)
from allrec.backbones.base import freeze
from allrec.hybrid.fusion import Fusion
from allrec.llm.language_model import LanguageModel
from allrec.llm.soft_tokens import SoftTokens
from allrec.alignment.text_encoder import TextEncoder
from allrec.runs.run_folder import CHECKPOINT, RunFolder
from allrec.runs.scoring import Scoring
from allrec.alignment.training import train_alignment
from allrec.backbones.training import train_backbone
from allrec.training.loop import FitReport
from allrec.llm.readout_training import new_readout, train_readout
from allrec.llm.soft_token_training import train_soft_tokens
from allrec.alignment.text_cache import text_embeddings
from allrec.alignment.text_encoder import embed_texts

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
    if recipe.fusion.enabled and not run.is_done("content"):
        with run.stage("content") as folder:
            _train_content(folder, run, dataset, observer)
    if recipe.fusion.enabled and recipe.fusion.evidence.ensemble > 1 and not run.is_done("ensemble"):
        with run.stage("ensemble") as folder:
            train_ensemble(folder, run, dataset, partial(observer, "ensemble"))
    scoring = load_scoring(run, llm)
    if recipe.llm.enabled and not run.is_done("language_model"):
        with run.stage("language_model") as folder:
            scoring.soft_tokens, report = train_soft_tokens(
                dataset, scoring.backbone, scoring.item_inputs, llm, scoring.builder, recipe.soft_tokens,
                seed=recipe.seed, checkpoint=folder / CHECKPOINT, on_progress=_on_step(observer, "language_model"),
                on_warm_up=_on_step(observer, "warm_up"),
            )  # fmt: skip
            _save(folder, scoring.soft_tokens, report)
    if recipe.llm.enabled and recipe.readout.enabled and not run.is_done("readout"):
        _train_readout(run, scoring, dataset, observer)
    if recipe.fusion.enabled and not run.is_done("fusion"):
        with run.stage("fusion") as folder:
            _fit_fusion(folder, scoring, _load_evidence(run, scoring), dataset, observer)
        scoring.fused = load_fused(run, scoring)
    return scoring


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
    if run.is_done("readout"):
        readout = new_readout(torch.zeros(1, backbone.dim), scoring.reader, run.recipe().readout)
        readout.load_state_dict(load_tensors(run.folder("readout") / "model.safetensors"))
        scoring.readout = freeze(readout)
    if run.is_done("fusion"):
        scoring.fused = load_fused(run, scoring)
    return scoring


def load_fused(run: RunFolder, scoring: Scoring) -> Fused:
    """Reads the evidence and the fusions of a run.

    Raises:
        InputError: the stage is not done, or a file is damaged.
    """
    folder, config = run.folder("fusion"), run.recipe().fusion
    models: dict[Scope, Fusion] = {scope: load_fusion(folder, scope) for scope in SCOPES}
    with_llm: dict[Scope, Fusion | None] = {
        scope: load_addition(folder, f"{scope}-llm") for scope in SCOPES if (folder / f"{scope}-llm.json").is_file()
    }
    return Fused(
        _load_evidence(run, scoring), models, with_llm, config.evidence.depth, config.num_ranked, config.num_fused
    )


def _train_content(folder: Path, run: RunFolder, dataset: Dataset, observer: Observer) -> None:
    recipe, texts = run.recipe(), read_texts(run)
    parts = train_content_parts(
        dataset, texts, recipe.fusion.evidence,
        seed=recipe.seed, checkpoints=folder, on_progress=_on_step(observer, "content"),
    )  # fmt: skip
    save_content_parts(folder, parts)
    save_training_histories(folder, TrainingHistories.of(dataset))


def _load_evidence(run: RunFolder, scoring: Scoring) -> Evidence:
    folder, config = run.folder("content"), run.recipe().fusion.evidence
    parts = load_content_parts(folder, scoring.catalogue.titles, scoring.text_embeddings, config)
    own = Learned(scoring.backbone, parts, scoring.joint_embeddings)
    return collect(load_training_histories(folder), [own, *load_ensemble(run, scoring, parts.catalogue)], config.search)


def _fit_fusion(folder: Path, scoring: Scoring, evidence: Evidence, dataset: Dataset, observer: Observer) -> None:
    recipe = scoring.recipe

    def ask(asked: Asked) -> Float[ndarray, "rows candidates"]:
        return stored_llm_scores(scoring, dataset, asked, (folder,), partial(observer, "fusion"))

    can_ask = recipe.llm.enabled and scoring.can_list(dataset.targets["valid"].candidates[LISTED])
    fitted = fit_fusions(
        dataset, evidence, recipe.fusion, ask if can_ask else None,
        seed=recipe.seed, sample_seed=recipe.evaluation.bootstrap_seed,
        llm_evidence=(*LLM_EVIDENCE, *(["readout"] if scoring.readout is not None else [])),
    )  # fmt: skip
    reports = {}
    for ending, models in (("", fitted.models), ("-llm", fitted.with_llm)):
        for scope, one in models.items():
            save_addition(folder, None if one is None else one.model, f"{scope}{ending}")
            reports[f"{scope}{ending}"] = [] if one is None else [vars(report) for report in one.reports]
    write_json(folder / "training.json", reports)


def _train_backbone(run: RunFolder, dataset: Dataset, observer: Observer) -> None:
    recipe = run.recipe()
    with run.stage("backbone") as folder:
        model, report = train_backbone(
            dataset,
            recipe.backbone,
            seed=recipe.seed,
            checkpoint=folder / CHECKPOINT,
            on_progress=_on_step(observer, "backbone"),
        )
        _save(folder, model, report)
        # What others trained decides on its sizes itself, so the recipe does not tell them.
        write_json(folder / SHAPE, model.config.model_dump(mode="json"))


def _encode_texts(folder: Path, dataset: Dataset, run: RunFolder, cache: Path, observer: Observer) -> None:
    embeddings = text_embeddings(dataset.texts, run.recipe().text, cache, on_progress=partial(observer, "text"))
    save_tensors(folder / "embeddings.safetensors", {"embeddings": embeddings})


def _train_alignment(run: RunFolder, dataset: Dataset, observer: Observer) -> None:
    recipe = run.recipe()
    backbone, texts = read_backbone(run, dataset.num_items), read_texts(run, "text")
    with run.stage("alignment") as folder:
        encoder = TextEncoder(recipe.text) if recipe.alignment.tune_text else None
        alignment, report = train_alignment(
            dataset, backbone, texts, recipe.alignment, encoder=encoder,
            seed=recipe.seed, checkpoint=folder / CHECKPOINT, on_progress=_on_step(observer, "alignment"),
        )  # fmt: skip
        if encoder is not None:
            save_tensors(folder / "text_encoder.safetensors", encoder.weights())
            tuned = embed_texts(dataset.texts, encoder.encode, encoder.dim)
            save_tensors(folder / "embeddings.safetensors", {"embeddings": tuned})
        _save(folder, alignment, report)


def _train_readout(run: RunFolder, scoring: Scoring, dataset: Dataset, observer: Observer) -> None:
    with run.stage("readout") as folder:
        scoring.readout, report = train_readout(
            dataset, scoring.reader, scoring.recipe.readout,
            seed=scoring.recipe.seed, checkpoint=folder / CHECKPOINT, on_progress=_on_step(observer, "readout"),
        )  # fmt: skip
        _save(folder, scoring.readout, report)


def _save(folder: Path, module: torch.nn.Module, report: FitReport) -> None:
    save_tensors(folder / "model.safetensors", module.state_dict())
    write_json(folder / "training.json", vars(report))


def _on_step(observer: Observer, stage: str) -> OnProgress:
    return partial(observer, stage)
