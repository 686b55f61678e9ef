"""Trains and evaluates recipes over seeds, every shared stage once, into one table."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allrec.alignment.text_cache import default_cache
from allrec.backbones.registry import KINDS
from allrec.config import Recipe, choose_language_model, load_recipe
from allrec.data.dataset import Dataset, load_dataset
from allrec.errors import InputError, nearest
from allrec.experiments.evidence_worth import check_ablated, evidence_names, is_measured, measure_left_out, parts_of
from allrec.experiments.summary import FUSION, Row, run_name, summarise, to_csv, to_markdown
from allrec.files import read_json, write_json, write_text
from allrec.parallel import Engine, Needs, Observer, ignore
from allrec.recommender import AllRec, begin_training
from allrec.runs.run_folder import MANIFEST, METRICS_FILE, RunFolder, describe
from allrec.runs.stages import Training, adopt_stages, train_stages
from allrec.runs.tensorboard import recording
from allrec.runs.trained_model import TrainedModel, device_of, load_language_model

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

FORMAT_VERSION = 1
COMPARISON, RUNS = "compare.json", "runs"
NOTHING = {"compare": 0.0, "stages": 0.0}
DEFAULT = "a-llmrec"

_SLOW = (
    'alignment.positions="last"',
    "alignment.batch_size=32",
    "alignment.loop.learning_rate=1e-4",
    "alignment.loop.epochs=1",
    "text.max_tokens=32",
)
STAGE_ONE: dict[str, tuple[str, ...]] = {
    "no-matching": ('alignment.network.matching="none"',),
    "no-reconstruction": ("alignment.network.alpha=0", "alignment.network.beta=0"),
    "no-recommendation": ("alignment.network.has_recommendation=false",),
    "tuned-text": ("alignment.tune_text=true", *_SLOW),
    "frozen-text": _SLOW,
    "no-stage-1": ('alignment.network.kind="identity"',),
}
"""Stage 1: each of its losses left out; the text encoder tuned, by the paper's small steps on users' last items, for
one epoch over the beginnings of texts (a step takes a second or two on two cores), and a frozen one trained in the
same way; and no stage 1 at all, the paper's MLP-LLM.

Source: arXiv:2404.11343, section 5.3.
"""

STAGE_TWO: dict[str, tuple[str, ...]] = {
    "no-user": ("prompt.has_user=false",),
    "no-joint": ('prompt.soft_token="none"',),
    "random-joint": ('soft_tokens.item_source="random"',),
    "llm-alone": ("prompt.has_user=false", 'prompt.soft_token="none"'),
    "every-position": ('soft_tokens.positions="every"',),
}
"""Stage 2: the prompt without the user's soft token, without the items', with fixed random vectors in place of the
items' joint embeddings, without any; and targets at every position. Source: arXiv:2404.11343, section 5.3.
"""
READ_OUT: dict[str, tuple[str, ...]] = {
    "readout": ("readout.enabled=true",),
    "readout-of-user": ("readout.enabled=true", 'readout.head.reads="user"'),
}
"""The read-out head, and its control: the same head on x_u itself, so that the difference is what the model reads."""
ABLATIONS = {"stage1": STAGE_ONE, "stage2": STAGE_TWO, "readout": READ_OUT, FUSION: {}}
"""Changes of the recipe, by row. Those of fusion change none: the run's own is fitted again, see ``evidence_worth``."""

Watch = Callable[[str], AbstractContextManager[Observer]]
"""Called with a sentence before each run; opens the observer of its stages."""


def unwatched(sentence: str) -> AbstractContextManager[Observer]:
    """A watch without an observer."""
    return nullcontext(ignore)


def rows_of(
    recipes: Sequence[str] = (DEFAULT,),
    *,
    ablations: str | None = None,
    backbones: Sequence[str] = (),
    sets: Sequence[str] = (),
) -> list[Row]:
    """The requested rows, the one that all others are tested against first.

    Args:
        recipes: names or TOML files.
        ablations: the first recipe's ablations of this stage follow it.
        backbones: in place of the first recipe, it on each of these backbones, and each backbone alone.
        sets: ``key=value`` for every recipe; an ablation's own keys come after them.

    Raises:
        InputError: an unknown recipe, ablation or backbone, or two rows of one name.
    """
    if ablations is not None and backbones:
        raise InputError("got --ablations and --backbones, expected one of them. Compare twice, into two folders.")
    if not recipes:
        raise InputError("got no recipe to compare, expected at least one: --recipes a-llmrec")
    rows = [_row(load_recipe(recipe, tuple(sets)), _name(recipe)) for recipe in recipes]
    if ablations is not None:
        rows[1:1] = _ablated(recipes[0], ablations, sets)
    if ablations == FUSION:
        rows[0] = replace(rows[0], scorer=FUSION)
    if backbones:
        rows[:1] = [row for kind in backbones for row in _on_backbone(recipes[0], kind, sets)]
    _refuse_duplicates(rows)
    return rows


def _row(recipe: Recipe, name: str) -> Row:
    return Row(name, _slug(name), recipe.changed(name=name))


def _name(recipe: str) -> str:
    return Path(recipe).stem if recipe.endswith(".toml") else recipe


def _ablated(recipe: str, stage: str, sets: Sequence[str]) -> list[Row]:
    if stage not in ABLATIONS:
        raise InputError(f"got --ablations {stage!r}, expected one of {', '.join(ABLATIONS)}.")
    if stage == FUSION:
        return _without_evidence(_row(load_recipe(recipe, tuple(sets)), _name(recipe)))
    rows = [_row(load_recipe(recipe, (*sets, *overrides)), name) for name, overrides in ABLATIONS[stage].items()]
    return [replace(row, scorer="readout") for row in rows] if stage == "readout" else rows


def _without_evidence(whole: Row) -> list[Row]:
    """The same run with its fusion fitted again without each part of the evidence, and with the language model's."""
    check_ablated(whole.recipe)
    rows = [replace(whole, name="with the language model", scorer="allround")] if whole.recipe.llm.enabled else []
    return rows + [
        replace(whole, name=f"without {part}", scorer=f"{FUSION}-without-{_slug(part)}", left_out=left_out)
        for part, left_out in parts_of(evidence_names(whole.recipe)).items()
    ]


def _on_backbone(recipe: str, kind: str, sets: Sequence[str]) -> list[Row]:
    if kind not in KINDS:
        raise InputError(f"unknown backbone {kind!r}: {nearest(kind, list(KINDS))}.")
    whole = load_recipe(recipe, tuple(sets))
    # The options of the recipe's own backbone hold for another where it has an option of that name.
    stated = whole.backbone.model.model_dump(exclude_unset=True)
    shape = {key: value for key, value in stated.items() if key in KINDS[kind].config.model_fields} | {"kind": kind}
    backbone = type(whole.backbone)(**(whole.backbone.model_dump() | {"model": shape}))
    whole = whole.changed(backbone=backbone)
    row = _row(whole, f"{_name(recipe)} on {kind}")
    return [replace(row, name=f"{kind} alone", scorer="cf"), row]


def _refuse_duplicates(rows: Sequence[Row]) -> None:
    for kind, names in (("name", [row.name for row in rows]), ("folder", [row.run + row.scorer for row in rows])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"two rows have the {kind} {twice[0]!r}, expected one each. Name each recipe once.")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "recipe"


@dataclass
class Runs:
    """The runs of an experiment on one data set, in one folder; a stage that several of them share is trained once.

    Attributes:
        folder: holds a run folder each.
        dataset: what all runs are trained on.
        cache: folder of cached text embeddings.
        device: "cpu", "cuda", ...; None is the accelerator where there is one.
        loaded: a choice of language model, and the model.
    """

    folder: Path
    dataset: Dataset
    cache: Path
    device: str | None = None
    loaded: "tuple[Any, LanguageModel] | None" = None

    def all(self) -> list[RunFolder]:
        """Every run in the folder, by name."""
        return [RunFolder.open(path.parent) for path in sorted(self.folder.glob(f"*/{MANIFEST}"))]

    def llm(self, recipe: Recipe) -> "LanguageModel":
        """The recipe's language model; the last one stays in memory."""
        if self.loaded is None or self.loaded[0] != recipe.llm.chosen:
            self.loaded = None
            self.loaded = (recipe.llm.chosen, load_language_model(recipe, self.device, self.all()))
        return self.loaded[1]

    def begin(self, name: str, recipe: Recipe) -> tuple[Training, list[str]]:
        """A run's training, begun or resumed, and the stages that it takes over from other runs."""
        path = self.folder / name
        model, resume = self.llm(recipe) if recipe.llm.enabled else None, (path / MANIFEST).is_file()
        training = begin_training(
            self.dataset, path, recipe, model, resume=resume, cache=self.cache, device=self.device
        )
        return training, adopt_stages(training.run, self.all())

    def finish(self, name: str, recipe: Recipe, watch: Watch, place: str) -> None:
        """Trains and evaluates a run where that is not done yet."""
        training, shared = self.begin(name, recipe)
        run = training.run
        if run.is_done("evaluate") and (run.path / METRICS_FILE).is_file():
            return
        taken = f", takes over {', '.join(stage.replace('_', ' ') for stage in shared)}" if shared else ""
        with watch(f"{name} ({place}){taken}") as observer, recording(run.path / "events", observer) as recorder:
            AllRec(train_stages(replace(training, observer=recorder))).evaluate(self.dataset, observer=observer)

    def finish_all(
        self,
        rows: Sequence[Row],
        seeds: Sequence[int],
        llm: str | None,
        watch: Watch,
        noted: Callable[[], object] = lambda: None,
    ) -> None:
        """Trains and evaluates what is not done yet of every row with every seed; ``noted`` is called after each."""
        wanted = _wanted(rows, seeds, llm)
        for place, (name, recipe) in enumerate(wanted.items(), 1):
            self.finish(name, recipe, watch, f"{place} of {len(wanted)}")
            self.measure_left_out(name, [row for row in rows if row.left_out and name in _names(row, seeds)], watch)
            noted()

    def measure_left_out(self, name: str, rows: Sequence[Row], watch: Watch) -> None:
        """Ranks by the run's fusion without what rows leave out, where that is not done yet."""
        run = RunFolder.open(self.folder / name)
        wanted = {row.scorer: row.left_out for row in rows if not is_measured(run, row.scorer)}
        if wanted:
            with watch(f"{name}: fusion without {len(wanted)} parts of its evidence") as observer:
                measure_left_out(TrainedModel(run, device=self.device), self.dataset, wanted, observer)

    def seconds(self) -> float:
        """Total time of every stage in the folder, each shared one once."""
        entries = [entry for run in self.all() for entry in run.manifest["stages"].values()]
        return float(sum(entry.get("seconds", 0.0) for entry in entries if "adopted" not in entry))


@dataclass(frozen=True)
class RunsOfSeed:
    """Trains and evaluates every row with one seed: a task of an engine, whose part is the seed.

    Attributes:
        folder: of the comparison; every worker sees it, and the data set.
        dataset: the data set's folder.
        rows: what is trained.
        llm: see ``compare``.
        cache: folder of cached text embeddings.
        device: "cpu", "cuda", ...
    """

    folder: Path
    dataset: Path
    rows: tuple[Row, ...]
    llm: str | None
    cache: Path
    device: str | None

    def __call__(self, seed: int) -> Path:
        """Does what is not done yet; the folder of the runs."""
        runs = Runs(self.folder / RUNS, load_dataset(self.dataset), self.cache, self.device)
        runs.finish_all(self.rows, [seed], self.llm, unwatched)
        return runs.folder


def by_engine(
    engine: Engine, work: Callable[[int], Path], seeds: Sequence[int], device: str | None, watch: Watch
) -> None:
    """Does the work of every seed somewhere, an accelerator a task where there is one; what follows finds it done."""
    needs = Needs(gpus=1.0 if device_of(device).startswith("cuda") else 0.0)
    with watch(f"{len(seeds)} seeds, several at a time") as observer:
        observer("seeds", 0.0, {"seeds": 0.0})
        for done, _ in enumerate(engine.map(work, seeds, needs), 1):
            observer("seeds", done / len(seeds), {"seeds": float(done)})


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses no seeds, and a seed that is given twice."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"got seeds {list(seeds)}, expected at least one, and each once.")


def begin_experiment(file: Path, what: str, head: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The content of an experiment's file that is resumed; for a new one, ``head`` is written.

    Args:
        file: of the experiment, in its folder.
        what: as messages call it, such as "a comparison".
        head: of a new one.
        resume: whether to continue it.

    Raises:
        InputError: the folder holds one already and ``resume`` is not set, or it holds something else.
    """
    folder = file.parent
    if file.is_file():
        if not resume:
            raise InputError(f"{folder} already holds {what}. Go on with it: --resume. Or give another --out.")
        return dict(read_json(file))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is in use and does not hold {what}, expected a new or empty folder.")
    write_json(file, head)
    return head


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
    engine: Engine | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Trains and evaluates every row with every seed, and writes ``compare.json``, ``table.csv`` and ``table.md``.

    Args:
        dataset: a data set or its folder.
        rows: as ``rows_of`` makes them; the others are tested against the first.
        folder: to write; new, or with ``resume`` an earlier comparison's, to which rows and seeds may be added.
        seeds: of the runs of each row.
        llm: any causal language model by name or path, or a packaged one; each recipe's own choice where None.
        resume: continue where a comparison was stopped.
        cache: folder of cached text embeddings.
        device: "cpu", "cuda", ...; the accelerator where there is one.
        engine: trains the runs of several seeds at a time, such as ``Processes(3)``, with a thread each; its workers
            see the folders of data set and comparison. This process, one run after the other, where None.
        watch: opens an observer for each run.

    Returns:
        What ``compare.json`` holds.

    Raises:
        InputError: what is wrong with the data, a recipe or the folder, and what to do.
    """
    start, folder = time.perf_counter(), Path(folder)
    check_seeds(seeds)
    spent = begin_experiment(folder / COMPARISON, "a comparison", {"format": FORMAT_VERSION, "table": None}, resume)
    spent = NOTHING | spent.get("seconds", {})
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    runs = Runs(folder / RUNS, dataset, cache or default_cache(), device)
    before, head = runs.seconds(), {"format": FORMAT_VERSION, "dataset": describe(dataset), "seeds": list(seeds)}
    if engine is not None:
        # One process chooses the language models' precision, for all of them.
        for name, recipe in _wanted(rows, seeds, llm).items():
            runs.begin(name, recipe)
        work = RunsOfSeed(folder.absolute(), dataset.path.absolute(), tuple(rows), llm, runs.cache.absolute(), device)
        by_engine(engine, work, seeds, device, watch)

    def note(table: dict[str, Any] | None = None) -> dict[str, Any]:
        cost = _cost(spent, time.perf_counter() - start, runs.seconds() - before)
        noted = head | {"seconds": cost, "table": table}
        write_json(folder / COMPARISON, noted)
        return noted

    runs.finish_all(rows, seeds, llm, watch, note)
    table = summarise(folder / RUNS, rows, seeds)
    write_text(folder / "table.csv", to_csv(table["rows"]))
    write_text(folder / "evidence.csv", to_csv(table["evidence"]))
    write_text(folder / "table.md", to_markdown(table))
    return note(table)


def is_comparison(folder: Path) -> bool:
    """Whether a folder was written by ``compare``."""
    return (folder / COMPARISON).is_file()


def _cost(spent: Mapping[str, float], total: float, stages: float) -> dict[str, float]:
    """Seconds of a comparison, of the stages that its runs trained and scored in that time, and the overhead.

    Args:
        spent: in earlier attempts, as stored in ``compare.json``; an interrupted run is not counted.
        total: of this attempt.
        stages: of this attempt.
    """
    total, stages = spent["compare"] + total, spent["stages"] + stages
    return {"compare": total, "stages": stages, "overhead": total / stages - 1 if stages else 0.0}


def _names(row: Row, seeds: Sequence[int]) -> list[str]:
    return [run_name(row, seed) for seed in seeds]


def _wanted(rows: Sequence[Row], seeds: Sequence[int], llm: str | None) -> dict[str, Recipe]:
    # Seed after seed, so that a comparison that is stopped early has whole tables of fewer seeds.
    return {
        run_name(row, seed): choose_language_model(row.recipe.changed(seed=seed), llm) for seed in seeds for row in rows
    }
