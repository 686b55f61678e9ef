"""Trains and evaluates recipes over seeds, every shared stage once, and measures what that cost."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from allrec.alignment.text_cache import default_cache
from allrec.config import Recipe, choose_language_model
from allrec.data.dataset import Dataset, load_dataset
from allrec.errors import InputError
from allrec.experiments.rows import Row, run_name
from allrec.experiments.summary import summarise, to_csv, to_markdown
from allrec.files import read_json, write_json, write_text
from allrec.llm.language_model import LanguageModel
from allrec.recommender import AllRec, begin_training
from allrec.runs.run_folder import MANIFEST, METRICS_FILE, RunFolder, describe
from allrec.runs.stages import Observer, adopt_stages, ignore, train_stages
from allrec.runs.tensorboard import recording
from allrec.runs.trained_model import load_language_model

FORMAT_VERSION = 1
COMPARISON, RUNS = "compare.json", "runs"
NOTHING = {"compare": 0.0, "stages": 0.0}
Watch = Callable[[str], AbstractContextManager[Observer]]
"""Called with a sentence before each run; gives the observer of its stages."""


def unwatched(sentence: str) -> AbstractContextManager[Observer]:
    """Nobody looks on."""
    return nullcontext(ignore)


@dataclass
class Comparison:
    """A comparison under way: its folder, its data, and the language model in memory.

    Attributes:
        folder: holds ``runs``, ``compare.json`` and the tables.
        dataset: what all runs are trained and scored on.
        cache: folder of cached text embeddings.
        device: "cpu", "cuda", ...; None is the accelerator where there is one.
        spent: seconds of the comparison and of its stages in earlier attempts, as far as ``compare.json`` has them;
            a kill takes both of what it interrupts.
        start: when this attempt began, by ``time.perf_counter``.
        loaded: a choice of language model, and the model.
    """

    folder: Path
    dataset: Dataset
    cache: Path
    device: str | None
    spent: dict[str, float]
    start: float
    loaded: tuple[Any, LanguageModel] | None = None

    def __post_init__(self) -> None:
        self.begun = self.own_seconds()

    def runs(self) -> list[RunFolder]:
        """Every run in the folder, by name."""
        return [RunFolder.open(path.parent) for path in sorted((self.folder / RUNS).glob(f"*/{MANIFEST}"))]

    def llm(self, recipe: Recipe) -> LanguageModel:
        """The recipe's language model; the last one stays in memory."""
        if self.loaded is None or self.loaded[0] != recipe.llm.chosen:
            self.loaded = None
            self.loaded = (recipe.llm.chosen, load_language_model(recipe, self.device, self.runs()))
        return self.loaded[1]

    def finish(self, name: str, recipe: Recipe, watch: Watch, place: str) -> None:
        """Trains and evaluates a run as far as that is not done yet."""
        path = self.folder / RUNS / name
        model, resume = self.llm(recipe) if recipe.llm.enabled else None, (path / MANIFEST).is_file()
        training = begin_training(
            self.dataset, path, recipe, model, resume=resume, cache=self.cache, device=self.device
        )
        run = training.run
        shared = adopt_stages(run, self.runs())
        if run.is_done("evaluate") and (path / METRICS_FILE).is_file():
            return
        taken = f", takes over {', '.join(stage.replace('_', ' ') for stage in shared)}" if shared else ""
        with watch(f"{name} ({place}){taken}") as observer, recording(path / "events", observer) as recorder:
            AllRec(train_stages(replace(training, observer=recorder))).evaluate(self.dataset, observer=observer)

    def cost(self) -> dict[str, float]:
        """Seconds of the comparison, of the stages that its runs trained and scored in that time, and what is above."""
        total = self.spent["compare"] + time.perf_counter() - self.start
        stages = self.spent["stages"] + self.own_seconds() - self.begun
        return {"compare": total, "stages": stages, "overhead": total / stages - 1 if stages else 0.0}

    def own_seconds(self) -> float:
        """Seconds of every stage in the folder, each shared one once."""
        entries = [entry for run in self.runs() for entry in run.manifest["stages"].values()]
        return float(sum(entry.get("seconds", 0.0) for entry in entries if "adopted" not in entry))


def compare(
    dataset: Dataset | Path | str,
    rows: Sequence[Row],
    folder: Path | str,
    *,
    seeds: Sequence[int] = (0,),
    llm: str | None = None,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Trains and evaluates every row with every seed, and writes ``compare.json``, ``table.csv`` and ``table.md``.

    Args:
        dataset: a data set or its folder.
        rows: as ``rows_of`` makes them; the others are tested against the first.
        folder: to write; new, or with ``resume`` an earlier comparison's. More rows and seeds may join it then.
        seeds: of the runs of each row.
        llm: any causal language model by name or path, or a packaged one; each recipe's own choice where None.
        resume: go on where a comparison was stopped.
        cache: folder of cached text embeddings.
        device: "cpu", "cuda", ...; the accelerator where there is one.
        watch: told of each run.

    Returns:
        What ``compare.json`` holds.

    Raises:
        InputError: what is wrong with the data, a recipe or the folder, and what to do.
    """
    start, folder = time.perf_counter(), Path(folder)
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"got seeds {list(seeds)}, expected at least one, and each once.")
    spent = _begin(folder, resume)
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    comparison = Comparison(folder, dataset, cache or default_cache(), device, spent, start)
    wanted = _wanted(rows, seeds, llm)
    head = {"format": FORMAT_VERSION, "dataset": describe(dataset), "seeds": list(seeds)}
    for place, (name, recipe) in enumerate(wanted.items(), 1):
        comparison.finish(name, recipe, watch, f"{place} of {len(wanted)}")
        write_json(folder / COMPARISON, head | {"seconds": comparison.cost(), "table": None})
    table = summarise(folder / RUNS, rows, seeds)
    write_text(folder / "table.csv", to_csv(table["rows"]))
    write_text(folder / "evidence.csv", to_csv(table["evidence"]))
    write_text(folder / "table.md", to_markdown(table))
    result = head | {"seconds": comparison.cost(), "table": table}
    write_json(folder / COMPARISON, result)
    return result


def is_comparison(folder: Path) -> bool:
    """Whether a folder was written by ``compare``."""
    return (folder / COMPARISON).is_file()


def _begin(folder: Path, resume: bool) -> dict[str, float]:
    if is_comparison(folder):
        if not resume:
            raise InputError(f"{folder} already holds a comparison. Go on with it: --resume. Or give another --out.")
        return NOTHING | read_json(folder / COMPARISON).get("seconds", {})
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is in use and holds no comparison, expected a new or empty folder.")
    write_json(folder / COMPARISON, {"format": FORMAT_VERSION, "seconds": {}, "table": None})
    return NOTHING


def _wanted(rows: Sequence[Row], seeds: Sequence[int], llm: str | None) -> dict[str, Recipe]:
    # Seed after seed, so that a comparison that is stopped early has whole tables of fewer seeds.
    return {
        run_name(row, seed): choose_language_model(row.recipe.model_copy(update={"seed": seed}), llm)
        for seed in seeds
        for row in rows
    }
