"""What the program says: progress, tables, and a few users with what is recommended to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from allrec.base import InputError
from allrec.config import Recipe, load_recipe
from allrec.data import Dataset, PrepareConfig, SimulationConfig, load_dataset, simulate
from allrec.data import prepare as prepare_dataset
from allrec.data.dataset import is_dataset
from allrec.pipeline import Observer
from allrec.recommender import AllRec, Recommendation
from allrec.run_folder import MANIFEST, RECIPE, RunFolder
from allrec.setup import plan_of

out = Console()
err = Console(stderr=True)
STAGE_NAMES = {
    "backbone": "backbone (SASRec)",
    "text": "text embeddings",
    "alignment": "stage 1, alignment",
    "language_model": "stage 2, soft tokens",
    "evaluate": "evaluation",
}
DEFAULT_RECIPE = "a-llmrec"
COLUMNS = ("HR@1", "HR@10", "NDCG@10")


@contextmanager
def observing() -> Iterator[Observer]:
    """An observer that draws a bar a stage with the time left on a terminal, and writes a line a stage in a log."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=err, disable=not err.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def observer(stage: str, share: float, values: dict[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(STAGE_NAMES.get(stage, stage), total=1.0, note="")
                if not err.is_terminal:
                    err.print(f"{STAGE_NAMES.get(stage, stage)} ...", highlight=False)
            progress.update(tasks[stage], completed=share, note=_note(values))

        yield observer


def _note(values: dict[str, float]) -> str:
    shown = {"total": "loss", "validation": "valid NDCG@10", "step": "step"}
    return "  ".join(f"{name} {values[key]:.4g}" for key, name in shown.items() if key in values)


def run_quickstart(folder: Path, num_users: int, seed: int) -> None:
    """The whole pipeline on a simulated marketplace."""
    source, prepared, run = folder / "source", folder / "dataset", folder / "run"
    simulation = SimulationConfig(num_users=num_users, seed=seed)
    out.print(f"A simulated marketplace of {num_users} users goes through the whole pipeline, into {folder}.")
    if not is_dataset(prepared):
        simulate(source, simulation)
        prepare_dataset(source, prepared, config=PrepareConfig(name="simulated marketplace", seed=seed))
    recipe = load_recipe("quickstart", (f"seed={seed}",))
    system = _trained(prepared, run, recipe, None, resume=(run / MANIFEST).is_file())
    show_results(system.run)
    show_users(system, load_dataset(prepared))
    out.print(
        f"\nMore: allrec recommend {run} --history ID,ID   (ids stand in {source / 'items.jsonl'})", highlight=False
    )


def run_prepare(
    source: Path,
    folder: Path,
    items: Path | None,
    format: str | None,
    sets: list[str],
    columns: list[str],
    item_columns: list[str],
) -> None:
    """Prepares a data set and prints its counts."""
    values: dict[str, Any] = dict(_pair(text, "--set") for text in sets)
    if columns:
        values["columns"] = dict(_pair(text, "--column") for text in columns)
    if item_columns:
        values["item_columns"] = dict(_pair(text, "--item-column") for text in item_columns)
    if format is not None:
        values["format"] = format
    with err.status("reading") as status:
        dataset = prepare_dataset(source, folder, items=items, config=PrepareConfig(**values), progress=status.update)
    show_counts(dataset)


def run_train(dataset: Path, run: Path, recipe: str | None, llm: str | None, sets: list[str], resume: bool) -> None:
    """Trains, evaluates and prints the table of scores; a run that goes on has its own recipe where none is named."""
    if recipe is None:
        recipe = str(run / RECIPE) if resume and (run / MANIFEST).is_file() else DEFAULT_RECIPE
    system = _trained(dataset, run, load_recipe(recipe, tuple(sets)), llm, resume)
    show_results(system.run)


def run_evaluate(run: Path, dataset: Path, protocols: list[str]) -> None:
    """Evaluates a run again and prints the table of scores."""
    system = AllRec.from_pretrained(run)
    recipe = system.run.recipe()
    if protocols:
        values = recipe.evaluation.model_dump() | {"protocols": protocols}
        recipe = recipe.model_copy(update={"evaluation": type(recipe.evaluation)(**values)})
    with observing() as observer:
        plan = plan_of(recipe, run / "evaluate", lambda share: observer("evaluate", share, {}))
        system.evaluate(dataset, plan=plan)
    show_results(system.run)


def _trained(dataset: Path, run: Path, recipe: Recipe, llm: str | None, resume: bool) -> AllRec:
    with observing() as observer:
        return AllRec.train(dataset, run=run, recipe=recipe, llm=llm, resume=resume, observer=observer)


def show_counts(dataset: Dataset) -> None:
    """Prints what a data set holds."""
    table = Table(title=f"{dataset.name}: {dataset.path}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in dataset.counts.items():
        if isinstance(count, int):
            table.add_row(name.replace("_", " "), f"{count:,}")
    out.print(table)


def show_results(run: RunFolder) -> None:
    """Prints the scores of all test users, by protocol, with chance level and paired tests."""
    metrics = run.metrics()
    llm = metrics["llm"]["name"]
    for protocol, chance in metrics["chance"].items():
        table = Table(title=f"{metrics['dataset']['name']}, test, protocol {protocol}, language model {llm}")
        table.add_column("scorer", no_wrap=True)
        for column in ("users", "HR@1", "95%", "HR@10", "NDCG@10"):
            table.add_column(column, justify="right", no_wrap=True)
        rows = [r for r in metrics["results"] if (r["split"], r["protocol"], r["segment"]) == ("test", protocol, "all")]
        for row in rows:
            low, high = row["ci95"]["HR@1"]
            hits, later, gain = (f"{row[column]:.4f}" for column in COLUMNS)
            table.add_row(row["scorer"], f"{row['users']:,}", hits, f"{low:.3f}-{high:.3f}", later, gain)
        hits, later, gain = (f"{chance[column]:.4f}" for column in COLUMNS)
        table.add_row("chance", "", hits, "", later, gain, style="dim")
        out.print(table)
    for row in metrics["comparisons"]:
        if row["split"] == "test" and row["metric"] == "HR@1":
            out.print(
                f"HR@1 of {row['scorer']} less that of {row['against']}: {row['difference']:+.4f}, "
                f"p = {row['p']:.4f} (paired, {row['users']} users, protocol {row['protocol']})",
                highlight=False,
            )
    seconds = ", ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in metrics["seconds"].items())
    out.print(f"Time: {seconds}", highlight=False)


def show_users(system: AllRec, dataset: Dataset, num_users: int = 3) -> None:
    """Prints a few users with their latest history and what is recommended to them."""
    for user in dataset.targets["test"].users[:num_users]:
        user_id = dataset.user_ids[user]
        show_recommendations(system, user_id, None, system.recommend(user=user_id, k=5))


def show_recommendations(
    system: AllRec, user: str | None, history: Sequence[str] | None, found: Sequence[Recommendation]
) -> None:
    """Prints a history and the recommendations for it, warm and cold items marked."""
    catalogue = system.scoring.catalogue
    told = system.history_of(user, history)
    out.print(f"\n[bold]{escape(user) if user else 'history'}[/bold], {len(told)} interactions, the latest:")
    for item in told[-5:]:
        out.print(f"    {escape(catalogue.titles[item] or catalogue.item_ids[item])}", highlight=False)
    table = Table()
    for column, justify in (
        ("", "right"),
        ("item", "left"),
        ("title", "left"),
        ("", "left"),
        ("log P", "right"),
        ("cf", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for rank, item in enumerate(found, 1):
        score = "" if item.score is None else f"{item.score:.2f}"
        mark = "[cyan]cold[/cyan]" if item.is_cold else "warm"
        table.add_row(
            str(rank), escape(item.item_id), escape(item.title or "(no title)"), mark, score, f"{item.cf:.2f}"
        )
    out.print(table)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"got {option} {text!r}, expected name=value.")
    return key, value
