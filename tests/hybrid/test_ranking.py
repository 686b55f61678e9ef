"""The one ranking: retrieved, scored, fused and read by a language model whose answers are known."""

from zlib import crc32

import numpy as np
import pytest
import torch
from tests.hybrid.test_evidence import NUM_ITEMS, SEQUENCES, make_evidence
from tests.training.histories import dataset_of

from allrec import seeds
from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.hybrid import ranking
from allrec.hybrid.content import EvidenceConfig
from allrec.hybrid.features import CONTEXT, FREE, histories_before, histories_of
from allrec.hybrid.fitting import FusionStageConfig, sampled_lists
from allrec.hybrid.fusion import Fusion, FusionConfig, evidence_scale
from allrec.hybrid.ranking import (
    BackboneRanker,
    FusedRanker,
    Listed,
    LlmReader,
    Scored,
    Task,
    compact,
    cut_to_fit,
    first_that_fit,
    popular_last,
    retrieve,
    scores_below,
    shuffled,
    with_popular,
    without_history,
)

WITH_HISTORY = [sequence for sequence in SEQUENCES if len(sequence)]
COUNTS = np.arange(NUM_ITEMS) % 5
FITS_ALL = lambda candidates: np.ones(len(candidates), bool)  # noqa: E731


@pytest.fixture(scope="module")
def evidence():
    return make_evidence()


class Model:
    """In place of a fusion: its score is the first evidence; in place of an addition, what the language model said."""

    names = ("llm", "log_count")
    members = (None, None)


@pytest.fixture
def ranker_of(evidence, monkeypatch):
    """Rankers whose fused score is cf, and whose language model adds its log-softmax within the list."""

    def scores(model, features, folds=None):
        assert folds is None or len(folds) == len(features)
        return features[:, :, 0] if folds is None else features[:, :, 0] + folds[:, None]

    monkeypatch.setattr(ranking, "fused_scores", scores)

    def make(with_llm=True, **numbers):
        numbers = {"depth": 6, "num_fused": 6, "num_ranked": 3, "seed": 0} | numbers
        fusions = {"lists": Model(), "catalogue": Model()}
        return FusedRanker(evidence, fusions, fusions if with_llm else {"lists": None}, **numbers)

    return make


@pytest.fixture
def backbone_ranker(evidence):
    return BackboneRanker(evidence.scorers["cf"].backbone, COUNTS, num_ranked=3, seed=0)


def reader(score=lambda row, item: float(item), fits=FITS_ALL, seen=None):
    """Scores a candidate by a function of (row of the task, item)."""

    def read(rows, candidates, name):
        if seen is not None:
            seen.append((rows.tolist(), candidates.tolist(), name))
        return np.array(
            [[score(row, item) if item >= 0 else -np.inf for item in listed]
             for row, listed in zip(rows, candidates.tolist(), strict=True)], np.float32
        )  # fmt: skip

    return LlmReader(read, fits)


def items_of(scored, row=0):
    """A row's candidates, best first."""
    places = scored.best()[row]
    return [int(item) for item in scored.items[row, places] if item >= 0]


def scored_of(items, scores, llm=None):
    items = np.array(items)
    llm = None if llm is None else np.array(llm, float)
    return Scored(slice(0, len(items)), items, np.array(scores, float), None, llm)


def test_the_best_are_those_with_the_largest_scores_equal_ones_as_listed_and_padding_last():
    scored = scored_of([[4, 7, -1, 9]], [[1.0, 2.0, 9.0, 1.0]])
    assert scored.best().tolist() == [[1, 0, 3, 2]]
    assert scored.best(2).tolist() == [[1, 0]]


def test_what_the_language_model_read_comes_before_all_else():
    scored = scored_of([[4, 7, 8, 9]], [[1.0, 5.0, 0.5, 9.0]], [[-3.0, np.nan, -2.0, np.nan]])
    assert items_of(scored) == [4, 8, 9, 7]
    assert scored.is_read.tolist() == [[True, False, True, False]]
    for place, item in enumerate(items_of(scored)):
        assert scored.ranks(np.array([item]), -1).ranks.tolist() == [place]


@pytest.mark.parametrize(("target", "rank"), [(4, 1), (7, 0), (9, 3), (8, 3), (5, 6)])
def test_ranks_count_ties_against_the_target_and_what_is_no_candidate_is_last(target, rank):
    scored = scored_of([[4, 7, 8, 9, -1]], [[2.0, 3.0, 1.0, 1.0, 4.0]])
    found = scored.ranks(np.array([target]), last=6)
    assert found.ranks.tolist() == [rank]
    assert found.is_retrieved.tolist() == [target != 5]


def test_a_score_of_minus_infinity_is_still_a_rank():
    scored = scored_of([[4, 7]], [[-np.inf, 0.0]])
    assert scored.ranks(np.array([4]), 9).ranks.tolist() == [1]


def test_ranks_over_the_catalogue_equal_those_of_its_scores_where_all_is_retrieved(evidence, ranker_of):
    rng = np.random.default_rng(0)
    dataset = dataset_of(rng.integers(0, NUM_ITEMS, (12, 6)).tolist(), NUM_ITEMS)
    targets = dataset.targets["test"]
    histories = histories_before(dataset, targets)
    scores = evidence.features(histories, np.tile(np.arange(NUM_ITEMS), (12, 1)))[:, :, 0]
    ranker = ranker_of(depth=NUM_ITEMS, num_fused=NUM_ITEMS)
    for excepted in (targets.items, None):
        (scored,) = ranker.rank_catalogue(histories, excepted)
        found = scored.ranks(targets.items, NUM_ITEMS - 1)
        for row, target in enumerate(targets.items):
            history = dataset.history(targets.users[row])[: targets.positions[row]]
            others = [
                item for item in range(NUM_ITEMS) if item != target and not (excepted is not None and item in history)
            ]
            assert found.ranks[row] == (scores[row, others] >= scores[row, target]).sum()
        assert found.is_retrieved.all()


@pytest.mark.parametrize("excepted", [None, np.array([9, 7, 20])])
def test_what_is_not_fused_comes_behind_in_the_order_of_retrieval(evidence, ranker_of, excepted):
    histories = histories_of(WITH_HISTORY)
    (whole,) = ranker_of(num_fused=100).rank_catalogue(histories, excepted)
    (some,) = ranker_of(num_fused=4).rank_catalogue(histories, excepted)
    retrieved, _ = retrieve(evidence, histories, 6, excepted)
    np.testing.assert_array_equal(some.items, retrieved)
    np.testing.assert_array_equal(some.items, whole.items)
    np.testing.assert_allclose(some.features, whole.features[:, :4], atol=1e-5)
    np.testing.assert_allclose(some.scores[:, :4], whole.scores[:, :4], atol=1e-5)
    for row, listed in enumerate(some.items):
        items = listed[listed >= 0]
        order = [*np.argsort(-some.scores[row, : min(4, len(items))], kind="stable"), *range(4, len(items))]
        assert items_of(some, row) == items[order].tolist()


def test_at_least_as_many_are_fused_as_the_language_model_reads(ranker_of):
    assert ranker_of(num_fused=2, num_ranked=5).num_fused == 5


def test_scores_below_fall_and_pay_no_heed_to_padding():
    fused = np.array([[3.0, 1.0], [2.0, -9.0]], np.float32)
    items = np.array([[5, 6, 7, 8], [5, -1, 7, 8]])
    assert scores_below(fused, items).tolist() == [[0 - 1, 0 - 2], [0 - 1, 0 - 2]]
    assert scores_below(fused - 4, items).tolist() == [[-3 - 1, -3 - 2], [-2 - 1, -2 - 2]]
    below = np.concatenate([fused, scores_below(fused, items)], axis=1)
    assert below[0, 2:].max() < fused[0].min()


def test_history_is_left_out_but_for_the_excepted_item():
    histories = histories_of([np.array([1, 2, 2]), np.array([3])])
    items = np.array([[1, 2, 3, 4], [1, 3, -1, -1]])
    assert without_history(items, histories, np.array([-1, -1]), 9).tolist() == [[3, 4], [1, -1]]
    assert without_history(items, histories, np.array([2, 3]), 9).tolist() == [[2, 3, 4], [1, 3, -1]]
    assert without_history(items, histories, None, 9) is items


def test_candidates_are_moved_together_and_one_column_stays():
    assert compact(np.array([[-1, 4, -1, 5], [6, -1, -1, -1]])).tolist() == [[4, 5], [6, -1]]
    assert compact(np.array([[-1, -1]])).tolist() == [[-1]]


@pytest.mark.parametrize("kind", ["fused", "backbone"])
@pytest.mark.parametrize("with_reader", [False, True])
def test_users_without_a_history_are_given_the_most_popular_items(ranker_of, backbone_ranker, kind, with_reader):
    ranker = ranker_of() if kind == "fused" else backbone_ranker
    seen = []
    popular = np.argsort(-COUNTS, kind="stable")
    for sequences, row in (([np.array([], np.int64)], 0), ([np.array([1, 2]), np.array([], np.int64)], 1)):
        (scored,) = ranker.rank_catalogue(
            histories_of(sequences), np.full(len(sequences), -1), reader(seen=seen) if with_reader else None, depth=6
        )
        assert items_of(scored, row)[:6] == popular[:6].tolist()
        assert not scored.is_read[row].any()
    assert all(rows == [0] for rows, _, _ in seen)


def test_popular_items_widen_the_candidates_only_where_someone_has_no_history():
    items, someone = np.zeros((1, 0), np.int64), histories_of([np.array([3])])
    assert with_popular(items, someone, COUNTS, 4) is items
    nobody = histories_of([np.array([], np.int64)])
    assert with_popular(items, nobody, COUNTS, 4).tolist() == [[4, 9, 14, 19]]
    assert with_popular(items, nobody, COUNTS, 99).shape == (1, NUM_ITEMS)
    both = histories_of([np.array([3]), np.array([], np.int64)])
    assert with_popular(np.array([[5], [-1]]), both, COUNTS, 3).tolist() == [[5, -1, -1], [4, 9, 14]]
    assert with_popular(np.array([[5, 6, 7], [-1] * 3]), both, COUNTS, 2).tolist() == [[5, 6, 7], [4, 9, -1]]


def test_popularity_decides_for_users_without_a_history_alone():
    both, scores = histories_of([np.array([3]), np.array([], np.int64)]), np.array([[1.0, 5.0, 2.0]] * 2, np.float32)
    assert popular_last(scores, both).tolist() == [[1, 5, 2], [0, -1, -2]]


def test_the_language_model_orders_the_best_and_the_rest_stay(ranker_of):
    histories, seen = histories_of(WITH_HISTORY), []
    ranker = ranker_of()
    (plain,) = ranker.rank_catalogue(histories, None)
    (read,) = ranker.rank_catalogue(histories, None, reader(seen=seen))
    for row in range(len(WITH_HISTORY)):
        before, after = items_of(plain, row), items_of(read, row)
        assert set(before[:3]) == set(after[:3])
        assert after[3:] == before[3:]
        assert read.is_read[row].sum() == 3
    ((rows, listed, name),) = seen
    assert (rows, name) == ([0, 1, 2], "llm")
    assert [sorted(row) for row in listed] == [sorted(items_of(plain, row)[:3]) for row in range(3)]


def test_what_the_language_model_adds_is_added(ranker_of):
    histories = histories_of(WITH_HISTORY)
    ranker = ranker_of()
    (plain,) = ranker.rank_catalogue(histories, None)
    (read,) = ranker.rank_catalogue(histories, None, reader())
    # The stand-in adds the first of its features: the language model's log probability within the list.
    for row in range(len(WITH_HISTORY)):
        places = np.flatnonzero(read.is_read[row])
        raw = torch.tensor(read.items[row, places], dtype=torch.float32)
        expected = plain.scores[row, places] + raw.log_softmax(0).numpy()
        np.testing.assert_allclose(read.scores[row, places], expected, atol=1e-5)
        assert read.llm[row, places].tolist() == raw.tolist()


def test_where_it_adds_nothing_it_is_not_asked(ranker_of):
    seen, histories = [], histories_of(WITH_HISTORY)
    ranker = ranker_of(with_llm=False)
    for ranked in (
        ranker.rank_catalogue(histories, None, reader(seen=seen)),
        ranker.rank_lists(histories, np.array([[1, 2]] * 3), reader(seen=seen)),
        ranker_of().rank_catalogue(histories, None, reader(seen=seen), num_ranked=0),
    ):
        assert next(ranked).llm is None
    assert seen == []


def test_folds_reach_the_fusion_and_what_the_language_model_adds(ranker_of):
    histories, folds = histories_of(WITH_HISTORY), np.array([1, 0, 1])
    ranker = ranker_of()
    for rank in (
        lambda **more: ranker.rank_catalogue(histories, None, reader(), **more),
        lambda **more: ranker.rank_lists(histories, np.array([[1, 2, 3]] * 3), reader(), **more),
    ):
        (plain,), (folded,) = rank(), rank(folds=folds)
        extra = np.where(plain.is_read, 2 * folds[:, None], folds[:, None])
        fused = slice(0, plain.features.shape[1])
        np.testing.assert_allclose(folded.scores[:, fused], (plain.scores + extra)[:, fused], atol=1e-5)


def product(row, item):
    return row * item


def test_parts_of_a_task_are_ranked_as_the_whole(ranker_of, backbone_ranker, monkeypatch):
    histories, excepted = histories_of(WITH_HISTORY * 3), np.arange(9)
    lists = np.random.default_rng(0).permuted(np.tile(np.arange(9), (9, 1)), axis=1)
    for ranker in (ranker_of(), backbone_ranker):

        def ranked(ranker=ranker):
            catalogue = ranker.rank_catalogue(histories, excepted, reader(), folds=None)
            return list(catalogue), list(ranker.rank_lists(histories, lists, reader(product)))

        whole = ranked()
        monkeypatch.setattr(ranking, "USERS_TOGETHER", 2)
        for one, parts in zip(whole, ranked(), strict=True):
            assert [part.rows for part in parts] == [slice(start, min(start + 2, 9)) for start in range(0, 9, 2)]
            rows = [items_of(part, row) for part in parts for row in range(len(part.items))]
            # A part keeps no more history items than its own users have, hence the common beginning.
            for row, items in enumerate(rows):
                common = min(len(items), len(items_of(one[0], row)), 6)
                assert items[:common] == items_of(one[0], row)[:common]
        monkeypatch.undo()


def test_a_list_that_is_read_whole_is_read_in_its_own_order(ranker_of, backbone_ranker):
    histories = histories_of(WITH_HISTORY)
    lists = np.array([[5, 1, 9], [2, 8, -1], [7, 6, 0]])
    for ranker in (ranker_of(), backbone_ranker):
        seen = []
        (scored,) = ranker.rank_lists(histories, lists, reader(seen=seen))
        ((rows, listed, _),) = seen
        assert (rows, listed) == ([0, 1, 2], lists.tolist())
        assert scored.is_read.tolist() == (lists >= 0).tolist()


def test_the_order_in_which_the_best_are_read_is_that_of_the_rankers_seed(ranker_of):
    histories = histories_of([np.array([user, user + 1]) for user in range(20)])
    orders = []
    for seed in (0, 0, 1):
        seen = []
        next(ranker_of(seed=seed).rank_lists(histories, np.tile(np.arange(6), (20, 1)), reader(seen=seen)))
        orders.append(seen[0][1])
    assert orders[0] == orders[1] != orders[2]
    assert [sorted(row) for row in orders[0]] == [sorted(row) for row in orders[2]]


def test_the_backbones_ranker_reads_the_best_in_the_order_of_its_seed(evidence):
    histories = histories_of([np.array([user, user + 1]) for user in range(20)])
    orders = []
    for seed in (0, 0, 1):
        seen = []
        ranker = BackboneRanker(evidence.scorers["cf"].backbone, COUNTS, num_ranked=3, seed=seed)
        next(ranker.rank_catalogue(histories, None, reader(seen=seen), depth=6))
        orders.append(seen[0][1])
    assert orders[0] == orders[1] != orders[2]
    assert [sorted(row) for row in orders[0]] == [sorted(row) for row in orders[2]]


def test_with_fusion_the_best_of_a_longer_list_are_read_and_without_it_all(ranker_of, backbone_ranker):
    histories, lists = histories_of(WITH_HISTORY), np.array([[5, 1, 9, 12, 20]] * 3)
    (fused,) = ranker_of().rank_lists(histories, lists, reader())
    (alone,) = backbone_ranker.rank_lists(histories, lists, reader())
    assert fused.is_read.sum(axis=1).tolist() == [3, 3, 3]
    assert alone.is_read.all()
    assert items_of(alone) == [20, 12, 9, 5, 1]


def test_lists_of_one_candidate_need_no_order(ranker_of):
    seen = []
    (scored,) = ranker_of().rank_lists(histories_of(WITH_HISTORY), np.array([[5], [6], [7]]), reader(seen=seen))
    assert seen == []
    assert not scored.is_read.any()


def test_the_prompts_order_depends_on_the_user_and_tells_nothing_of_the_ranks():
    histories = histories_of([np.array([user, user + 1]) for user in range(300)])
    items = np.tile(np.arange(8), (300, 1))
    places = np.tile(np.arange(8), (300, 1))
    order = shuffled(places, items, histories, 0)
    assert np.array_equal(np.sort(order, axis=1), places)
    assert len({tuple(row) for row in order.tolist()}) > 250
    # Each candidate is as often in front as any other: 300 / 8, give or take four standard errors.
    first = np.bincount(order[:, 0], minlength=8)
    assert np.abs(first - 300 / 8).max() < 4 * np.sqrt(300 / 8 * 7 / 8)
    ranked_otherwise = shuffled(places[:, ::-1], items, histories, 0)
    assert np.array_equal(order, ranked_otherwise)
    alone = shuffled(places[7:8], items[7:8], histories.part(slice(7, 8)), 0)
    assert np.array_equal(alone, order[7:8])
    assert not np.array_equal(order, shuffled(places, items, histories, 1))


def test_the_prompts_order_is_that_of_a_stream_of_the_users_history():
    histories = histories_of([np.array([4, 1])])
    expected = seeds.rng(5, "ranking", "listed", crc32(np.array([4, 1], np.int64).tobytes())).random(8).argsort()
    places, items = np.arange(8)[None], np.arange(6, 14)[None]
    order = shuffled(places, items, histories, 5)
    assert order[0].tolist() == expected.tolist()
    narrow = histories._replace(items=histories.items.astype(np.int32))
    assert np.array_equal(order, shuffled(places, items, narrow, 5))


def test_shuffled_padding_stays_behind():
    places = np.array([[2, 0, -1], [1, -1, -1]])
    order = shuffled(places, np.array([[4, 5, 6], [4, 5, 6]]), histories_of([np.array([1]), np.array([2])]), 0)
    assert (order[:, -1] == -1).all()
    assert sorted(order[0].tolist()) == [-1, 0, 2]
    assert order[1].tolist() == [1, -1, -1]


def test_candidates_are_given_up_from_the_end_until_they_fit():
    items = np.array([[10, 20, 30], [10, 20, 30], [99, 20, 30]])
    # Room for a sum of 30; the third row has no room for its first item.
    fits = lambda listed: np.where(listed < 0, 0, listed).sum(axis=1) <= 30  # noqa: E731
    places = np.array([[0, 1, 2], [2, 1, 0], [0, 1, 2]])
    assert cut_to_fit(places, items, fits).tolist() == [[0, 1, -1], [2, -1, -1], [-1, -1, -1]]
    scored = scored_of(items, [[3.0, 2.0, 1.0]] * 3)
    assert first_that_fit(scored, 3, fits).tolist() == [[10, 20], [10, 20], [-1, -1]]
    assert first_that_fit(scored, 1, fits).tolist() == [[10], [10], [-1]]


def test_candidates_that_are_padding_are_never_given_to_a_prompt():
    scored = scored_of([[-1, 0, 1], [-1, -1, 0]], [[3.0, 2.0, 1.0]] * 2)
    seen = []
    fits = lambda listed: bool(seen.append(listed.tolist())) or np.ones(len(listed), bool)  # noqa: E731
    assert first_that_fit(scored, 3, fits).tolist() == [[0, 1], [0, -1]]
    assert seen[0] == [[0, 1, -1], [0, -1, -1]]


def test_a_language_model_with_little_room_reads_fewer(ranker_of):
    histories = histories_of(WITH_HISTORY)
    (scored,) = ranker_of().rank_catalogue(
        histories, None, reader(fits=lambda listed: (listed >= 0).sum(axis=1) <= np.array([2, 3, 1])[: len(listed)])
    )
    assert scored.is_read.sum(axis=1)[0] == 2
    (plain,) = ranker_of().rank_catalogue(histories, None)
    assert set(items_of(scored)[:2]) == set(items_of(plain)[:2])


def test_the_backbone_gives_its_nearest_items(backbone_ranker):
    histories = histories_of(WITH_HISTORY)
    (scored,) = backbone_ranker.rank_catalogue(histories, np.full(3, -1), depth=5)
    for row, sequence in enumerate(WITH_HISTORY):
        backbone = backbone_ranker.backbone
        user = backbone.encode(torch.tensor(sequence[-20:])[None])[0]
        logits = backbone_ranker.item_embeddings @ user
        others = [item for item in logits.argsort(descending=True).tolist() if item not in sequence]
        assert items_of(scored, row)[:5] == others[:5]
        np.testing.assert_allclose(scored.scores[row, :1], logits[scored.items[row, :1]].detach(), atol=1e-5)


def test_without_fusion_the_language_models_score_is_the_score(backbone_ranker):
    (scored,) = backbone_ranker.rank_catalogue(histories_of(WITH_HISTORY), None, reader(lambda row, item: -item))
    for row in range(3):
        read = scored.is_read[row]
        assert read.sum() == 3
        assert items_of(scored, row)[:3] == sorted(items_of(scored, row)[:3])
        assert scored.scores[row, read].tolist() == (-scored.items[row, read]).tolist()


def test_the_rest_of_the_catalogue_follows(ranker_of, backbone_ranker):
    histories, excepted = histories_of([np.array([3, 4, 5])]), np.array([-1])
    (scored,) = ranker_of(depth=2).rank_catalogue(histories, excepted, reader())
    filled = backbone_ranker.filled(scored, histories, excepted)
    before, after = items_of(scored), items_of(filled)
    assert after[: len(before)] == before
    assert sorted(after) == [item for item in range(NUM_ITEMS) if item not in (3, 4, 5)]
    (plain,) = backbone_ranker.rank_catalogue(histories, excepted, depth=NUM_ITEMS)
    assert after[len(before) :] == [item for item in items_of(plain) if item not in before]
    assert filled.is_read.sum() == scored.is_read.sum()


def test_the_rest_of_the_catalogue_follows_a_part_of_the_users_without_a_language_model(backbone_ranker):
    histories, excepted = histories_of([np.array([7, 8]), np.array([3, 4, 5])]), np.array([-1, 3])
    ranked = backbone_ranker.score_catalogue(Task(histories.part(slice(1, 2)), slice(1, 2), 2, None), excepted[1:], 2)
    filled = backbone_ranker.filled(ranked, histories, excepted)
    assert filled.llm is None
    assert not filled.is_read.any()
    assert sorted(items_of(filled)) == [item for item in range(NUM_ITEMS) if item not in (4, 5)]
    (whole,) = backbone_ranker.rank_catalogue(histories.part(slice(1, 2)), None, depth=NUM_ITEMS)
    everything = backbone_ranker.filled(ranked, histories, None)
    assert sorted(items_of(everything)) == sorted(items_of(whole)) == list(range(NUM_ITEMS))


def test_a_user_without_history_is_given_as_many_popular_items_as_are_asked_for(backbone_ranker):
    nobody = histories_of([np.array([], np.int64)])
    for depth in (2, 5):
        (scored,) = backbone_ranker.rank_catalogue(nobody, None, depth=depth)
        popular = np.argsort(-COUNTS, kind="stable")[: max(depth, backbone_ranker.num_ranked)]
        assert items_of(scored) == popular.tolist()


def test_a_ranker_has_the_numbers_of_its_recipe(evidence):
    config = FusionStageConfig(num_fused=7, num_ranked=5, evidence=EvidenceConfig(depth=11))
    ranker = FusedRanker.of(evidence, {"lists": Model()}, {"lists": None}, config, 4)
    assert (ranker.depth, ranker.num_fused, ranker.num_ranked, ranker.seed) == (11, 7, 5, 4)
    assert ranker.evidence is evidence
    assert ranker.train_counts is evidence.train_counts
    assert set(ranker.fusions) == set(ranker.additions) == {"lists"}


def test_contributions_sum_to_the_score(evidence):
    values = torch.randn(200, len(evidence.names), generator=torch.Generator().manual_seed(0))
    config = FusionConfig(knots=3, gate_width=3, interplay_width=3, members=2)
    generator = torch.Generator().manual_seed(1)
    model = freeze(Fusion(evidence.names, FREE, CONTEXT, config, evidence_scale(values, 3), generator))
    ranker = FusedRanker(evidence, {"lists": model}, {}, depth=5, num_fused=4, num_ranked=2, seed=0)
    (scored,) = ranker.rank_lists(histories_of(WITH_HISTORY), np.array([[1, 2, 3]] * 3))
    for row in range(3):
        why = ranker.contributions(scored, row, np.array([2, 0]), "lists")
        for place, parts in zip((2, 0), why, strict=True):
            assert sum(parts.values()) == pytest.approx(scored.scores[row, place], abs=1e-5)
            assert "llm" not in parts
    # What the language model read has its part besides, of whatever sign; what it did not read has none.
    read = scored._replace(scores=scored.scores + np.array([[-2.5, 0, 0]]), llm=np.array([[-3.0, np.nan, np.nan]] * 3))
    first, second = ranker.contributions(read, 0, np.array([0, 1]), "lists")
    assert first["llm"] == pytest.approx(-2.5, abs=1e-5)
    assert "llm" not in second
    longer = scored._replace(items=np.array([[1, 2, 3, 4]] * 3))
    assert ranker.contributions(longer, 0, np.array([3]), "lists") == [{}]
    assert ranker.contributions(scored._replace(features=None), 0, np.array([1]), "lists") == [{}]


def test_some_of_what_was_listed():
    listed = Listed(np.array([0, 2]), np.array([[1, 0], [2, -1]]), np.array([[5, 6], [7, -1]]), {"llm": np.eye(2)})
    part = listed.take(np.array([False, True]))
    assert (part.rows.tolist(), part.items.tolist(), part.values["llm"].tolist()) == ([2], [[7, -1]], [[0, 1]])
    assert part.places.tolist() == [[2, -1]]


def test_lists_to_fit_on_hold_the_target_once_and_not_always_first(evidence):
    rng = np.random.default_rng(0)
    retrieved, _ = retrieve(evidence, histories_of([np.array([3, 4, 5])] * 40), 5)
    targets = np.arange(40) % NUM_ITEMS
    lists, kept = sampled_lists(retrieved, targets, 6, rng)
    assert kept.tolist() == np.flatnonzero(np.isin(targets, retrieved[0])).tolist()
    assert lists.shape == (len(kept), 7)
    assert 0 < len(kept) < 40
    targets = targets[kept]
    assert ((lists == targets[:, None]).sum(axis=1) == 1).all()
    assert len(set((lists == targets[:, None]).argmax(axis=1).tolist())) > 3
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in lists)
    assert np.isin([3, 4, 5], lists[(lists != targets[:, None]) & (lists >= 0)]).all()


def test_a_backbone_that_is_narrow_ranks_too():
    backbone = freeze(SASRec(4, SASRecConfig(dim=4, max_length=3), torch.Generator().manual_seed(1)))
    ranker = BackboneRanker(backbone, np.ones(4, int), num_ranked=20, seed=0)
    (scored,) = ranker.rank_catalogue(histories_of([np.array([0, 1])]), np.array([-1]), depth=10)
    assert sorted(items_of(scored)) == [2, 3]


@pytest.mark.parametrize("kind", ["fused", "backbone"])
def test_a_mask_leaves_as_many_candidates_and_changes_no_score(ranker_of, backbone_ranker, kind):
    ranker, histories = ranker_of() if kind == "fused" else backbone_ranker, histories_of(WITH_HISTORY)
    excepted = np.full(histories.num_rows, -1)
    allowed = np.zeros((histories.num_rows, NUM_ITEMS), bool)
    allowed[:, ::3] = True
    (masked,) = ranker.rank_catalogue(histories, excepted, depth=6, allowed=allowed)
    (whole,) = (ranker_of(depth=NUM_ITEMS, num_fused=NUM_ITEMS) if kind == "fused" else ranker).rank_catalogue(
        histories, excepted, depth=NUM_ITEMS
    )
    for row, history in enumerate(WITH_HISTORY):
        expected = [item for item in items_of(whole, row) if item % 3 == 0]
        assert items_of(masked, row)[:4] == expected[:4]
        assert len(items_of(masked, row)) >= min(6, len(expected))
        assert not set(items_of(masked, row)) & {*range(1, NUM_ITEMS, 3), *range(2, NUM_ITEMS, 3), *history.tolist()}


def test_a_mask_is_each_rows_own_and_an_empty_one_leaves_nothing(ranker_of, backbone_ranker):
    histories = histories_of([np.array([3, 4]), np.array([3, 4]), np.array([], np.int64)])
    allowed = np.zeros((3, NUM_ITEMS), bool)
    allowed[0, [1, 7]], allowed[2, [2, 9, 4]] = True, True
    for ranker in (ranker_of(), backbone_ranker):
        (scored,) = ranker.rank_catalogue(histories, np.full(3, -1), depth=6, allowed=allowed)
        assert set(items_of(scored)) == {1, 7}
        assert items_of(scored, 1) == []
        assert items_of(scored, 2) == [4, 9, 2]
        filled = backbone_ranker.filled(scored, histories, np.full(3, -1), allowed)
        assert set(items_of(filled)) == {1, 7}


def test_a_mask_that_allows_everything_changes_nothing(ranker_of):
    histories = histories_of(WITH_HISTORY)
    everything = np.ones((histories.num_rows, NUM_ITEMS), bool)
    (plain,) = ranker_of().rank_catalogue(histories, None)
    (masked,) = ranker_of().rank_catalogue(histories, None, allowed=everything)
    np.testing.assert_array_equal(masked.items, plain.items)
    np.testing.assert_array_equal(masked.scores, plain.scores)
