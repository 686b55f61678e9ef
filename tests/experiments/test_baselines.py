"""Baselines: where the right recommendation is known, against plain writings, and no better than chance on noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.histories import checkerboard, dataset_of

from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.evaluation.metrics import hit_rate_at
from allrec.experiments import baselines
from allrec.hybrid.features import histories_of
from allrec.hybrid.similarity import DenseSpace


def small():
    return dataset_of([[0, 1, 2, 0, 1], [1, 2, 3, 4, 2], [2, 0, 1, 2, 0]], 6)


def score(baseline, *sequences):
    return baseline.scores(np.arange(len(sequences)), histories_of([np.array(each) for each in sequences]))


def test_popularity_counts_training_alone():
    assert score(baselines.popularity(small()), [0]).tolist() == [[2, 3, 3, 1, 0, 0]]


def test_repeats_come_before_the_popular():
    scores = score(baselines.popularity(small(), is_repeat_first=True), [3, 0], [])
    assert scores[0].argsort(descending=True)[:2].tolist() == [0, 3]
    assert scores[1].tolist() == [2, 3, 3, 1, 0, 0]


def test_the_most_recent_comes_first_then_the_popular():
    scores = score(baselines.most_recent(small()), [4, 3, 4, 5])
    assert scores[0].argsort(descending=True, stable=True).tolist() == [5, 4, 3, 1, 2, 0]


def test_ease_equals_its_closed_form():
    dataset, penalty = small(), 2.0
    interactions = np.zeros((3, 6))
    for user in range(3):
        interactions[user, dataset.train_history(user)] = 1
    inverse = np.linalg.inv(interactions.T @ interactions + penalty * np.eye(6))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    got = score(baselines.ease(dataset, penalty), [0, 3])[0]
    order = baselines.popular_first(baselines.popularity(dataset).counts)
    np.testing.assert_allclose(got - order, (expected[0] + expected[3]) / np.abs(expected).max(), atol=1e-5)


def test_ease_with_titles_equals_its_closed_form():
    titles = ["red soap", "red brush", "blue brush", None, "blue soap soap", "lamp"]
    dataset, penalty, weight = replace(small(), titles=titles), 2.0, 10.0
    interactions, words = np.zeros((3, 6)), np.zeros((6, 4))
    for user in range(3):
        interactions[user, dataset.train_history(user)] = 1
    # Every word but "lamp", which one title has alone, is in two of six titles: equally rare, so two words weigh .5.
    for item, columns in enumerate([(0, 1), (0, 2), (3, 2), (), (3, 1), ()]):
        words[item, list(columns)] = np.sqrt(0.5)
    gram = interactions.T @ interactions + weight * words @ words.T + penalty * np.eye(6)
    inverse = np.linalg.inv(gram)
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    got = score(baselines.ease(dataset, penalty, weight), [0, 3])[0]
    order = baselines.popular_first(baselines.popularity(dataset).counts)
    np.testing.assert_allclose(got - order, (expected[0] + expected[3]) / np.abs(expected).max(), atol=1e-5)


def test_item_knn_weighs_older_items_less():
    model = baselines.item_knn(small(), decay=0.5)
    torch.testing.assert_close(score(model, [3, 0])[0] - model.order, model.weights[0] + 0.5 * model.weights[3])


def test_what_has_nothing_in_common_with_the_history_is_ordered_by_popularity():
    scores = score(baselines.item_knn(small(), decay=0.5), [])
    assert scores[0].tolist() == pytest.approx([1e-4 * count / 4 for count in (2, 3, 3, 1, 0, 0)])


def test_text_similarity_is_the_largest_cosine_of_the_latest_ten():
    unit = DenseSpace.of(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
    scores = score(baselines.TextSimilarity(unit), list(range(15)), [2])
    torch.testing.assert_close(scores[0], (unit.unit[5:15] @ unit.unit.T).amax(dim=0))
    torch.testing.assert_close(scores[1], unit.unit[2] @ unit.unit.T)


def test_a_backbone_scores_by_its_dot_product():
    backbone = freeze(SASRec(6, SASRecConfig(dim=4), torch.Generator().manual_seed(0)))
    expected = backbone.encode(torch.tensor([[1, 2]])) @ backbone.item_table.T
    torch.testing.assert_close(score(baselines.DotProduct(backbone), [1, 2]), expected)


def test_the_loss_of_bpr_is_its_formula():
    factors = baselines.Factors(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.5, 0])
    )
    zero, one = torch.tensor([0]), torch.tensor([1])
    margin = (1 * 1 + 2 * 0 + 0.5) - (1 * 0 + 2 * 1 + 0)
    expected = 0.1 * (1 + 4 + 1 + 1) + np.log(1 + np.exp(-margin))
    assert baselines.bpr_loss(factors, zero, zero, one, 0.1).item() == pytest.approx(expected, rel=1e-6)


MAKERS = {
    "itemknn": lambda dataset: baselines.item_knn(dataset, 1.0),
    "ease": lambda dataset: baselines.ease(dataset, 5.0),
    "ease-titles": lambda dataset: baselines.ease(dataset, 5.0, 10.0),
    "bpr": lambda dataset: baselines.bpr(dataset, 1e-3, seed=0, dim=8, epochs=60),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_checkerboard_is_learnt(make):
    histories, missing = checkerboard(120, 12, np.random.default_rng(0))
    dataset = dataset_of(histories, 12)
    users = np.arange(120)
    scores = make(dataset).scores(users, histories_of([np.array(history) for history in histories]))
    parity = scores.view(120, 6, 2)
    own = parity[users, :, users % 2].mean(dim=1)
    other = parity[users, :, 1 - users % 2].mean(dim=1)
    assert (own > other).float().mean() > 0.95
    assert (missing % 2 == users % 2).all()


def test_ranks_agree_between_a_stored_list_of_all_items_and_the_catalogue():
    dataset = dataset_of([[0, 1, 2, 0, 1], [1, 2, 3, 4, 2], [2, 0, 1, 2, 0]], 6, num_candidates=6)
    model, targets = baselines.item_knn(dataset, 0.7), dataset.targets["test"]
    stored = baselines.baseline_ranks(model, dataset, targets, "paper")
    assert stored.tolist() == baselines.baseline_ranks(model, dataset, targets, "full-repeat").tolist()
    excluded = baselines.baseline_ranks(model, dataset, targets, "full")
    assert (excluded <= stored).all()
    assert (excluded < stored).any()


def test_constant_and_random_scores_beat_no_chance():
    rng = np.random.default_rng(1)
    dataset = dataset_of(rng.integers(0, 40, (2000, 4)).tolist(), 40, num_candidates=20)
    targets = dataset.targets["test"]
    constant = baselines.Factors(torch.zeros(2000, 1), torch.zeros(40, 1), torch.zeros(40))
    noise = baselines.Factors(
        torch.randn(2000, 40, generator=torch.Generator().manual_seed(0)), torch.eye(40), torch.zeros(40)
    )
    assert (baselines.baseline_ranks(constant, dataset, targets, "paper") == 19).all()
    # Chance is 1/20; three standard errors of 2,000 users are .015.
    assert abs(hit_rate_at(baselines.baseline_ranks(noise, dataset, targets, "paper"), 1) - 0.05) < 0.015


def test_the_setting_is_chosen_on_validation():
    dataset = small()
    weights = {1.0: torch.zeros(6, 6), 2.0: torch.eye(6), 3.0: torch.eye(6)}
    choice = baselines.choose(
        lambda decay: baselines.LinearItems(weights[decay], 1.0, torch.zeros(6)),
        [{"decay": size} for size in weights],
        dataset,
    )
    values = [value for _, value in choice.tried]
    assert choice.setting == {"decay": list(weights)[int(np.argmax(values))]}
    with pytest.raises(ValueError, match="empty grid"):
        baselines.choose(lambda: None, [], dataset)


def test_every_baseline_has_a_name_and_a_choice():
    dataset = small()
    backbone = freeze(SASRec(6, SASRecConfig(dim=4), torch.Generator().manual_seed(0)))
    named = baselines.chosen_baselines(dataset, torch.randn(6, 4), {"sasrec-bce": backbone}, seed=0)
    assert set(named) == {
        "popularity", "popularity-repeat", "most-recent", "itemknn", "ease", "ease-titles", "bpr", "text", "sasrec-bce"
    }  # fmt: skip
    for make in named.values():
        ranks = baselines.baseline_ranks(make().baseline, dataset, dataset.targets["test"], "full")
        assert ((ranks >= 0) & (ranks < 6)).all()
