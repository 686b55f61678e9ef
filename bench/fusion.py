"""Fused ranking of the whole catalogue without a language model, users a second.

Retrieval, all evidence and fusion, as for a user who asks for a recommendation; weights and embeddings are random,
since they decide what is recommended and not what it costs.

Many users at once are what is asked for; ``one by one`` is a user at a time, whose wait is 1,000 over that rate in
milliseconds.

    python bench/fusion.py --users 1024
"""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from allrec.backbones.base import Backbone, freeze, together
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data import Dataset
from allrec.hybrid.content import Vocabulary
from allrec.hybrid.features import CONTEXT, FREE, RETRIEVING, Evidence, Histories, Scorer, histories_before
from allrec.hybrid.fusion import Fusion, FusionConfig, evidence_scale, fused_scores
from allrec.hybrid.ranking import FusedRanker
from allrec.hybrid.similarity import DenseSpace, Neighbours, WordSpace
from measure import dataset_of, options, rates, show, start

TEXT_DIM, TOWER_DIM, CF_DIM = 384, 128, 50
ASKED = (2_000, 10_000)
ALONE = 64
"""Users a repeat who are ranked one by one."""


def make_evidence(dataset: Dataset, seed: int, ensemble: int) -> Evidence:
    """Evidence of the kinds and widths that ``features.collect`` gives."""
    generator = torch.Generator().manual_seed(seed)
    num_items = dataset.num_items

    def backbone(dim: int) -> Backbone:
        return together([freeze(SASRec(num_items, SASRecConfig(dim=dim), generator)) for _ in range(ensemble)])

    cf, content = backbone(CF_DIM), backbone(TOWER_DIM)
    vocabulary = Vocabulary.of(dataset.titles)
    scorers = {
        "cf": Scorer(cf, cf.item_embeddings()),
        "content": Scorer(content, content.item_embeddings()),
        "joint": Scorer(cf, torch.randn(num_items, cf.dim, generator=generator)),
    }
    spaces = {
        "text": DenseSpace.of(torch.randn(num_items, TEXT_DIM, generator=generator)),
        "tuned_text": DenseSpace.of(torch.randn(num_items, ensemble * TOWER_DIM, generator=generator)),
        "cf_items": DenseSpace.of(cf.item_embeddings()),
        "content_items": DenseSpace.of(content.item_embeddings()),
        "words": WordSpace.of(vocabulary.weigh(dataset.titles), len(vocabulary)),
        "neighbours": Neighbours.of(*dataset.train_csr(), num_items),
    }
    return Evidence(dataset.train_counts(), scorers, spaces, retrieving=RETRIEVING)


def make_fusion(evidence: Evidence, histories: Histories, num_items: int, seed: int) -> Fusion:
    """A fusion with random weights and the scale of a few lists."""
    rng = np.random.default_rng(seed)
    features = evidence.features(histories, rng.integers(num_items, size=(histories.num_rows, 20)))
    config = FusionConfig(members=4)
    scale = evidence_scale(torch.from_numpy(features).flatten(0, 1), config.knots)
    generator = torch.Generator().manual_seed(seed)
    return freeze(Fusion(evidence.names, FREE, CONTEXT, config, scale, generator))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns users a second."""
    parser = options(__doc__ or "")
    parser.add_argument("--users", type=int, default=1024, help="a repeat")
    parser.add_argument("--depth", type=int, default=100, help="items that each scorer and each retrieving space finds")
    parser.add_argument("--num-fused", type=int, default=64, help="retrieved candidates that are fused; 0 is all")
    parser.add_argument("--ensemble", type=int, default=1, help="trainings whose evidence is averaged")
    given = start(parser, arguments)
    dataset = dataset_of(given)
    evidence, targets = make_evidence(dataset, given.seed, given.ensemble), dataset.targets["test"]
    fusion = make_fusion(evidence, histories_before(dataset, targets, slice(0, 32)), dataset.num_items, given.seed)
    fused = FusedRanker(
        evidence, {"catalogue": fusion}, {},
        depth=given.depth, num_fused=given.num_fused or dataset.num_items, num_ranked=1, seed=given.seed,
    )  # fmt: skip
    found: dict[str, Any] = {}

    def part(repeat: int) -> Histories:
        return histories_before(dataset, targets, (np.arange(given.users) + repeat * given.users) % len(targets))

    def retrieve(repeat: int) -> float:
        found["all"], found["users"] = evidence.retrieve(part(repeat), given.depth)
        return given.users

    def look_up(repeat: int) -> float:
        candidates = found["all"][:, : fused.num_fused]
        found["features"] = evidence.features(part(repeat), candidates, found["users"])
        return given.users

    def fuse(repeat: int) -> float:
        fused_scores(fusion, found["features"])
        return given.users

    def rank(repeat: int) -> float:
        for _ in fused.rank_catalogue(part(repeat), None):
            pass
        return given.users

    def rank_one_by_one(repeat: int) -> float:
        for row in range(ALONE):
            for _ in fused.rank_catalogue(part(repeat).part(slice(row, row + 1)), None):
                pass
        return ALONE

    sides = {"all": rank, "one by one": rank_one_by_one, "retrieval": retrieve, "evidence": look_up, "fusion": fuse}
    speeds = {name: statistics.median(values) for name, values in rates(sides, given).items()}
    whole, *each = speeds.values()
    candidates = float((found["all"] >= 0).sum(1).mean())
    header = [
        "share of 2,000",
        "users/s",
        "at least",
        "aim",
        "one by one",
        *(f"{name} alone" for name in list(sides)[2:]),
        "candidates",
    ]
    title = f"fused ranking of {dataset.num_items} items without a language model"
    show(title, given, header, [[whole / ASKED[0], whole, *ASKED, *each, candidates]])
    return {"users a second": whole}


if __name__ == "__main__":
    main()
