"""Trains a recipe as a scenario has it: a run folder of its own, whose rows name the scenario."""

from pathlib import Path

from allrec.alignment.text_cache import default_cache
from allrec.backbones.training import BackboneConfig
from allrec.config import Recipe
from allrec.data.dataset import Dataset, load_dataset
from allrec.data.items import NewItems
from allrec.errors import InputError
from allrec.evaluation.evaluate import Plan
from allrec.experiments.scenarios import CROSS_DOMAIN, Scenario, make_scenario
from allrec.recommender import AllRec
from allrec.runs.add_items import store_items
from allrec.runs.stages import Observer, ignore

FEW_SHOT = "few-shot-"
STEPS, SMALLEST = 10, 32
"""Steps that an epoch of a few-shot run has at least, and interactions that a batch has at least all the same."""
PATIENCE, EPOCHS = 100, 20
"""Of backbones, and of stage 1, in a few-shot run at least."""


def train_scenario(
    dataset: Dataset | Path | str,
    name: str,
    run: Path | str,
    *,
    recipe: Recipe,
    llm: str | None = None,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    observer: Observer = ignore,
) -> AllRec:
    """Trains and evaluates a recipe as a scenario has it; its seed draws what is held out.

    Args:
        dataset: a prepared data set or its folder.
        name: one of ``scenarios.NAMES``, with another number too.
        run: folder to write, see ``AllRec.train``.
        recipe: complete.
        llm: see ``AllRec.train``.
        resume: go on where the run stopped.
        cache: folder of cached text embeddings.
        device: see ``AllRec.train``.
        observer: told of progress.

    Raises:
        InputError: an unknown scenario, one that trains nothing, or what ``AllRec.train`` refuses.
    """
    made = _made(dataset, name, recipe.seed)
    if recipe.refit != "none" and made.asked.num_items > made.train.num_items:
        raise InputError(f"{name} has items that join after training, which no refit knows. Set refit=none.")
    if name.startswith(FEW_SHOT):
        recipe = few_shot_recipe(recipe, int(made.train.train_lengths.sum()))
    system = AllRec.train(
        made.train, run=run, recipe=recipe, llm=llm, resume=resume, cache=cache, device=device, observer=observer,
        is_evaluated=False,
    )  # fmt: skip
    if made.asked.num_items > system.model.catalogue.num_items:
        store_items(system.run, later_items(made.asked, made.train.num_items), cache or default_cache())
        system = AllRec(system.model.reloaded())
    system.evaluate(made.asked, observer=observer)
    return system


def few_shot_recipe(recipe: Recipe, num_interactions: int) -> Recipe:
    """The recipe with batches that leave an epoch of few interactions at least ten steps, and more patience.

    Batches for thousands of users hold all of a hundred users at once: in the epochs that a recipe has, hardly anything
    is learned then (docs/experiments.md). What is smaller or more patient already stays, so a second time changes
    nothing.

    Args:
        recipe: complete.
        num_interactions: that training has.
    """
    most = max(SMALLEST, num_interactions // STEPS)
    content = recipe.fusion.evidence.content
    tower = recipe.fusion.evidence.tower
    small = {
        "content": content.model_copy(update={"backbone": _small(content.backbone, most)}),
        "tower": tower.model_copy(update={"batch_size": min(tower.batch_size, most)}),
    }
    alignment = recipe.alignment
    loop = alignment.loop.model_copy(update={"epochs": max(alignment.loop.epochs, EPOCHS)})
    return recipe.model_copy(
        update={
            "backbone": _small(recipe.backbone, most),
            "alignment": alignment.model_copy(update={"batch_size": min(alignment.batch_size, most), "loop": loop}),
            "fusion": recipe.fusion.model_copy(update={"evidence": recipe.fusion.evidence.model_copy(update=small)}),
        }
    )


def _small(config: BackboneConfig, most: int) -> BackboneConfig:
    patience = max(config.loop.patience_steps, PATIENCE) if config.loop.patience_steps else 0
    loop = config.loop.model_copy(update={"patience_steps": patience})
    return config.model_copy(update={"tokens_per_batch": min(config.tokens_per_batch, most), "loop": loop})


def later_items(dataset: Dataset, num_known: int) -> NewItems:
    """The items from a place in the catalogue on, to join a run that was trained on those before it."""
    genres = dataset.genres or [[] for _ in dataset.item_ids]
    columns = (dataset.item_ids, dataset.titles, dataset.texts, genres)
    return NewItems(*(column[num_known:] for column in columns))  # type: ignore[arg-type]


def evaluate_scenario(system: AllRec, dataset: Dataset | Path | str, name: str, plan: Plan | None = None) -> None:
    """Evaluates a run again in the scenario that it was trained for, and writes its ``metrics.json``.

    Raises:
        InputError: the run was trained for another scenario, or on other data.
    """
    made = _made(dataset, name, system.run.manifest["seed"])
    if system.run.manifest["dataset"]["sha256"] != made.asked.sha256:
        own = system.run.manifest["dataset"]
        raise InputError(
            f"{system.run.path} was trained on {own['name']!r}, scenario {own.get('scenario', 'standard')}, and may "
            f"have seen what {name} holds out of {made.asked.name!r}. Train one: allrec scenario DATASET --scenario "
            f"{name} --out DIR"
        )
    system.evaluate(made.asked, plan=plan)


def _made(dataset: Dataset | Path | str, name: str, seed: int) -> Scenario:
    if name == CROSS_DOMAIN:
        raise InputError(f"{CROSS_DOMAIN} trains nothing of its own: allrec evaluate RUN DATASET --scenario {name}")
    return make_scenario(dataset if isinstance(dataset, Dataset) else load_dataset(dataset), name, seed)
