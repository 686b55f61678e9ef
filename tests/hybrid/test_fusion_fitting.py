"""Fitting fusion: it learns what counts, by how much it depends on the context, and nothing from noise."""

import numpy as np
import pytest
import torch

from allrec import seeds
from allrec.errors import InputError
from allrec.hybrid.fitting import FusionTrainingConfig, Lists, Roles, cross_fit, fit_fusion, target_weights
from allrec.hybrid.fusion import STREAM, FusionConfig, fold_of, fused_scores, load_fusion, save_fusion
from allrec.training.loop import LoopConfig

FREE, CONTEXT = ("log_count",), ("log_count",)
QUICK = FusionTrainingConfig(
    model=FusionConfig(knots=4, gate_width=4, interplay_width=4),
    batch_size=64,
    loop=LoopConfig(epochs=12, optimizer="adamw", learning_rate=3e-2, patience_steps=40),
)


def world(rows=800, candidates=10, seed=0):
    """Popular targets are told by cf, rare ones by text; the other evidence is noise for them."""
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 2, (rows, candidates)).astype(np.float32)
    values = rng.normal(size=(rows, candidates, 2)).astype(np.float32)
    place = rng.integers(candidates, size=rows)
    row = np.arange(rows)
    values[row, place, np.where(count[row, place] > 0, 0, 1)] += 2.5
    items = np.argsort(rng.random((rows, candidates)), axis=1)
    return Lists(np.dstack([values, count]), items, items[row, place])


def fitted(lists, names=("cf", "text", "log_count"), seed=0, config=QUICK):
    return fit_fusion(lists, Roles(names, FREE, CONTEXT), config, seed=seed)


def hits(lists, scores):
    return ((scores >= scores[lists.candidates == lists.targets[:, None]][:, None]).sum(axis=1) == 1).mean()


def test_it_beats_every_evidence_and_their_sum():
    model = fitted(world()).model
    other = world(seed=1)
    fused = hits(other, fused_scores(model, other.features))
    alone = [hits(other, other.features[:, :, column]) for column in range(2)]
    assert fused > max(*alone, hits(other, other.features[:, :, :2].sum(axis=2))) + 0.02


def test_constant_and_random_evidence_beat_no_chance():
    rng = np.random.default_rng(3)
    lists = world()
    lists.features[:, :, 0] = 1.0
    lists.features[:, :, 1:] = rng.normal(size=lists.features[:, :, 1:].shape)
    other = lists._replace(features=np.concatenate([lists.features[400:], lists.features[:400]]))
    scores = fused_scores(fitted(lists).model, other.features)
    # 800 users at chance 1/10: three standard errors are .032.
    assert hits(other, scores) < 0.1 + 0.032
    constant = fused_scores(fitted(lists).model, np.ones_like(lists.features))
    assert hits(lists, constant) == 0


def test_fitting_again_gives_the_same_bytes_and_another_seed_does_not():
    first, again, other = (fitted(world(200), seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_the_order_of_candidates_and_padding_change_no_score():
    lists = world(60)
    model = fitted(lists).model
    turned = fused_scores(model, np.ascontiguousarray(lists.features[:, ::-1]))[:, ::-1]
    np.testing.assert_allclose(turned, fused_scores(model, lists.features), rtol=1e-5, atol=1e-5)


def test_those_held_out_say_when_to_stop_and_teach_nothing():
    lists = world(200)
    order = seeds.rng(0, STREAM, "held out").permutation(200)
    places = (lists.candidates == lists.targets[:, None]).argmax(axis=1)
    places[order[:50]] = (places[order[:50]] + 1) % 10
    changed = lists._replace(targets=lists.candidates[np.arange(200), places])
    patient = QUICK.model_copy(update={"loop": LoopConfig(epochs=2, learning_rate=1e-2)})
    (first,), (second,) = (fitted(each, config=patient).reports for each in (lists, changed))
    assert first.losses == second.losses
    assert first.validations != second.validations


def test_it_is_frozen():
    model = fitted(world(40)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lists: lists.take(np.arange(1)), "got 1 validation users, expected at least 2"),
        (lambda lists: lists._replace(targets=lists.targets + 99), "row 0 does not hold its target once"),
        (lambda lists: lists._replace(features=lists.features[:, :, :2]), "got 2 columns of evidence, expected 3"),
        (lambda lists: lists._replace(features=lists.features * np.nan), "evidence 'cf' is not finite"),
    ],
)
def test_lists_that_cannot_be_fitted_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        fitted(change(world(20)))


def test_it_comes_back_as_it_was_stored(tmp_path):
    lists = world(60)
    model = fitted(lists).model
    save_fusion(tmp_path, model)
    again = load_fusion(tmp_path)
    assert again.names == model.names
    np.testing.assert_array_equal(fused_scores(again, lists.features), fused_scores(model, lists.features))
    assert not any(parameter.requires_grad for parameter in again.parameters())


CROSS = QUICK.model_copy(update={"model": FusionConfig(knots=4, gate_width=4, interplay_width=4, members=3)})


def cross_fitted(lists, config=CROSS, seed=0):
    folds = fold_of(np.arange(len(lists.targets)), config.model.members, seed)
    roles = Roles(("cf", "text", "log_count"), FREE, CONTEXT)
    return cross_fit(lists, roles, config, folds, seed=seed).model, folds


def test_folds_are_as_large_as_each_other_and_fixed_by_the_seed():
    folds = fold_of(np.arange(100), 3, seed=1)
    assert np.bincount(folds).tolist() == [34, 33, 33]
    assert (folds == fold_of(np.arange(100), 3, seed=1)).all()
    assert (folds != fold_of(np.arange(100), 3, seed=2)).any()
    # Which users a member never met is stored nowhere: a run is evaluated with the folds that it was fitted with.
    expected = seeds.rng(1, "fusion", "folds", 3).permutation(100) % 3
    assert folds.tolist() == expected.tolist()


def test_users_of_one_history_and_target_are_in_one_fold():
    clusters = np.array([0, 7, 2, 7, 4, 5, 7, 3])
    for seed in range(5):
        folds = fold_of(clusters, 2, seed)
        assert len(set(folds[clusters == 7])) == 1
        assert sorted(np.bincount(folds[[0, 1, 2, 4, 5, 7]])) == [3, 3]


def test_rows_are_spread_where_nearly_all_users_are_one():
    folds = fold_of(np.array([0, 0, 0, 0, 0, 0, 1, 2]), 2, seed=0)
    assert np.bincount(folds).tolist() == [4, 4]


def test_a_member_never_met_the_users_of_its_fold():
    lists = world(120)
    quick = CROSS.model_copy(update={"loop": LoopConfig(epochs=2, learning_rate=1e-2)})
    model, folds = cross_fitted(lists, quick)
    places = (lists.candidates == lists.targets[:, None]).argmax(axis=1)
    places[folds == 1] = (places[folds == 1] + 1) % 10
    changed, _ = cross_fitted(lists._replace(targets=lists.candidates[np.arange(120), places]), quick)
    same = [
        all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
        for one, other in zip(model.members, changed.members, strict=True)
    ]
    assert same == [False, True, False]


def test_each_row_is_scored_by_its_own_member_and_a_new_one_by_their_mean():
    lists = world(60)
    model, folds = cross_fitted(lists)
    members = np.stack([model.score(torch.from_numpy(lists.features), k).detach().numpy() for k in range(3)])
    got = fused_scores(model, lists.features, folds)
    np.testing.assert_allclose(got, members[folds, np.arange(60)], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fused_scores(model, lists.features), members.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_one_member_cannot_be_cross_fitted():
    with pytest.raises(InputError, match="got 1 members of fusion, expected at least 2"):
        cross_fitted(world(20), QUICK)


def test_what_is_known_already_is_not_learned_again():
    lists = world()
    known = lists._replace(offsets=8.0 * lists.features[:, :, 0])
    plain, told = fitted(lists).model, fitted(known).model

    def slope(model):
        raised = lists.features.copy()
        raised[:, :, 0] += 1
        return (fused_scores(model, raised) - fused_scores(model, lists.features)).mean()

    assert slope(told) < 0.5 * slope(plain)


def test_users_of_rare_and_of_unseen_targets_weigh_more():
    counts = torch.tensor([0, 1, 5, 6, 100]).float().log1p()
    evidence = torch.stack([torch.zeros(5), counts], dim=1)
    config = FusionTrainingConfig(unseen_weight=3.0, rare_weight=1.5)
    assert target_weights(evidence, ("cf", "log_count"), config).tolist() == [3, 1.5, 1.5, 1, 1]
    assert target_weights(evidence, ("cf", "text"), config).tolist() == [1, 1, 1, 1, 1]
    assert target_weights(evidence, ("cf", "log_count"), FusionTrainingConfig()).tolist() == [2, 1, 1, 1, 1]


def test_the_weight_of_unseen_targets_moves_what_is_learned_towards_them():
    lists = world(400)
    # The world's popular items are to have been seen fifty times.
    lists.features[:, :, 2] *= np.log1p(50)

    def gained(weight):
        model = fitted(lists, config=QUICK.model_copy(update={"unseen_weight": weight})).model
        is_unseen = lists.features[lists.candidates == lists.targets[:, None]][:, 2] == 0
        scores = torch.from_numpy(fused_scores(model, lists.features)).log_softmax(dim=1).numpy()
        return scores[lists.candidates == lists.targets[:, None]][is_unseen].mean()

    assert gained(20.0) > gained(0.05)
