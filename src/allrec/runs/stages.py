"""The stages of a run, in one table: each is trained where it is missing and read where it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from allrec import seeds
from allrec.alignment.text_cache import text_embeddings
from allrec.alignment.text_encoder import TextEncoder, embed_texts
from allrec.alignment.text_tuning import tune_text, tuned_embeddings
from allrec.alignment.training import train_alignment
from allrec.alignment.whitening import Whitening
from allrec.backbones.base import Backbone
from allrec.backbones.pretrained import is_pretrained
from allrec.backbones.training import train_backbone
from allrec.config import SECOND, TUNED, Recipe
from allrec.data.catalogue import Catalogue
from allrec.data.dataset import Dataset, load_dataset
from allrec.errors import InputError
from allrec.evaluation.evaluate import RankingRequest
from allrec.files import save_tensors, write_json
from allrec.hybrid.content import TrainingHistories, save_content_parts, save_training_histories, train_content_parts
from allrec.hybrid.fitting import LISTED, fit_fusions
from allrec.hybrid.fusion import LLM_EVIDENCE, save_addition
from allrec.hybrid.ranking import LlmReader
from allrec.llm.adapter import check_lora
from allrec.parallel import Observer, OnProgress, ignore
from allrec.runs.further_texts import EMBEDDINGS, LAYERS, WHITENING
from allrec.runs.refit import begin_refit, refit_dataset
from allrec.runs.run_folder import CHECKPOINT, REFIT, RunFolder, describe
from allrec.runs.scorers import stored_reader
from allrec.runs.trained_model import ADAPTER, PRIORS, SHAPE, TrainedModel, read_backbone, read_texts
from allrec.training.distributed import Group, Teller, following, place
from allrec.training.loop import FitReport

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

EVALUATE = "evaluate"
"""The last stage of a run, which trains nothing."""
RETRIEVAL = {"search", "depth", "fitted_candidates"}
"""Keys of the evidence that no training depends on."""
AFTER_ALIGNMENT = {"llm", "prompt", "soft_tokens", "readout", "cold_below", "fusion", "second_text", "text_tuning"}
PARTS = 3
"""Of a further training: backbone, alignment, content parts."""
TITLES_A_BLOCK = 512
"""Titles whose prior is worked out between two reports of progress."""


@dataclass(frozen=True)
class Training:
    """A training under way.

    Attributes:
        model: what the stages that are done learned.
        dataset: the run's data set.
        cache: folder of cached text embeddings.
        observer: sees the progress.
        group: workers that train together what can be shared; None trains in this process.
    """

    model: TrainedModel
    dataset: Dataset
    cache: Path
    observer: Observer = ignore
    group: Group | None = None

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.model.recipe

    @property
    def run(self) -> RunFolder:
        """The run."""
        return self.model.run

    def progress(self, stage: str) -> OnProgress:
        """The observer of one stage."""
        return partial(self.observer, stage)


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: of its folder.
        train: trains it and writes what it learned into its folder.
        is_wanted: whether a recipe has it.
        inputs: of (recipe as plain values): all of it that decides what the stage comes to, beside the data set; None
            where the stage is its run's own and never taken over from another.
        timed_as: the entry of ``seconds`` in ``metrics.json``.
        is_shared: whether a group of workers can train it: all call ``train``, and rank 0 writes.
    """

    name: str
    train: Callable[[Training, Path], None]
    is_wanted: Callable[[Recipe], bool]
    inputs: Callable[[Mapping[str, Any]], dict[str, Any]] | None
    timed_as: str
    is_shared: bool = False


def train_stages(training: Training) -> TrainedModel:
    """Runs every stage that the recipe wants and that is not done yet, and returns what all of them learned."""
    for stage in STAGES.values():
        if stage.is_wanted(training.recipe) and not training.run.is_done(stage.name):
            with training.run.stage(stage.name) as folder:
                if training.group is None or not stage.is_shared:
                    stage.train(training, folder)
                else:
                    shared = SharedStage.of(stage, training, folder)
                    with following(shared.told, training.observer):
                        training.group.run(shared)
    return training.model.complete()


@dataclass(frozen=True)
class SharedStage:
    """A stage as a worker of a group trains it: of files that all workers read.

    Attributes:
        name: of the stage.
        run: the run's folder.
        dataset: the data set's folder.
        folder: the stage's, where rank 0 writes.
        cache: folder of cached text embeddings.
        device: where to train.
    """

    name: str
    run: Path
    dataset: Path
    folder: Path
    cache: Path
    device: str

    @classmethod
    def of(cls, stage: Stage, training: Training, folder: Path) -> SharedStage:
        """A stage of a training under way."""
        paths = (training.run.path, training.dataset.path, folder, training.cache)
        run, dataset, folder, cache = (path.absolute() for path in paths)
        return cls(stage.name, run, dataset, folder, cache, training.model.device)

    @property
    def told(self) -> Path:
        """The file by which rank 0 tells of its progress."""
        return self.run / "progress.json"

    def __call__(self) -> None:
        """Trains the stage together with the others of the group."""
        model = TrainedModel(RunFolder.open(self.run), None, self.device)
        observer = Teller(self.told) if place().rank == 0 else ignore
        STAGES[self.name].train(Training(model, load_dataset(self.dataset), self.cache, observer), self.folder)


def seconds_of(run: RunFolder, prepare: float) -> dict[str, float]:
    """Seconds of every stage as ``metrics.json`` has them, and their sum."""
    seconds = {"prepare": prepare}
    for name, timed_as in [*((stage.name, stage.timed_as) for stage in STAGES.values()), (EVALUATE, EVALUATE)]:
        seconds[timed_as] = seconds.get(timed_as, 0.0) + run.seconds(name)
    return seconds | {"total": sum(seconds.values())}


def check_before_training(dataset: Dataset, recipe: Recipe, llm: LanguageModel | None, is_evaluated: bool) -> None:
    """Fails fast on problems that a later stage would only meet after hours.

    Raises:
        InputError: items without any text, nobody to evaluate, or training prompts that outgrow the language model.
    """
    if not any(dataset.texts):
        raise InputError(f"{dataset.name}: no item has a text. Prepare it with an items file that has a title column.")
    if is_evaluated and not any(len(dataset.targets[split]) for split in recipe.evaluation.splits):
        raise InputError(
            f"{dataset.name} has nobody to evaluate: no user has three interactions. Prepare a source of longer ones."
        )
    if llm is not None and recipe.llm.tuning == "lora":
        check_lora()
    if llm is not None and not recipe.prompt.is_bare:
        _refuse_long_prompts(dataset, recipe, llm)


def stage_inputs(run: RunFolder, name: str) -> dict[str, Any]:
    """All that decides what a stage of a run comes to: equal inputs, equal bytes."""
    inputs, manifest = STAGES[name].inputs, run.manifest
    if inputs is None:
        raise ValueError(f"stage {name} is its run's own")
    known = run.recipe().model_dump(mode="json", exclude={"name", "evaluation", "refit"})
    known["fingerprint"] = manifest["llm"]
    return {"dataset": manifest["dataset"]["sha256"]} | inputs(known)


def adopt_stages(run: RunFolder, others: Iterable[RunFolder]) -> list[str]:
    """Takes over every stage that ``run`` lacks and another run has done from the same inputs, and names them."""
    others = [other for other in others if other.path != run.path]
    adopted = []
    for stage in STAGES.values():
        if stage.inputs is None or run.is_done(stage.name):
            continue
        inputs = stage_inputs(run, stage.name)
        done = (other for other in others if other.is_done(stage.name))
        donor = next((other for other in done if stage_inputs(other, stage.name) == inputs), None)
        if donor is not None:
            run.adopt(stage.name, donor)
            adopted.append(stage.name)
    return adopted


def _store_catalogue(training: Training, folder: Path) -> None:
    Catalogue.of(training.dataset).save(folder)


def _train_backbone(training: Training, folder: Path) -> None:
    model, report = train_backbone(
        training.dataset, training.recipe.backbone,
        seed=training.recipe.seed, checkpoint=folder / CHECKPOINT, on_progress=training.progress("backbone"),
        device=training.model.device,
    )  # fmt: skip
    if place().rank > 0:
        return
    _save(folder, model, report)
    # A backbone that others trained decides on its sizes itself, so the recipe does not have them.
    write_json(folder / SHAPE, model.config.model_dump(mode="json"))


def _encode_texts(training: Training, folder: Path) -> None:
    texts, config = training.dataset.texts, training.recipe.text
    device, progress = training.model.device, training.progress("text")
    embeddings = text_embeddings(texts, config, training.cache, device=device, on_progress=progress)
    save_tensors(folder / "embeddings.safetensors", {"embeddings": embeddings})


def _read_second_text(training: Training, folder: Path) -> None:
    from allrec.llm.text_states import pooled_states

    dataset, config = training.dataset, training.recipe.second_text
    device, progress = training.model.device, training.progress(SECOND)
    states = pooled_states(dataset.texts, config, training.cache, device=device, on_progress=progress)
    is_seen = torch.from_numpy(dataset.train_counts() > 0) & states.any(dim=1)
    whitening = Whitening.fit(states[is_seen], config.added)
    save_tensors(folder / WHITENING, whitening._asdict())
    save_tensors(folder / EMBEDDINGS, {"embeddings": whitening(states)})


def _tune_text(training: Training, folder: Path) -> None:
    dataset, recipe = training.dataset, training.recipe
    config, encoder = recipe.text_tuning, TextEncoder(recipe.text, training.model.device)
    layers = encoder.last_layers(config.layers)
    states = encoder.states_before(config.layers, dataset.texts, config.max_tokens)
    report = tune_text(
        dataset, layers, states, config,
        seed=recipe.seed, checkpoint=folder / CHECKPOINT, on_progress=training.progress(TUNED),
    )  # fmt: skip
    save_tensors(folder / LAYERS, layers.weights())
    save_tensors(folder / EMBEDDINGS, {"embeddings": tuned_embeddings(layers, states)})
    write_json(folder / "training.json", vars(report))


def _train_alignment(training: Training, folder: Path) -> None:
    dataset, recipe, run = training.dataset, training.recipe, training.run
    encoder = TextEncoder(recipe.text, training.model.device) if recipe.alignment.tune_text else None
    alignment, report = train_alignment(
        dataset, read_backbone(run, dataset.num_items), read_texts(run, "text"), recipe.alignment, encoder=encoder,
        seed=recipe.seed, checkpoint=folder / CHECKPOINT, on_progress=training.progress("alignment"),
        device=training.model.device,
    )  # fmt: skip
    if place().rank > 0:
        return
    if encoder is not None:
        save_tensors(folder / "text_encoder.safetensors", encoder.weights())
        tuned = embed_texts(dataset.texts, encoder.encode, encoder.dim)
        save_tensors(folder / "embeddings.safetensors", {"embeddings": tuned})
    _save(folder, alignment, report)


def _train_content(training: Training, folder: Path) -> None:
    recipe = training.recipe
    parts = train_content_parts(
        training.dataset, training.model.content_texts, recipe.fusion.evidence,
        seed=recipe.seed, checkpoints=folder, on_progress=training.progress("content"),
    )  # fmt: skip
    save_content_parts(folder, parts)
    write_json(folder / "training.json", vars(parts.report) if parts.report else {})
    save_training_histories(folder, TrainingHistories.of(training.dataset))


def training_seed(seed: int, number: int) -> int:
    """Seed of a further training of an ensemble; number 0 is the run itself, which has its own."""
    return seeds.derived(seed, "ensemble", number)


def _train_ensemble(training: Training, folder: Path) -> None:
    """Trains backbone, alignment and content parts again with other seeds: their mean is better than any one of them.

    Text embeddings are the run's; where its text encoder was tuned, all read the tuned ones. A backbone that others
    trained is the run's in each.
    """

    def progress(part: int) -> OnProgress:
        # Without the steps, which begin anew with every part.
        return lambda share, values: observe((part + share) / num_parts, {"total": values["total"]})

    recipe, texts, observe = training.recipe, read_texts(training.run), training.progress("ensemble")
    config = recipe.alignment.model_copy(update={"tune_text": False})
    numbers = range(1, recipe.fusion.evidence.ensemble)
    num_parts = PARTS * len(numbers)
    for number in numbers:
        seed, part = training_seed(recipe.seed, number), PARTS * (number - 1)
        backbone = _further_backbone(training, folder, number, progress(part))
        alignment, _ = train_alignment(
            training.dataset, backbone, texts, config,
            seed=seed, checkpoint=folder / f"{number}-alignment-{CHECKPOINT}", on_progress=progress(part + 1),
            device=training.model.device,
        )  # fmt: skip
        parts = train_content_parts(
            training.dataset, training.model.content_texts, recipe.fusion.evidence,
            seed=seed, checkpoints=folder, prefix=f"{number}-", on_progress=progress(part + 2),
        )  # fmt: skip
        save_tensors(folder / f"{number}-alignment.safetensors", alignment.state_dict())
        save_content_parts(folder, parts, f"{number}-content")


def _further_backbone(training: Training, folder: Path, number: int, on_progress: OnProgress) -> Backbone:
    dataset, recipe = training.dataset, training.recipe
    if is_pretrained(recipe.backbone.model, recipe.backbone.checkpoint):
        return read_backbone(training.run, dataset.num_items)
    backbone, _ = train_backbone(
        dataset, recipe.backbone, seed=training_seed(recipe.seed, number),
        checkpoint=folder / f"{number}-backbone-{CHECKPOINT}", on_progress=on_progress, device=training.model.device,
    )  # fmt: skip
    save_tensors(folder / f"{number}-backbone.safetensors", backbone.state_dict())
    return backbone


def _train_language_model(training: Training, folder: Path) -> None:
    from allrec.llm.soft_token_training import train_soft_tokens

    model, recipe = training.model, training.recipe
    llm = model.llm if recipe.llm.tuning == "none" else model.new_adapter()
    # Those of the untuned model are learned against; those of the tuned one are not there before.
    priors = _title_priors(training) if recipe.soft_tokens.objective == "choice" else None
    soft_tokens, report = train_soft_tokens(
        training.dataset, model.backbone, model.item_inputs, llm, model.builder, recipe.soft_tokens, priors,
        seed=recipe.seed, checkpoint=folder / CHECKPOINT,
        on_progress=training.progress("language_model"), on_warm_up=training.progress("warm_up"),
    )  # fmt: skip
    model.tuned_llm, is_first = llm, place().rank == 0
    # A model whose layers lie in parts over the workers needs all of them to read.
    if priors is None and (is_first or llm.is_sharded):
        priors = _title_priors(training)
    if priors is None or not is_first:
        return
    _save(folder, soft_tokens, report)
    if llm.adapter is not None:
        save_tensors(folder / ADAPTER, llm.adapter.state_dict())
    save_tensors(folder / PRIORS, {"priors": torch.from_numpy(priors)})


def _title_priors(training: Training) -> ndarray:
    """log P(title | no history) of every item, in nats, block by block with progress: it takes minutes on a CPU."""
    model, num_items, progress = training.model, training.dataset.num_items, training.progress("title_priors")
    blocks = []
    for start in range(0, num_items, TITLES_A_BLOCK):
        end = min(start + TITLES_A_BLOCK, num_items)
        blocks.append(model.priors_of(model.builder, np.arange(start, end)))
        progress(end / num_items, {"titles": float(end)})
    return np.concatenate(blocks)


def _train_readout(training: Training, folder: Path) -> None:
    from allrec.llm.readout_training import train_readout

    readout, report = train_readout(
        training.dataset, training.model.reader, training.recipe.readout,
        seed=training.recipe.seed, checkpoint=folder / CHECKPOINT, on_progress=training.progress("readout"),
    )  # fmt: skip
    if place().rank == 0:
        _save(folder, readout, report)


def _fit_fusion(training: Training, folder: Path) -> None:
    model, dataset, recipe = training.model, training.dataset, training.recipe

    def new_reader(split: str, lists: str, rows: Int[ndarray, "rows"]) -> LlmReader:
        request = RankingRequest(dataset, split, LISTED, rows, rows, (folder,), training.progress("fusion"))
        return stored_reader(model, request, lists)

    fits = recipe.llm.enabled and model.titles.fits(dataset.targets["valid"].candidates[LISTED])
    fitted = fit_fusions(
        dataset, model.evidence, recipe.fusion, new_reader if fits else None,
        seed=recipe.seed, sample_seed=recipe.evaluation.bootstrap_seed,
        llm_evidence=(*LLM_EVIDENCE, *(["readout"] if recipe.readout.enabled else [])),
    )  # fmt: skip
    reports = {}
    for ending, models in (("", fitted.fusions), ("-llm", fitted.additions)):
        for scope, one in models.items():
            save_addition(folder, None if one is None else one.model, f"{scope}{ending}")
            reports[f"{scope}{ending}"] = [] if one is None else [vars(report) for report in one.reports]
    write_json(folder / "training.json", reports)


def _refit(training: Training, folder: Path) -> None:
    refit = training.recipe.refit
    if refit == "none":
        raise ValueError("the recipe has no refit")
    dataset, model = refit_dataset(training.dataset, refit), training.model
    run = begin_refit(training.run, folder, describe(dataset))
    inner = TrainedModel(run, model.llm if model.has_llm else None, model.device)
    wanted = [name for name, stage in STAGES.items() if stage.is_wanted(inner.recipe)]
    places = {name: place for place, name in enumerate(wanted)}

    def observe(stage: str, share: float, values: dict[str, float]) -> None:
        # Without the steps, which begin anew with every stage.
        if stage in places:
            losses = {name: value for name, value in values.items() if name == "total"}
            training.observer(REFIT, (places[stage] + share) / len(places), losses)

    train_stages(replace(training, model=inner, dataset=dataset, observer=observe))


def _refuse_long_prompts(dataset: Dataset, recipe: Recipe, llm: LanguageModel) -> None:
    from allrec.llm.prompt import PromptBuilder

    builder = PromptBuilder.of(llm, dataset.titles, dataset.wording, recipe.prompt)
    longest = np.argsort(builder.title_lengths, kind="stable")[-recipe.soft_tokens.num_candidates :]
    if not builder.fits(longest[None]):
        raise InputError(
            f"the {len(longest)} longest titles outgrow a prompt: the language model reads {llm.max_length} tokens. "
            "Lower prompt.max_title_tokens or soft_tokens.num_candidates, or take a model that reads more."
        )


def _save(folder: Path, module: torch.nn.Module, report: FitReport) -> None:
    save_tensors(folder / "model.safetensors", module.state_dict())
    write_json(folder / "training.json", vars(report))


def _always(recipe: Recipe) -> bool:
    return True


def _has_fusion(recipe: Recipe) -> bool:
    return recipe.fusion.enabled


def _has_ensemble(recipe: Recipe) -> bool:
    return recipe.fusion.enabled and recipe.fusion.evidence.ensemble > 1


def _has_llm(recipe: Recipe) -> bool:
    return recipe.llm.enabled


def _has_second_text(recipe: Recipe) -> bool:
    return SECOND in recipe.further_encoders


def _has_text_tuning(recipe: Recipe) -> bool:
    return TUNED in recipe.further_encoders


def _is_refitted(recipe: Recipe) -> bool:
    return recipe.refit != "none"


def _has_readout(recipe: Recipe) -> bool:
    return recipe.llm.enabled and recipe.readout.enabled


def _content_inputs(recipe: Mapping[str, Any], *, is_ensemble: bool) -> dict[str, Any]:
    evidence = {key: value for key, value in recipe["fusion"]["evidence"].items() if key not in RETRIEVAL}
    evidence["ensemble"] = evidence["ensemble"] if is_ensemble else None
    keys = ("text", SECOND, TUNED, "alignment", "backbone", "seed")
    return {key: recipe[key] for key in keys} | {"evidence": evidence}


def _llm_inputs(recipe: Mapping[str, Any], *, is_readout: bool) -> dict[str, Any]:
    # Every key counts as an input unless it is left out here, so that a new one costs time and never truth.
    kept = {key: recipe["llm"][key] for key in ("chosen", "tuning", "lora")}
    readout = recipe["readout"] if is_readout else None
    further = dict.fromkeys((SECOND, TUNED))
    return {**recipe, **kept, **further, "readout": readout, "llm": None, "fusion": None}


_ALL = (
    Stage("catalogue", _store_catalogue, _always, lambda recipe: {}, "prepare"),
    Stage(
        "backbone",
        _train_backbone,
        _always,
        lambda recipe: {key: recipe[key] for key in ("backbone", "seed")},
        "backbone",
        is_shared=True,
    ),
    Stage("text", _encode_texts, _always, lambda recipe: {"text": recipe["text"]}, "text"),
    Stage(
        SECOND,
        _read_second_text,
        _has_second_text,
        lambda recipe: {"second_text": recipe["second_text"]},
        "text",
    ),
    Stage(
        TUNED,
        _tune_text,
        _has_text_tuning,
        lambda recipe: {key: recipe[key] for key in ("text", "text_tuning", "seed")},
        "fusion",
    ),
    Stage(
        "alignment",
        _train_alignment,
        _always,
        lambda recipe: {key: value for key, value in recipe.items() if key not in {*AFTER_ALIGNMENT, "fingerprint"}},
        "alignment",
        is_shared=True,
    ),
    Stage("content", _train_content, _has_fusion, partial(_content_inputs, is_ensemble=False), "fusion"),
    Stage("ensemble", _train_ensemble, _has_ensemble, partial(_content_inputs, is_ensemble=True), "fusion"),
    Stage(
        "language_model",
        _train_language_model,
        _has_llm,
        partial(_llm_inputs, is_readout=False),
        "language_model",
        is_shared=True,
    ),
    Stage("readout", _train_readout, _has_readout, partial(_llm_inputs, is_readout=True), "readout", is_shared=True),
    Stage("fusion", _fit_fusion, _has_fusion, None, "fusion"),
    Stage(REFIT, _refit, _is_refitted, None, "refit"),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
"""Every stage that trains, in order; everything that names stages derives from this table."""
