"""A run's results for the report, read from its folder; what the folder lacks is None and left out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from allrec.alignment.model import Alignment
from allrec.config import Recipe
from allrec.data.catalogue import Catalogue
from allrec.errors import InputError
from allrec.evaluation.results import RANKS, StoredRanks, load_ranks, own_results
from allrec.files import load_tensors, read_json
from allrec.llm.score_files import USERS_A_CHUNK
from allrec.runs.run_folder import METRICS_FILE, RunFolder
from allrec.runs.tensorboard import read_curves
from allrec.runs.trained_model import TrainedModel

FUSION = "fusion"
TRAINED = ("backbone", "alignment", "warm_up", "language_model")
"""The trained stages in order; others follow. A warm-up is a part of stage 2."""


class Joint(NamedTuple):
    """Both joint embeddings of every item, and how often it was seen in training."""

    items: Float[ndarray, "items joint"]
    texts: Float[ndarray, "items joint"]
    has_text: Bool[ndarray, "items"]
    seen: Int[ndarray, "items"]


class Confidence(NamedTuple):
    """The probability of a scorer's first choice, and whether that was the target."""

    values: Float[ndarray, "users"]
    is_hit: Bool[ndarray, "users"]


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it.

    Attributes:
        name: on the page.
        run: its folder.
        recipe: complete.
        metrics: ``metrics.json``; None before an evaluation.
        reports: ``training.json`` of each trained stage.
        curves: steps and values of every recorded curve.
        stored: ranks; None where the run is older than they are.
        joint: e and q; None without a trained stage 1.
        counts: training interactions of every item; None before the first stage.
        categories: each item's first genre, where the data set has genres.
        fits: reports of fitted fusions, one a member, by scope.
    """

    name: str
    run: RunFolder
    recipe: Recipe
    metrics: dict[str, Any] | None
    reports: dict[str, dict[str, Any]]
    curves: dict[str, list[tuple[int, float]]]
    stored: StoredRanks | None
    joint: Joint | None
    counts: Int[ndarray, "items"] | None
    categories: list[str | None] | None = None
    fits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """The protocol of the figures: the paper's, where the run has it."""
        protocols = list((self.metrics or {}).get("chance", {}))
        return "paper" if "paper" in protocols or not protocols else str(protocols[0])

    def rows(self, scorer: str, split: str = "test") -> list[dict[str, Any]]:
        """The scorer's rows of ``metrics.json``, one a segment."""
        wanted = (split, self.protocol, scorer)
        results = own_results(self.metrics) if self.metrics else []
        return [row for row in results if (row["split"], row["protocol"], row["scorer"]) == wanted]

    def scorers(self) -> list[str]:
        """Every scorer of the test split, in the order of ``metrics.json``."""
        results = own_results(self.metrics) if self.metrics else []
        names = [row["scorer"] for row in results if (row["split"], row["protocol"]) == ("test", self.protocol)]
        return list(dict.fromkeys(names))

    def trained(self) -> list[str]:
        """The stages with recorded losses, in order."""
        stages = {name.partition("/")[0] for name in self.curves if name.endswith("/total")}
        stages |= {stage for stage, report in self.reports.items() if report["losses"]}
        return [stage for stage in TRAINED if stage in stages] + sorted(stages - set(TRAINED))

    def confidence(self, scorer: str) -> Confidence | None:
        """Of a language-model scorer on the test split, from the scores that the evaluation stored."""
        if self.stored is None or ("test", self.protocol, scorer) not in self.stored.rankings:
            return None
        ranks = self.stored.rankings["test", self.protocol, scorer].ranks
        scores = stored_scores(self.run.path / "evaluate", f"test-{self.protocol}-{scorer}", len(ranks))
        return None if scores is None else Confidence(torch.softmax(scores, 1).max(1).values.numpy(), ranks == 0)


def load_view(path: Path, name: str | None = None) -> RunView:
    """Reads a run for the page.

    Args:
        path: the run folder.
        name: on the page; the recipe's name if left out.
    """
    run = RunFolder.open(path)
    catalogue = Catalogue.load(run.verified_folder("catalogue"), run.wording()) if run.is_done("catalogue") else None
    stored = load_ranks(run.verified_folder("evaluate")) if (path / "evaluate" / RANKS).is_file() else None
    return RunView(
        name=name or str(run.manifest["recipe"]),
        run=run,
        recipe=run.recipe(),
        metrics=run.metrics() if (path / METRICS_FILE).is_file() else None,
        reports=_reports(run),
        curves=_curves(run),
        stored=stored,
        joint=_joint(run),
        counts=None if catalogue is None else np.asarray(catalogue.train_counts),
        categories=None if catalogue is None or catalogue.genres is None else _first(catalogue.genres),
        fits=_fits(run),
    )  # fmt: skip


def stored_scores(folder: Path, start: str, num_rows: int) -> torch.Tensor | None:
    """The scores that an evaluation stored in chunks, in their order; None where they do not cover ``num_rows`` rows.

    Of several chunks of one place, from evaluations of several samples, the latest of the right length counts.
    """
    scores = []
    for place in range(0, num_rows, USERS_A_CHUNK):
        paths = sorted(folder.glob(f"{start}-{place}-{'[0-9a-f]' * 12}.safetensors"), key=_written, reverse=True)
        chunks = (load_tensors(path)["scores"] for path in paths)
        chunk = next((chunk for chunk in chunks if len(chunk) == min(USERS_A_CHUNK, num_rows - place)), None)
        if chunk is None:
            return None
        scores.append(chunk)
    return torch.cat(scores) if scores else None


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _reports(run: RunFolder) -> dict[str, dict[str, Any]]:
    paths = {stage: run.path / stage / "training.json" for stage in run.manifest["stages"] if run.is_done(stage)}
    reports = {stage: read_json(path) for stage, path in paths.items() if path.is_file()}
    return {stage: report for stage, report in reports.items() if "losses" in report}


def _fits(run: RunFolder) -> dict[str, list[dict[str, Any]]]:
    path = run.path / FUSION / "training.json"
    fits = read_json(path) if run.is_done(FUSION) and path.is_file() else {}
    return {name: reports for name, reports in fits.items() if reports}


def _curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for stage, entry in run.manifest["stages"].items():
        recorded = read_curves(run.path.parent / entry.get("adopted", run.path.name) / "events")
        owned = (f"{stage}/", "warm_up/") if stage == "language_model" else (f"{stage}/",)
        curves |= {name: points for name, points in recorded.items() if name.startswith(owned)}
    return curves


def _first(genres: list[list[str]]) -> list[str | None]:
    return [next(iter(one), None) for one in genres]


def _joint(run: RunFolder) -> Joint | None:
    try:
        model = TrainedModel(run)
        catalogue, backbone, texts, alignment = model.catalogue, model.backbone, model.text_embeddings, model.alignment
    except InputError:
        return None
    if not isinstance(alignment, Alignment):
        return None
    with torch.no_grad():
        items = alignment.items.encode(backbone.item_embeddings()).numpy()
        joint = alignment.texts.encode(texts).numpy()
    return Joint(items, joint, (texts != 0).any(1).numpy(), np.asarray(catalogue.train_counts))
