import numpy as np
import pytest
import torch
from tests.training.histories import checkerboard, dataset_of
from torch.nn import functional

from allrec.backbones.base import encode_histories
from allrec.backbones.losses import binary_cross_entropy, sampled_softmax, softmax
from allrec.backbones.sasrec import SASRecConfig
from allrec.backbones.training import BackboneConfig, TrainingBatches, backbone_ranks, train_backbone, validation
from allrec.errors import InputError, InputWarning
from allrec.evaluation.metrics import ndcg_at
from allrec.training import layers
from allrec.training.loop import LoopConfig

HISTORIES = [[0, 1, 2, 3, 4, 5], [6, 7], [8], [1, 1, 2, 6, 7], [3, 2, 1]]
SETTINGS = {"tokens_per_batch": 6, "num_negatives": 5, "validation_protocol": "full"}
SMALL = SASRecConfig(dim=8, blocks=1, max_length=3, dropout=0.2)


def config_of(loss="softmax", model=SMALL, epochs=3, **settings):
    loop = LoopConfig(epochs=epochs, learning_rate=1e-2, checkpoint_every=2)
    return BackboneConfig(loss=loss, model=model, loop=loop, **(SETTINGS | settings))


def pairs_of(batches):
    """(history so far, next item) of every place that is trained on."""
    pairs = []
    for index in range(len(batches)):
        for history, following in zip(
            batches[index].histories.tolist(), batches[index].next_items.tolist(), strict=True
        ):
            pairs += [(tuple(history[: place + 1]), item) for place, item in enumerate(following) if item >= 0]
    return sorted(pairs)


def test_every_training_place_but_the_first_is_a_target():
    source = TrainingBatches(
        dataset_of(HISTORIES, 9), config_of(model=SMALL.model_copy(update={"max_length": 2})), 0, "cpu"
    )
    # Users 0 and 3 have the training items 0 1 2 3 and 1 1 2; user 1 is too short to be evaluated; user 2 has no pair.
    expected = [((0,), 1), ((1,), 2), ((1, 2), 3), ((1,), 1), ((1, 1), 2), ((6,), 7)]
    assert pairs_of(source(0)) == sorted(expected)


def test_batches_differ_by_epoch_and_seed_and_repeat():
    def drawn(seed, epoch):
        batches = TrainingBatches(dataset_of(HISTORIES, 9), config_of("bce"), seed, "cpu")(epoch)
        return [(batches[i].histories.tolist(), batches[i].negatives.items.tolist()) for i in range(len(batches))]

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1)
    assert drawn(0, 0) != drawn(1, 0)


def test_negatives_are_untouched_and_one_for_each_target():
    # No item belongs to two users, so an item tells whose history it stands in.
    dataset = dataset_of([[0, 1, 2, 0, 3, 4], [5, 6, 7, 8], [9, 10]], 11)
    source = TrainingBatches(dataset, config_of("bce"), 0, "cpu")
    owners = {item: user for user in range(3) for item in dataset.train_history(user).tolist()}
    for epoch in range(30):
        for batch in map(source(epoch).__getitem__, range(len(source(epoch)))):
            is_target = batch.next_items >= 0
            assert len(batch.negatives.items) == is_target.sum()
            for item, negative in zip(batch.histories[is_target].tolist(), batch.negatives.items.tolist(), strict=True):
                assert negative not in dataset.train_history(owners[item])


def test_every_batch_draws_its_own_negatives():
    source = TrainingBatches(dataset_of([[0, 1]] * 8, 100_000), config_of("bce", tokens_per_batch=1), 0, "cpu")
    drawn = [source(epoch)[index].negatives.items.item() for epoch in range(2) for index in range(8)]
    assert len(set(drawn)) == 2 * 8


def test_sampled_negatives_follow_the_frequency():
    dataset = dataset_of(HISTORIES, 9)
    source = TrainingBatches(dataset, config_of("sampled-softmax", num_negatives=40_000), 0, "cpu")
    negatives = source(0)[0].negatives
    shares = (dataset.train_counts() + 1) / (dataset.train_counts() + 1).sum()
    got = np.bincount(negatives.items.numpy(), minlength=9) / 40_000
    assert got == pytest.approx(shares, abs=5 * (1 / 4 / 40_000) ** 0.5)
    np.testing.assert_allclose(negatives.log_expected.exp(), 40_000 * shares[negatives.items.numpy()], rtol=1e-5)


def test_a_large_catalogue_is_sampled():
    dataset = dataset_of(HISTORIES, 9)
    settings = [config_of("bce"), config_of(), config_of(sampled_softmax_above=8), config_of(sampled_softmax_above=9)]
    losses = [TrainingBatches(dataset, config, 0, "cpu").loss for config in settings]
    assert losses == [binary_cross_entropy, softmax, sampled_softmax, softmax]


def test_ranks_equal_scoring_one_by_one():
    dataset = dataset_of(HISTORIES, 9)
    model = train_backbone(dataset, config_of(), seed=0).model
    for split, back in (("valid", 2), ("test", 1)):
        targets = dataset.targets[split]
        for protocol in ("paper", "full", "full-repeat"):
            ranks = backbone_ranks(model, dataset, targets, protocol)
            for row, user in enumerate(targets.users):
                history = HISTORIES[user][:-back]
                scores = model.item_embeddings() @ model.encode(torch.tensor([history]))[0]
                others = set(targets.candidates["paper"][row].tolist()) if protocol == "paper" else set(range(9))
                others -= {targets.items[row]} | (set(history) if protocol == "full" else set())
                assert ranks[row] == sum(scores[item] >= scores[targets.items[row]] for item in others)


def test_histories_are_encoded_in_the_order_given():
    dataset = dataset_of(HISTORIES, 9)
    model = train_backbone(dataset, config_of(), seed=0).model
    starts, ends = dataset.offsets[[4, 0, 1, 1]], dataset.offsets[[5, 1, 2, 1]]
    users = encode_histories(model, dataset.items, starts, ends)
    for row, history in enumerate([HISTORIES[4], HISTORIES[0], HISTORIES[1]]):
        torch.testing.assert_close(users[row], model.encode(torch.tensor([history]))[0])
    assert not users[3].any()


def test_it_learns_and_keeps_the_best_epoch():
    histories, _ = checkerboard(60, 12, np.random.default_rng(0))
    dataset = dataset_of(histories, 12)
    config = config_of(model=SMALL, epochs=15, tokens_per_batch=64)
    trained = train_backbone(dataset, config, seed=0)
    assert trained.report.losses[-1] < 0.8 * trained.report.losses[0]
    best = ndcg_at(backbone_ranks(trained.model, dataset, dataset.targets["valid"], "full"), 10)
    assert best == max(trained.report.validations) == trained.report.validations[trained.report.best_epoch]
    assert not trained.model.training
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())


def test_validation_takes_a_fixed_sample_and_reads_no_test_target():
    histories, _ = checkerboard(60, 12, np.random.default_rng(0))
    dataset = dataset_of(histories, 12)
    model = train_backbone(dataset, config_of(epochs=1), seed=0).model
    few = config_of(validation_users=7, validation_protocol="paper")
    first, second = (validation(model, dataset, few, seed)() for seed in (0, 0))
    assert first == second
    assert len({validation(model, dataset, few, seed)() for seed in range(5)}) > 1
    dataset.targets.pop("test")
    train_backbone(dataset, few, seed=0)


@pytest.mark.parametrize("kind", ["sasrec", "ncf", "nextitnet", "gru4rec"])
@pytest.mark.parametrize("loss", ["bce", "softmax", "sampled-softmax"])
@pytest.mark.parametrize("large", [1, 1 << 20])
def test_same_seed_same_bytes_killed_and_resumed_too(monkeypatch, tmp_path, kind, loss, large):
    monkeypatch.setattr(layers, "LARGE", large)
    dataset = dataset_of(HISTORIES, 9)
    config = config_of(loss, {"kind": kind, "dim": 8, "max_length": 3, "dropout": 0.2})

    def weights(seed, **arguments):
        return train_backbone(dataset, config, seed=seed, **arguments).model.state_dict()

    def kill(_, values):
        if values["step"] == 5:
            raise KeyboardInterrupt

    whole, other = weights(0), weights(1)
    with pytest.raises(KeyboardInterrupt):
        weights(0, checkpoint=tmp_path / "c", on_progress=kill)
    resumed = weights(0, checkpoint=tmp_path / "c")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["item_table"], other["item_table"])


@pytest.mark.parametrize("kind", ["sasrec", "ncf", "nextitnet", "gru4rec"])
@pytest.mark.parametrize("loss", ["bce", "softmax", "sampled-softmax"])
def test_a_large_table_learns_what_a_small_one_does(monkeypatch, kind, loss):
    # Adam moves an item on after a batch that looked it up: a gradient that stays must be zero there, not last step's.
    dataset, was_sparse = dataset_of(HISTORIES, 9), []
    loop = LoopConfig(epochs=4, learning_rate=1e-2, weight_decay=0.1, gradient_clip=0.5)
    config = config_of(loss, {"kind": kind, "dim": 8, "max_length": 3, "dropout": 0.2}).model_copy(
        update={"loop": loop}
    )
    embedding = functional.embedding

    def embedded(*given, sparse=False, **named):
        was_sparse.append(sparse)
        return embedding(*given, sparse=sparse, **named)

    small = train_backbone(dataset, config, seed=0)
    monkeypatch.setattr(layers, "LARGE", 1)
    monkeypatch.setattr(functional, "embedding", embedded)
    large = train_backbone(dataset, config, seed=0)
    assert any(was_sparse)
    assert large.report.losses == pytest.approx(small.report.losses, rel=1e-5)
    for name, value in small.model.state_dict().items():
        torch.testing.assert_close(large.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_without_evaluated_users_all_epochs_are_trained():
    report = train_backbone(dataset_of([[0, 1], [2, 3]], 5), config_of(), seed=0).report
    assert (report.epochs, report.validations, report.best_epoch) == (3, [], None)


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(InputError, match="no training batch"):
        train_backbone(dataset_of([[0], [1]], 5), config_of(), seed=0)


def test_where_everybody_touched_everything_it_trains_and_says_so():
    with pytest.warns(InputWarning, match="every user has interacted with all 2 items"):
        train_backbone(dataset_of([[0, 1, 0, 1]], 2), config_of("bce"), seed=0)
