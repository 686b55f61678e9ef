"""Cross-domain: a run ranks the items of another data set, of which it never saw an interaction."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from allrec.alignment.model import Alignment
from allrec.alignment.text_cache import default_cache
from allrec.backbones.base import Backbone, StatesBackbone, freeze
from allrec.data.catalogue import Catalogue
from allrec.data.dataset import Dataset
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import InputError
from allrec.evaluation.evaluate import Plan, evaluate
from allrec.evaluation.results import Ranking, chances, clusters_of, result_rows
from allrec.evaluation.segments import repeats
from allrec.experiments.baselines import TextSimilarity, baseline_ranks
from allrec.experiments.scenarios import CROSS_DOMAIN
from allrec.files import read_json, write_json
from allrec.hybrid.similarity import DenseSpace
from allrec.recommender import AllRec
from allrec.runs.add_items import encode_texts
from allrec.runs.run_folder import METRICS_FILE, describe
from allrec.runs.scorers import SCORERS
from allrec.runs.trained_model import TrainedModel

SCORED = ("joint", "llm", "llm-random-items", "llm-no-soft")
"""The scorers that read an item by its text, besides text similarity. A foreign item has no E_i, hence no cf."""


def evaluate_cross_domain(
    system: AllRec, dataset: Dataset, *, protocols: Sequence[str] = (), cache: Path | None = None
) -> list[dict[str, Any]]:
    """Ranks the test targets of another data set, and adds the rows to the run's ``metrics.json``.

    Every item enters by q_i, and x_u is what the run's backbone makes of dec_I(q_i) of the history's items.

    Args:
        system: trained on other data.
        dataset: its test targets are ranked; its training interactions are ignored.
        protocols: which; the recipe's where empty.
        cache: folder of cached text embeddings.

    Returns:
        The rows, segments ``all``, ``repeat`` and ``new``, with the data set's name added.

    Raises:
        InputError: it is the run's own data set, or the run cannot decode a text into an item embedding.

    Source: arXiv:2404.11343, section 5.2.4.
    """
    if dataset.sha256 == system.run.manifest["dataset"]["sha256"]:
        raise InputError(f"{system.run.path} was trained on {dataset.name!r} itself; {CROSS_DOMAIN} needs another.")
    texts = encode_texts(system.run, dataset.texts, cache or default_cache(), system.model.device)
    model = foreign_model(system.model, dataset, texts)
    plan = foreign_plan(system, dataset, protocols)
    rankings = [*text_rankings(texts, dataset, plan), *evaluate(model, dataset, plan, SCORERS).rankings]
    targets = dataset.targets["test"]
    is_repeat, clusters = repeats(dataset, targets), clusters_of(dataset, targets)
    masks = {"all": np.ones(len(targets), bool), "repeat": is_repeat, "new": ~is_repeat}
    rows = [
        row | {"dataset": dataset.name}
        for one in rankings
        for row in result_rows(one, masks, plan.seed, CROSS_DOMAIN, clusters)
    ]
    add_rows(system, dataset, rows, chances(dataset, rankings))
    return rows


def foreign_model(own: TrainedModel, dataset: Dataset, texts: Float[Tensor, "items text_dim"]) -> TrainedModel:
    """A run's frozen parts over another catalogue, all of whose items are cold.

    Raises:
        InputError: no stage 1, one without decoders, or a backbone that does not compute from item embeddings.
    """
    if not isinstance(own.alignment, Alignment) or not own.alignment.config.has_decoders:
        raise InputError("the run has no decoder dec_I, by which a text becomes an item embedding. Train one that has.")
    with torch.no_grad():
        embeddings = own.alignment.items.decode(own.alignment.texts.encode(texts))
    backbone = with_items(own.backbone, embeddings)
    # Nothing of this catalogue was trained on, whatever the data set calls its training part.
    catalogue = replace(Catalogue.of(dataset), train_counts=np.zeros(dataset.num_items, np.int64))
    return own.over(catalogue, texts, backbone)


def with_items(backbone: Backbone, embeddings: Float[Tensor, "items dim"]) -> StatesBackbone:
    """A frozen backbone over other items, which it reads and scores by these embeddings.

    Raises:
        InputError: it does not compute from item embeddings.
    """
    if not isinstance(backbone, StatesBackbone):
        raise InputError(f"the run's backbone, a {type(backbone).__name__}, cannot encode other items than its own.")
    other = deepcopy(backbone)
    other.num_items, other.item_table = len(embeddings), nn.Parameter(embeddings)
    return freeze(other)


def foreign_plan(system: AllRec, dataset: Dataset, protocols: Sequence[str]) -> Plan:
    """The recipe's evaluation on test targets, by the scorers that read texts."""
    recipe, run = system.run.recipe(), system.run
    folder = run.path / "evaluate" / f"{CROSS_DOMAIN}-{dataset.sha256[:12]}"
    own = Plan.of(recipe.evaluation, folder=folder, scorers=SCORED)
    return replace(own, protocols=tuple(map(EvaluationProtocol, protocols)) or own.protocols, splits=("test",))


def text_rankings(texts: Float[Tensor, "items text_dim"], dataset: Dataset, plan: Plan) -> list[Ranking]:
    """Text similarity without any training: the baseline of a foreign data set."""
    baseline, targets = TextSimilarity(DenseSpace.of(texts)), dataset.targets["test"]
    everyone = np.arange(len(targets))
    return [
        Ranking("test", protocol, "text", everyone, baseline_ranks(baseline, dataset, targets, protocol))
        for protocol in plan.protocols
    ]


def add_rows(system: AllRec, dataset: Dataset, rows: list[dict[str, Any]], chance: dict[str, Any]) -> None:
    """Adds the rows to the run's ``metrics.json``, replacing those of the same data set and protocols.

    Raises:
        InputError: the run has not been evaluated on its own data.
    """
    metrics = read_json(system.run.path / METRICS_FILE)
    protocols = {row["protocol"] for row in rows}
    kept = [
        row for row in metrics["results"]
        if not (row["scenario"] == CROSS_DOMAIN and row["dataset"] == dataset.name and row["protocol"] in protocols)
    ]  # fmt: skip
    about = {key: value for key, value in describe(dataset).items() if key != "wording"} | {"chance": chance}
    others = metrics.get("other_datasets", {}) | {dataset.name: about}
    write_json(system.run.path / METRICS_FILE, metrics | {"results": kept + rows, "other_datasets": others})
