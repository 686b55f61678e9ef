"""Evidence that knows nothing, through the whole stage: fitted, retrieved and ranked, it never beats chance."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.training.histories import dataset_of

from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data.negatives import shuffle
from allrec.data.protocols import EvaluationProtocol
from allrec.evaluation.evaluate import Plan, RankingRequest
from allrec.evaluation.metrics import hit_rate_at
from allrec.hybrid.content import EvidenceConfig
from allrec.hybrid.features import Evidence, Scorer
from allrec.hybrid.fitting import FusionStageConfig, FusionTrainingConfig, fit_fusions
from allrec.hybrid.fusion import FusionConfig
from allrec.hybrid.ranking import LlmReader
from allrec.hybrid.similarity import DenseSpace
from allrec.runs.scorers import SCORERS
from allrec.training.loop import LoopConfig

NUM_ITEMS, NUM_USERS, LIST = 40, 900, 10
QUICK = FusionTrainingConfig(
    model=FusionConfig(knots=3, gate_width=3, interplay_width=3, members=2),
    loop=LoopConfig(epochs=6, optimizer="adamw", learning_rate=3e-2, patience_steps=20),
)


class System:
    """Users choose at random, and the language model says anything, or always the same."""

    def __init__(self, is_constant):
        rng = np.random.default_rng(0)
        histories = [rng.permutation(NUM_ITEMS)[:6].tolist() for _ in range(NUM_USERS)]
        self.dataset = dataset_of(histories, NUM_ITEMS, LIST)
        for targets in self.dataset.targets.values():
            others = [
                rng.permutation(np.setdiff1d(np.arange(NUM_ITEMS), histories[user]))[: LIST - 1]
                for user in targets.users
            ]
            targets.candidates["paper"] = shuffle(np.column_stack([targets.items, others]), rng)
        self.is_constant, self.rng, self.recipe = is_constant, rng, SimpleNamespace(seed=0)
        generator = torch.Generator().manual_seed(1)
        vectors = torch.ones(NUM_ITEMS, 4) if is_constant else torch.randn(NUM_ITEMS, 4, generator=generator)
        backbone = freeze(SASRec(NUM_ITEMS, SASRecConfig(dim=4), generator))
        backbone.item_table.copy_(vectors)
        counts = np.ones(NUM_ITEMS, np.int64) if is_constant else self.dataset.train_counts()
        self.evidence = Evidence(counts, {"cf": Scorer(backbone, vectors)}, {"text": DenseSpace.of(vectors)})
        # As many as the catalogue: retrieval must not do the choosing.
        config = FusionStageConfig(
            evidence=EvidenceConfig(depth=NUM_ITEMS, fitted_candidates=20), training=QUICK, with_llm=QUICK,
            num_ranked=NUM_ITEMS, llm_users=NUM_USERS,
        )  # fmt: skip
        fitted = fit_fusions(self.dataset, self.evidence, config, self.new_reader, seed=0, sample_seed=0)
        self.fused_ranker = fitted.ranker(self.evidence, config, seed=0)
        self.catalogue, self.titles = SimpleNamespace(num_items=NUM_ITEMS), self

    def new_reader(self, split, lists, rows):
        return LlmReader(lambda part, candidates, name: self.llm_scores(None, candidates, name), self.fits_each)

    def fits_each(self, candidates):
        return np.ones(len(candidates), bool)

    def llm_scores(self, histories, candidates, name):
        scores = np.zeros(candidates.shape) if self.is_constant else self.rng.normal(size=candidates.shape)
        return np.where(candidates >= 0, scores, -np.inf).astype(np.float32)

    def ranked(self, split, protocol, scorer, catalogue_users=0):
        plan = Plan(protocols=(protocol,), splits=(split,), catalogue_users=catalogue_users)
        rows = plan.rows(SCORERS[scorer], split, protocol, NUM_USERS)
        return rows, SCORERS[scorer].rank(
            self, RankingRequest(self.dataset, split, EvaluationProtocol(protocol), rows, rows)
        )

    def ranks(self, split, protocol, scorer):
        _, ranked = self.ranked(split, protocol, scorer)
        assert len(ranked.ranks) == NUM_USERS
        return ranked.ranks


@pytest.fixture(scope="module")
def guessing():
    return System(is_constant=False)


@pytest.fixture(scope="module")
def silent():
    return System(is_constant=True)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize(("protocol", "num_candidates"), [("paper", LIST), ("full-repeat", NUM_ITEMS)])
@pytest.mark.parametrize("scorer", ["fusion", "allround"])
def test_random_evidence_is_no_better_than_chance(guessing, split, protocol, num_candidates, scorer):
    ranks = guessing.ranks(split, protocol, scorer)
    for k in (1, 3):
        share = k / num_candidates
        # Nobody has an item twice, so over the catalogue standing in the history speaks against an item; what is left
        # are the items that the user never had.
        limit = k / (num_candidates - 5) if protocol == "full-repeat" else share
        assert hit_rate_at(ranks, k) < limit + 4 * np.sqrt(share * (1 - share) / NUM_USERS)


@pytest.mark.parametrize(("protocol", "num_candidates"), [("paper", LIST), ("full-repeat", NUM_ITEMS)])
@pytest.mark.parametrize("scorer", ["text", "fusion", "allround"])
def test_constant_evidence_ranks_every_target_last(silent, protocol, num_candidates, scorer):
    # Ties count against the target: it stands behind all that is not told apart from it. Nobody has an item twice.
    assert (silent.ranks("test", protocol, scorer) == num_candidates - 1).all()


@pytest.mark.parametrize("protocol", ["paper", "full-repeat"])
def test_a_language_model_that_says_anything_is_left_out(guessing, protocol):
    assert guessing.fused_ranker.additions == {"lists": None, "catalogue": None}
    fusion, allround = (guessing.ranks("test", protocol, scorer) for scorer in ("fusion", "allround"))
    assert np.array_equal(fusion, allround)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("scorer", ["text", "fusion"])
def test_a_sample_of_users_has_the_ranks_that_they_have_among_all(guessing, split, scorer):
    (_, whole), (rows, some) = (guessing.ranked(split, "full-repeat", scorer, users) for users in (0, 50))
    assert len(rows) == 50
    np.testing.assert_array_equal(some.ranks, whole.ranks[rows])
