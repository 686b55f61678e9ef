"""Refit: after all choices are made, the parts are trained again on the interactions that the choices were held out on.

The refitted parts are a run of their own inside the stage's folder, so that it is resumed, checked and loaded as any
run is. Epochs are those that early stopping kept, fusion keeps its weights, counts and tables are made anew.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from allrec.config import Recipe
from allrec.data.dataset import Dataset
from allrec.files import read_json, sha256_text
from allrec.runs.run_folder import REFITTED, RunFolder

KEPT = ("text", "fusion")
"""Stages that are taken over as they are."""


def refit_dataset(dataset: Dataset, refit: Literal["valid", "all"]) -> Dataset:
    """The data set with validation targets, or everything, as training interactions.

    Whatever precedes a user's validation target is training data, too. Of ``valid`` the test targets stay held
    out; of ``all`` nothing is left to evaluate.
    """
    lengths, valid, test = dataset.train_lengths.copy(), dataset.targets["valid"], dataset.targets["test"]
    lengths[valid.users] = valid.positions + 1
    targets = {"valid": valid.take(np.arange(0)), "test": test}
    if refit == "all":
        lengths, targets["test"] = np.diff(dataset.offsets), test.take(np.arange(0))
    return replace(
        dataset, train_lengths=lengths, targets=targets, sha256=sha256_text(f"{dataset.sha256} refit {refit}")
    )


def refit_recipe(run: RunFolder) -> Recipe:
    """The recipe of a run with the epochs that early stopping kept in it; those of its ensemble are its own.

    Without validation targets a training runs through all of its epochs and keeps the last.
    """
    values = run.recipe().model_dump(mode="json") | {"refit": "none"}
    _fix_epochs(values["backbone"]["loop"], run, "backbone")
    if values["fusion"]["enabled"]:
        _fix_epochs(values["fusion"]["evidence"]["content"]["backbone"]["loop"], run, "content")
    if values["llm"]["enabled"] and values["readout"]["enabled"]:
        _fix_epochs(values["readout"]["loop"], run, "readout")
    return Recipe(**values)


def begin_refit(run: RunFolder, folder: Path, dataset: Mapping[str, Any]) -> RunFolder:
    """Makes or opens the run inside the stage's folder, with the stages that are kept."""
    refitted = RunFolder.create(folder / REFITTED, refit_recipe(run), dict(dataset), run.manifest["llm"], resume=True)
    for stage in KEPT:
        if run.is_done(stage) and not refitted.is_done(stage):
            refitted.adopt(stage, run)
    return refitted


def _fix_epochs(loop: dict[str, Any], run: RunFolder, stage: str) -> None:
    best = read_json(run.verified_folder(stage) / "training.json")["best_epoch"]
    if best is not None:
        loop["epochs"] = best + 1
