"""Evaluation of a stand-in system whose scores are known: ranks, samples, partial scores, and what is not scored."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.training.histories import dataset_of

from allrec.errors import InputError
from allrec.evaluation.evaluate import Plan, Task
from allrec.evaluation.evaluate import evaluate as evaluate_all
from allrec.evaluation.metrics import chance, hit_rate_at, ndcg_at
from allrec.hybrid import ranking as module
from allrec.hybrid.features import histories_before
from allrec.hybrid.ranking import BackboneRanker
from allrec.runs.scorers import SCORERS

NUM_ITEMS = 12


class Killed(Exception):
    pass


class Counts:
    """A backbone whose x_u counts the history's items."""

    max_length = 50

    def __init__(self, items):
        self.items, self.dim = torch.as_tensor(items, dtype=torch.float32), len(items)

    def item_embeddings(self):
        return self.items

    def encode(self, histories):
        return torch.stack([torch.bincount(row[row >= 0], minlength=self.dim).float() for row in histories])


class System:
    """x_u counts the history's items; the language model's scores are any function of (user's history, item)."""

    def __init__(self, items, joint=None, score=None):
        self.backbone = Counts(items)
        self.item_embeddings = self.backbone.items
        self.joint_embeddings = self.item_embeddings if joint is None else torch.as_tensor(joint, dtype=torch.float32)
        self.score = score or (lambda history, item, scorer: 0.0)
        self.requested, self.room, self.has_llm = [], 20, True
        self.titles, self.llm = self, SimpleNamespace(max_length=100)
        self.fused_ranker = None
        self.backbone_ranker = BackboneRanker(self.backbone, np.ones(len(self.item_embeddings)), 3, 0)
        self.recipe = SimpleNamespace(
            alignment=SimpleNamespace(network=SimpleNamespace(kind="mlp")), fusion=SimpleNamespace(enabled=False),
            readout=SimpleNamespace(enabled=False), prompt=SimpleNamespace(soft_token="after", is_bare=False), seed=0,
        )  # fmt: skip

    def represent(self, histories):
        counts = [np.bincount(history, minlength=len(self.item_embeddings)) for history in histories]
        return torch.from_numpy(np.stack(counts)).float()

    def fits(self, candidates):
        return candidates.shape[1] <= self.room

    def fits_each(self, candidates):
        return (candidates >= 0).sum(axis=1) <= self.room

    def llm_scores(self, histories, candidates, name, cache=None):
        self.requested.append((name, len(histories)))
        rows = zip(histories, candidates, strict=True)
        scores = [
            [self.score(tuple(history), item, name) if item >= 0 else -np.inf for item in row] for history, row in rows
        ]
        return np.array(scores, np.float32)


def evaluate(system, dataset, plan):
    return evaluate_all(system, dataset, plan, SCORERS).rankings


def make_dataset(num_users=30, num_candidates=6, seed=0):
    rng = np.random.default_rng(seed)
    dataset = dataset_of([rng.integers(0, NUM_ITEMS, 5).tolist() for _ in range(num_users)], NUM_ITEMS, num_candidates)
    for targets in dataset.targets.values():
        targets.candidates["paper"] = rng.permuted(targets.candidates["paper"], axis=1)
    return dataset


def plan_of(protocols=("paper",), splits=("test",), llm_users=None, **settings):
    return Plan(protocols=protocols, splits=splits, llm_users=llm_users or {}, **settings)


def by_scorer(rankings):
    return {(ranking.split, ranking.protocol, ranking.scorer): ranking for ranking in rankings}


def target_first(dataset, split="test"):
    """A score that knows the answer: the histories before the targets tell the users apart."""
    targets = dataset.targets[split]
    known = histories_before(dataset, targets)
    histories = [known.items[start:end] for start, end in zip(known.starts, known.ends, strict=True)]
    right = {tuple(history.tolist()): item for history, item in zip(histories, targets.items.tolist(), strict=True)}
    return lambda history, item, scorer: float(right[history] == item)


def target_last(dataset):
    first = target_first(dataset)
    return lambda *given: -first(*given)


def test_histories_end_before_their_targets():
    dataset = dataset_of([[0, 1, 2, 3], [4], [5, 6, 7]], 8)
    for split, expected in (("valid", [[0, 1], [5]]), ("test", [[0, 1, 2], [5, 6]])):
        known = histories_before(dataset, dataset.targets[split])
        assert [known.items[s:e].tolist() for s, e in zip(known.starts, known.ends, strict=True)] == expected


def test_every_split_protocol_and_scorer_is_ranked():
    rankings = by_scorer(
        evaluate(
            System(np.eye(NUM_ITEMS)), make_dataset(), plan_of(("paper", "full", "full-repeat"), ("valid", "test"))
        )
    )
    dot_products = {
        (s, p, e) for s in ("valid", "test") for p in ("paper", "full", "full-repeat") for e in ("cf", "joint")
    }
    llm = {(s, "paper", e) for s in ("valid", "test") for e in ("llm", "llm-random-items", "llm-no-soft")}
    # Without a fusion it is the backbone's best, as the language model orders them, that are served.
    served = {(s, p, "llm") for s in ("valid", "test") for p in ("full", "full-repeat")}
    assert set(rankings) == dot_products | llm | served


def test_over_the_catalogue_the_language_model_orders_the_backbones_best():
    dataset = make_dataset()
    items = np.random.default_rng(0).normal(size=(NUM_ITEMS, NUM_ITEMS))
    for protocol in ("full", "full-repeat"):
        plan = plan_of((protocol,))
        right = by_scorer(evaluate(System(items, score=target_first(dataset)), dataset, plan))
        cf, llm = (right["test", protocol, scorer].ranks for scorer in ("cf", "llm"))
        # It reads the best three: a target among them comes first, any other stays where it is.
        assert llm.tolist() == np.where(cf < 3, 0, cf).tolist()
        assert ((cf > 0) & (cf < 3)).any()
        last = target_last(dataset)
        worst = by_scorer(evaluate(System(items, score=last), dataset, plan))
        assert worst["test", protocol, "llm"].ranks.tolist() == np.where(cf < 3, 2, cf).tolist()


def test_the_language_model_takes_no_part_where_the_candidates_outgrow_its_prompt():
    system = System(np.eye(NUM_ITEMS))
    system.room = 5
    found = evaluate_all(system, make_dataset(), plan_of(), SCORERS)
    assert {ranking.scorer for ranking in found.rankings} == {"cf", "joint"}
    assert {task.scorer for task in found.left_out} == {"llm", "llm-random-items", "llm-no-soft"}
    reason = found.left_out[Task("test", "paper", "llm")]
    assert reason.startswith("lists of 6 candidates outgrow the prompt: the language model reads 100 tokens.")
    assert system.requested == []


def test_ranks_by_hand():
    # Test histories 0 1 2 and 5 6; x_u counts the history's items.
    dataset = dataset_of([[0, 1, 2, 3], [4], [5, 6, 7]], 8)
    items, joint = np.zeros((8, 8)), np.zeros((8, 8))
    items[3, 0], items[1, 0], items[4, 1], items[7, 5], items[0, 6] = 2, 3, 1, 1, 1
    joint[7, 6] = 1
    rankings = by_scorer(evaluate(System(items, joint), dataset, plan_of(("paper", "full", "full-repeat"))))
    # User 0 scores item 3 with 2, item 1 (of the history) with 3, item 4 with 1. User 2: items 7 and 0 with 1 each.
    assert rankings["test", "full", "cf"].ranks.tolist() == [0, 1]
    assert rankings["test", "full-repeat", "cf"].ranks.tolist() == [1, 1]
    # Candidates are the target and items 0, 1, 2.
    assert rankings["test", "paper", "cf"].ranks.tolist() == [1, 1]
    assert rankings["test", "paper", "joint"].ranks.tolist() == [3, 0]
    # All of user 0's joint scores tie: 8 - 1 items, less the three of the history.
    assert rankings["test", "full", "joint"].ranks.tolist() == [8 - 1 - 3, 0]


def test_constant_scores_give_the_worst_rank():
    rankings = by_scorer(
        evaluate(System(np.zeros((NUM_ITEMS, NUM_ITEMS))), make_dataset(), plan_of(("paper", "full-repeat")))
    )
    targets = make_dataset().targets["test"].items
    for (_, protocol, scorer), ranking in rankings.items():
        worst = np.full(30, 6 - 1 if protocol == "paper" else NUM_ITEMS - 1)
        if (protocol, scorer) == ("full-repeat", "llm"):
            # Of equal items retrieval takes the first, and a target among these is the last of what is read.
            worst[targets < 3] = 3 - 1
        assert ranking.ranks.tolist() == worst.tolist()


def test_random_evidence_is_no_better_than_chance():
    dataset = make_dataset(2000)
    rng = np.random.default_rng(1)
    system = System(rng.normal(size=(NUM_ITEMS, NUM_ITEMS)), score=lambda history, item, scorer: rng.random())
    for ranking in evaluate(system, dataset, plan_of(("paper",), llm_users={"test": 1000})):
        # Four standard errors of a share of 1/6 over 1,000 users.
        assert abs(hit_rate_at(ranking.ranks, 1) - chance("HR@1", 6)) < 4 * np.sqrt(1 / 6 * 5 / 6 / 1000)
        assert abs(ndcg_at(ranking.ranks, 10) - chance("NDCG@10", 6)) < 0.05


def test_padding_is_no_candidate():
    dataset = make_dataset()
    targets = dataset.targets["test"]
    padded = np.concatenate([targets.candidates["paper"], np.full((len(targets), 3), -1, np.int32)], axis=1)
    wider = replace(dataset, targets={**dataset.targets, "test": replace(targets, candidates={"paper": padded})})
    items = np.random.default_rng(0).normal(size=(NUM_ITEMS, NUM_ITEMS))

    def score(history, item, scorer):
        return float(items[sum(history) % NUM_ITEMS, item])

    first, second = (evaluate(System(items, score=score), data, plan_of()) for data in (dataset, wider))
    for one, other in zip(first, second, strict=True):
        assert one.ranks.tolist() == other.ranks.tolist()


def test_a_scorer_that_knows_the_answer_ranks_it_first():
    dataset = make_dataset()
    rankings = by_scorer(evaluate(System(np.eye(NUM_ITEMS), score=target_first(dataset)), dataset, plan_of()))
    assert (rankings["test", "paper", "llm"].ranks == 0).all()


@pytest.mark.parametrize(("asked", "scored"), [({}, 30), ({"test": 0}, 30), ({"test": 7}, 7), ({"test": 99}, 30)])
def test_language_model_scorers_may_score_a_sample(asked, scored):
    dataset = make_dataset()
    system = System(np.eye(NUM_ITEMS), score=target_first(dataset))
    rankings = by_scorer(evaluate(system, dataset, plan_of(llm_users=asked)))
    for scorer in ("llm", "llm-random-items", "llm-no-soft"):
        ranking = rankings["test", "paper", scorer]
        assert ranking.rows.tolist() == rankings["test", "paper", "llm"].rows.tolist()
        assert len(ranking.rows) == len(ranking.ranks) == scored
        assert (ranking.ranks == 0).all()
    assert len(rankings["test", "paper", "cf"].rows) == 30


def test_ablations_may_score_fewer_users_and_the_same_ones():
    plan = plan_of(llm_users={"test": 20}, ablation_users=8)
    rankings = by_scorer(evaluate(System(np.eye(NUM_ITEMS)), make_dataset(), plan))
    llm, random_items, no_soft = (rankings["test", "paper", s].rows for s in ("llm", "llm-random-items", "llm-no-soft"))
    assert (len(llm), len(random_items)) == (20, 8)
    assert set(random_items) < set(llm)
    assert random_items.tolist() == no_soft.tolist()


@pytest.mark.parametrize(("llm", "ablation", "expected"), [(0, 0, 30), (0, 5, 5), (9, 5, 5), (4, 5, 4), (9, 0, 9)])
def test_sample_sizes(llm, ablation, expected):
    plan = plan_of(llm_users={"test": llm}, ablation_users=ablation)
    assert len(plan.rows(SCORERS["llm-no-soft"], "test", "paper", 30)) == expected
    assert len(plan.rows(SCORERS["llm"], "test", "paper", 30)) == (llm or 30)
    assert len(plan.rows(SCORERS["cf"], "test", "full", 30)) == 30


@pytest.mark.parametrize(
    ("protocol", "scorer", "expected"),
    [
        ("full", "cf", 8),
        ("full-repeat", "fusion", 8),
        ("paper", "cf", 30),
        ("full", "readout", 5),
        (None, "cf", 30),
        (None, "readout", 5),
    ],
)
def test_the_whole_catalogue_may_be_ranked_for_fewer_users(protocol, scorer, expected):
    plan = plan_of(llm_users={"test": 5}, catalogue_users=8)
    assert len(plan.rows(SCORERS[scorer], "test", protocol, 30)) == expected


def test_a_sample_has_the_ranks_that_its_users_have_among_all():
    dataset, system = make_dataset(), System(np.random.default_rng(1).normal(size=(NUM_ITEMS, NUM_ITEMS)))
    for protocol in ("full", "full-repeat"):
        whole, some = (
            by_scorer(evaluate(system, dataset, plan_of((protocol,), catalogue_users=users)))["test", protocol, "cf"]
            for users in (0, 11)
        )
        assert (len(whole.rows), len(some.rows)) == (30, 11)
        assert some.ranks.tolist() == whole.ranks[some.rows].tolist()


def test_the_sample_depends_on_the_seed():
    rows = [
        by_scorer(evaluate(System(np.eye(NUM_ITEMS)), make_dataset(), plan_of(llm_users={"test": 7}, seed=seed)))
        ["test", "paper", "llm"].rows.tolist()
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_partial_scores_are_used_again_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "USERS_TOGETHER", 10)
    dataset = make_dataset()
    table = np.random.default_rng(0).normal(size=(NUM_ITEMS, NUM_ITEMS))

    def score(history, item, scorer):
        return float(table[sum(history) % NUM_ITEMS, item]) + len(scorer)

    def kill(share, users):
        # Three scorers have three chunks each; the fifth is the second scorer's second.
        if len(system.requested) == 5:
            raise Killed

    whole = evaluate(System(np.eye(NUM_ITEMS), score=score), dataset, plan_of())
    system = System(np.eye(NUM_ITEMS), score=score)
    with pytest.raises(Killed):
        evaluate(system, dataset, plan_of(folder=tmp_path, on_progress=kill))
    resumed = System(np.eye(NUM_ITEMS), score=score)
    again = evaluate(resumed, dataset, plan_of(folder=tmp_path))
    assert resumed.requested == [("llm-random-items", 10)] + [("llm-no-soft", 10)] * 3
    for one, other in zip(whole, again, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert one.ranks.tolist() == other.ranks.tolist()
    third = System(np.eye(NUM_ITEMS), score=score)
    evaluate(third, dataset, plan_of(folder=tmp_path))
    assert third.requested == []


def test_partial_scores_of_another_sample_are_not_taken(tmp_path):
    dataset = make_dataset()
    for settings in ({"llm_users": {"test": 8}}, {"llm_users": {"test": 9}}, {"llm_users": {"test": 9}, "seed": 1}):
        system = System(np.eye(NUM_ITEMS), score=target_first(dataset))
        rankings = by_scorer(evaluate(system, dataset, plan_of(folder=tmp_path, **settings)))
        assert len(system.requested) == 3
        assert (rankings["test", "paper", "llm"].ranks == 0).all()


def test_progress_rises_to_one():
    told = []

    def note(share, users):
        told.append((share, users["users"]))

    rankings = evaluate(System(np.eye(NUM_ITEMS)), make_dataset(), plan_of(splits=("valid", "test"), on_progress=note))
    assert told == sorted(told)
    assert told[-1] == (1, sum(len(ranking.rows) for ranking in rankings))


def test_a_split_without_targets_is_left_out():
    dataset = make_dataset()
    none = {name: rows[:0] for name, rows in dataset.targets["valid"].candidates.items()}
    nobody = type(dataset.targets["valid"])(*(np.zeros(0, np.int64) for _ in range(3)), none)
    emptied = replace(dataset, targets={"valid": nobody, "test": dataset.targets["test"]})
    rankings = evaluate(System(np.eye(NUM_ITEMS)), emptied, plan_of(splits=("valid", "test")))
    assert {ranking.split for ranking in rankings} == {"test"}


def test_a_data_set_with_nobody_to_evaluate_is_refused():
    with pytest.raises(InputError, match="small has nobody to evaluate: no user has three interactions"):
        evaluate(System(np.eye(3)), dataset_of([[0, 1], [2]], 3), plan_of())
