"""What is served is what was measured: ``recommend`` and ``rank`` give the order in which ``evaluate`` ranked."""

import numpy as np
import pytest

from allrec.data import load_dataset
from allrec.evaluation.results import load_ranks
from allrec.evaluation.segments import repeats
from allrec.recommender import AllRec
from worlds import FUSED, make_world

PROTOCOLS = 'evaluation.protocols=["paper", "full", "full-repeat"]'


@pytest.fixture(scope="module", params=["a-llmrec", "allround"])
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    is_fused = request.param == "allround"
    dataset, llm, recipe = make_world(folder, (*(FUSED if is_fused else ()), PROTOCOLS))
    system = AllRec.train(dataset, run=folder / "run", recipe=recipe, llm=str(llm), cache=folder / "cache")
    stored = load_ranks(system.run.verified_folder("evaluate")).rankings
    return AllRec.from_pretrained(folder / "run"), load_dataset(dataset), stored, is_fused


def scorer_of(is_fused, use_llm):
    return {(True, True): "allround", (True, False): "fusion", (False, True): "llm", (False, False): "cf"}[
        is_fused, use_llm
    ]


def ranks_of(found, item_id):
    """The least and the largest rank that an item may have: more than one where scores tie, as equal titles' do."""
    keys = np.array([(item.llm_log_prob is not None, item.score) for item in found], float)
    read, score = keys[[item.item_id for item in found].index(item_id)]
    before = (keys[:, 0] > read) | ((keys[:, 0] == read) & (keys[:, 1] > score + 1e-4))
    tied = (keys[:, 0] == read) & (np.abs(keys[:, 1] - score) <= 1e-4)
    return before.sum(), before.sum() + tied.sum() - 1


def history_of(dataset, targets, row):
    items = dataset.history(targets.users[row])[: targets.positions[row]]
    return [dataset.item_ids[item] for item in items]


@pytest.mark.parametrize("use_llm", [True, False])
def test_a_target_stands_in_recommend_where_evaluate_ranked_it(served, use_llm):
    system, dataset, stored, is_fused = served
    targets = dataset.targets["test"]
    is_repeat = repeats(dataset, targets)
    checked, untied = set(), 0
    for protocol in ("full", "full-repeat"):
        ranking = stored["test", protocol, scorer_of(is_fused, use_llm)]
        for row, rank in list(zip(ranking.rows, ranking.ranks, strict=True))[:25]:
            # With the history left out a repeated target could not be recommended, so protocol full spares it.
            if is_repeat[row] and protocol == "full":
                continue
            found = system.recommend(
                history=history_of(dataset, targets, row),
                k=dataset.num_items,
                with_history=protocol == "full-repeat",
                use_llm=use_llm,
            )
            least, largest = ranks_of(found, dataset.item_ids[targets.items[row]])
            was_retrieved = ranking.is_retrieved is None or ranking.is_retrieved[np.flatnonzero(ranking.rows == row)[0]]
            assert least <= rank <= largest if was_retrieved else rank == dataset.num_items - 1
            untied += least == largest
            checked.add((protocol, bool(is_repeat[row])))
    assert {("full", False), ("full-repeat", False)} <= checked
    assert untied > 20


@pytest.mark.parametrize("use_llm", [True, False])
def test_a_target_stands_in_rank_where_evaluate_ranked_it(served, use_llm):
    system, dataset, stored, is_fused = served
    targets = dataset.targets["test"]
    ranking, untied = stored["test", "paper", scorer_of(is_fused, use_llm)], 0
    for row, rank in list(zip(ranking.rows, ranking.ranks, strict=True))[:25]:
        listed = [dataset.item_ids[item] for item in targets.candidates["paper"][row] if item >= 0]
        found = system.rank(listed, history=history_of(dataset, targets, row), use_llm=use_llm)
        least, largest = ranks_of(found, dataset.item_ids[targets.items[row]])
        assert least <= rank <= largest
        untied += least == largest
    assert untied > 10


@pytest.mark.parametrize("use_llm", [True, False])
def test_fewer_recommendations_are_the_beginning_of_more(served, use_llm):
    system, dataset, _, _ = served
    for user in dataset.user_ids[:5]:
        few, more, all_ = (system.recommend(user=user, k=k, use_llm=use_llm) for k in (5, 10, dataset.num_items))
        assert [item.item_id for item in few] == [item.item_id for item in more][:5]
        assert [item.item_id for item in more] == [item.item_id for item in all_][:10]
        assert [item.score for item in few] == pytest.approx([item.score for item in all_][:5], abs=1e-5)


def test_without_the_language_model_its_weights_need_not_be_there(served):
    system, dataset, _, _ = served
    again = AllRec.from_pretrained(system.run.path)
    again.recommend(user=dataset.user_ids[0], use_llm=False)
    assert again.model._llm is None


def test_a_user_without_a_history_gets_the_most_popular_items(served):
    system, dataset, _, _ = served
    popular = np.argsort(-dataset.train_counts(), kind="stable")[:7]
    assert [item.item_id for item in system.recommend(history=[], k=7)] == [dataset.item_ids[item] for item in popular]
