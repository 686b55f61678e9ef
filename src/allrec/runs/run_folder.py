"""A run folder: what was trained, from what, how far it came, and whether its files are still as they were written."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from allrec.config import Recipe, chosen_of, dump_recipe, load_recipe
from allrec.data.dataset import Dataset
from allrec.errors import InputError, Wording
from allrec.files import FullError, check_sha256, link_or_copy, read_json, sha256_file, write_json, write_text

FORMAT_VERSION = 1
MANIFEST, RECIPE, METRICS_FILE = "manifest.json", "recipe.toml", "metrics.json"
REQUIRED = {"recipe", "seed", "dataset", "llm", "versions", "stages"}
"""What every manifest says beside its format; a run of an earlier day has no checksum of its recipe."""
CHECKPOINT = "checkpoint.safetensors"
ADDED = "added"
REFIT, REFITTED = "refit", "run"
"""The stage that trains the parts again, and the folder of the run that it writes inside its own."""
NO_LLM = {"name": "none"}
"""What the manifest of a run without a language model says of it."""
IN_PLACE = " in place of "
PARTS = ".*.part"
"""What a kill leaves of a file that was being written."""
LIBRARIES = ("allrec", "torch", "transformers", "sentence-transformers", "polars", "numpy")


class RunFolder:
    """The folder of a run and its manifest. A stage is missing, running or done; only done ones are read."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._recipe: Recipe | None = None
        self._verified: set[str] = set()

    @classmethod
    def create(
        cls, path: Path | str, recipe: Recipe, dataset: dict[str, Any], llm: dict[str, Any], resume: bool
    ) -> "RunFolder":
        """Begins a run, or goes on with it.

        Args:
            path: the folder; new or empty, or a run's where ``resume`` is set.
            recipe: complete; written to ``recipe.toml``.
            dataset: name, path, counts and sha256 of the data set.
            llm: fingerprint of the language model.
            resume: whether to go on where a run of the same recipe on the same data stopped.

        Raises:
            InputError: the folder holds something else, or the run there had other data or another recipe.
        """
        path, begun = Path(path), cls.find(path, resume)
        if begun is not None:
            begun.check_dataset(dataset["sha256"], dataset["name"])
            begun.check_llm(llm)
            if begun.recipe() != recipe:
                raise InputError(
                    f"{path} was begun with another recipe. "
                    f"Resume with the one in {path / RECIPE}, or give another --run."
                )
            return begun
        manifest = {
            "format": FORMAT_VERSION,
            "recipe": recipe.name,
            "seed": recipe.seed,
            "dataset": dataset,
            "llm": llm,
        }
        manifest |= {"machine": machine(), "versions": {name: version(name) for name in LIBRARIES}, "stages": {}}
        write_text(path / RECIPE, dump_recipe(recipe))
        run = cls(path, manifest | {"recipe_sha256": sha256_file(path / RECIPE)})
        run._write()
        return run

    @classmethod
    def find(cls, path: Path | str, resume: bool) -> "RunFolder | None":
        """The run that a training goes on with, or None in a new or empty folder.

        Args:
            path: the folder that the training is to write.
            resume: whether a run there is to be gone on with.

        Raises:
            InputError: the folder holds something else, or a run that is not to be gone on with.
        """
        path = Path(path)
        if (path / MANIFEST).exists():
            run = cls.open(path)
            if not resume:
                raise InputError(
                    f"{path} already holds a run ({run.state()}). Go on with it: --resume. Or give another --run."
                )
            return run
        if path.exists() and (not path.is_dir() or any(_is_foreign(file) for file in path.iterdir())):
            raise InputError(f"{path} is in use and holds no run, expected a new or empty folder. Give another --run.")
        return None

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Opens a run.

        Raises:
            InputError: there is none, or it was written by another version.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(f"no run in {path}: it has no {MANIFEST}. Make one: allrec train DATASET --run {path}")
        manifest = read_json(path / MANIFEST)
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT_VERSION:
            raise InputError(f"{path} has run format {found}, this version reads {FORMAT_VERSION}. Train it anew.")
        if lacking := sorted(REQUIRED - manifest.keys()):
            raise InputError(f"{path / MANIFEST} is damaged: it says nothing of {lacking[0]!r}. Train it anew.")
        return cls(path, manifest)

    def recipe(self) -> Recipe:
        """The complete recipe of the run.

        Raises:
            InputError: it is not as it was written.
        """
        if self._recipe is None:
            if "recipe_sha256" in self.manifest:
                check_sha256(self.path / RECIPE, self.manifest["recipe_sha256"])
            self._recipe = load_recipe(str(self.path / RECIPE))
        return self._recipe

    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds.

        Raises:
            InputError: the run has not been evaluated.
        """
        return dict(read_json(self.path / METRICS_FILE))

    def wording(self) -> Wording:
        """How the run's prompts speak of its items."""
        return Wording(**self.manifest["dataset"]["wording"])

    def check_dataset(self, sha256: str, name: str) -> None:
        """Refuses another data set than the run's."""
        own = self.manifest["dataset"]
        if sha256 != own["sha256"]:
            raise InputError(
                f"{self.path} was trained on data set {own['name']!r} ({own['sha256'][:12]}), got {name!r} "
                f"({sha256[:12]}). Give the run's own data set, or train another run."
            )

    def check_llm(self, fingerprint: dict[str, Any]) -> None:
        """Refuses another language model than the run's."""
        own = self.manifest["llm"]
        if own != fingerprint:
            names = [f"{one['name']!r} ({str(one.get('sha256'))[:12]})" for one in (own, fingerprint)]
            raise InputError(f"{self.path} was begun with the language model {names[0]}, got {names[1]}.")

    def state(self) -> str:
        """Every stage that was begun with its state, for messages."""
        return ", ".join(f"{name}: {noted['state']}" for name, noted in self.manifest["stages"].items()) or "just begun"

    def is_done(self, stage: str) -> bool:
        """Whether a stage has ended."""
        return bool(self.manifest["stages"].get(stage, {}).get("state") == "done")

    def seconds(self, stage: str) -> float:
        """Time spent in a stage, over all its attempts that ended in an orderly way."""
        return float(self.manifest["stages"].get(stage, {}).get("seconds", 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """Runs a stage: yields its folder, and notes checksums of what lies there when the block ends well."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(PARTS):
            leftover.unlink()
        before = self.seconds(name)
        start = time.perf_counter()
        self._note(name, {"state": "running", "seconds": before})
        try:
            yield folder
        except BaseException:
            # Where the disk is full this cannot be noted either, and the first error says so.
            with suppress(FullError):
                self._note(name, {"state": "running", "seconds": before + time.perf_counter() - start})
            raise
        for checkpoint in folder.glob(f"*{CHECKPOINT}"):
            checkpoint.unlink()
        files = {file.name: sha256_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
        seconds = before + time.perf_counter() - start
        self._note(name, {"state": "done", "seconds": seconds, "sha256": files})

    def adopt(self, stage: str, other: "RunFolder") -> None:
        """Takes over a stage that another run has done: its files, checksums and seconds, and whose they are.

        The caller knows that both runs have the same inputs to it.

        Raises:
            InputError: the stage is not done there, or a file is damaged.
        """
        source, target = other.verified_folder(stage), self.path / stage
        for checkpoint in target.glob(f"*{CHECKPOINT}"):
            checkpoint.unlink()
        for file in sorted(source.rglob("*")):
            if file.is_file() and not file.match(PARTS):
                link_or_copy(file, target / file.relative_to(source))
        noted = other.manifest["stages"][stage]
        self._note(stage, noted | {"adopted": noted.get("adopted", other.path.name)})

    def verified_folder(self, stage: str) -> Path:
        """The folder of a stage that is done, its files checked against their checksums once.

        Raises:
            InputError: the stage is not done, or a file is damaged.
        """
        if not self.is_done(stage):
            state = self.manifest["stages"].get(stage, {}).get("state", "missing")
            raise InputError(
                f"no {stage} in {self.path}: stage {stage!r} is {state!r}. "
                f"Resume with: allrec train DATASET --run {self.path} --resume"
            )
        self._verify(stage, self.manifest["stages"][stage]["sha256"])
        return self.path / stage

    @contextmanager
    def adding(self) -> Iterator[Path]:
        """Adds a folder to a trained run: yields it empty, and the manifest names it when the block ends well.

        What a kill leaves is named nowhere, so nobody reads it, and the next one begins there anew.
        """
        entries = self.manifest.get("added", [])
        name = f"{ADDED}/{len(entries) + 1:04d}"
        folder = self.path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        files = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
        self.manifest["added"] = [*entries, {"folder": name, "sha256": files}]
        self._write()

    def added(self) -> list[Path]:
        """The folders that ``adding`` made, oldest first, their files checked.

        Raises:
            InputError: a file is damaged.
        """
        entries = self.manifest.get("added", [])
        for entry in entries:
            self._verify(entry["folder"], entry["sha256"])
        return [self.path / entry["folder"] for entry in entries]

    def _verify(self, folder: str, files: dict[str, str]) -> None:
        if folder not in self._verified:
            for name, sha256 in files.items():
                check_sha256(self.path / folder / name, sha256)
            self._verified.add(folder)

    def _note(self, stage: str, value: dict[str, Any]) -> None:
        self._verified.discard(stage)
        self.manifest["stages"][stage] = value
        self._write()

    def _write(self) -> None:
        write_json(self.path / MANIFEST, self.manifest)


def machine() -> str:
    """What a run runs on, in words: times mean nothing without it."""
    threads, cores = torch.get_num_threads(), os.cpu_count()
    place = f"{platform.system()} {platform.machine()}, {threads} of {cores} cores"
    return f"{torch.cuda.get_device_name()}, {place}" if torch.cuda.is_available() else place


def _is_foreign(file: Path) -> bool:
    # A run that was killed before its manifest was written is none yet: its folder counts as empty.
    return file.name != RECIPE and not file.match(PARTS)


def refitted_run(run: RunFolder) -> RunFolder | None:
    """The run of the refitted parts; None where the recipe has none.

    Raises:
        InputError: the stage is not done.
    """
    return None if run.recipe().refit == "none" else RunFolder.open(run.verified_folder(REFIT) / REFITTED)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a run remembers of its data set."""
    return {
        "name": dataset.name, "sha256": dataset.sha256, "users": dataset.num_users, "items": dataset.num_items,
        "interactions": dataset.num_interactions, "wording": dataset.wording.model_dump(),
        "scenario": dataset.scenario,
    }  # fmt: skip


def llm_label(run: RunFolder) -> str:
    """A run's language model as tables name it: precision, tuning, targets it learned from, and what it replaces."""
    recipe = run.recipe()
    if not recipe.llm.enabled:
        return NO_LLM["name"]
    chosen, published = chosen_of(recipe), recipe.llm.published
    said: list[str] = [] if chosen.dtype == "auto" else [chosen.dtype]
    said += [] if chosen.weights == "whole" else [chosen.weights]
    said += ["tuned (LoRA)"] if recipe.llm.tuning == "lora" else []
    report = run.path / "language_model" / "training.json"
    examples = read_json(report).get("examples", {}) if report.is_file() else {}
    said += [f"{part} {count:,} targets" for part, count in examples.items() if count]
    label = f"{chosen.name}, {', '.join(said)}" if said else chosen.name
    return label if chosen.name == published.name else f"{label}{IN_PLACE}{published.name}"


def open_run(location: Path | str) -> RunFolder:
    """Opens a run of a path or a URL; one behind a URL is copied to the cache of this machine.

    Raises:
        InputError: see ``RunFolder.open``.
    """
    if "://" not in str(location):
        return RunFolder.open(location)
    from allrec import storage
    from allrec.alignment.text_cache import default_cache

    return RunFolder.open(storage.local_folder(str(location), default_cache().with_name("runs")))
