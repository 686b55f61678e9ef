"""What holds for every backbone. A new one is a line in ``BACKBONES``."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.training.histories import checkerboard, dataset_of

from allrec.evaluation.ranking import Excluded, catalogue_ranks, dot_product_scores
from allrec.models.backbones.base import Backbone, freeze
from allrec.models.backbones.sasrec import SASRec, SASRecConfig
from allrec.training.backbone import BackboneConfig, encode_histories, train_backbone
from allrec.training.loop import LoopConfig

NUM_ITEMS = 20
Make = Callable[[], Backbone]


def sasrec(**settings):
    config = SASRecConfig(dim=16, max_length=8, **settings)
    return lambda: freeze(SASRec(NUM_ITEMS, config, torch.Generator().manual_seed(0)))


def trained(loss, **shape):
    model = SASRecConfig(dim=16, blocks=1, max_length=12, dropout=0.1, **shape)
    loop = LoopConfig(epochs=25, learning_rate=1e-2)
    settings = {"tokens_per_batch": 300, "num_negatives": 8, "validation_protocol": "full"}
    config = BackboneConfig(model=model, loss=loss, loop=loop, **settings)
    return lambda dataset: train_backbone(dataset, config, seed=0).model


BACKBONES = {
    "sasrec": sasrec(),
    "sasrec, pre": sasrec(norm="pre", heads=2),
    "sasrec, post": sasrec(norm="post"),
    "sasrec, zeroed padding": sasrec(padding="zeroed"),
    "sasrec, carried padding": sasrec(norm="pre", padding="carried"),
}
TRAINED = {
    "sasrec, bce": trained("bce", padding="zeroed"),
    "sasrec, softmax": trained("softmax"),
    "sasrec, sampled softmax": trained("sampled-softmax"),
}


@pytest.fixture(params=BACKBONES.values(), ids=BACKBONES.keys())
def backbone(request):
    return request.param()


def random_histories(rows=6, length=8):
    rng = np.random.default_rng(0)
    histories = rng.integers(0, NUM_ITEMS, (rows, length))
    histories[np.arange(length) >= rng.integers(1, length + 1, rows)[:, None]] = -1
    return torch.from_numpy(histories)


def test_it_is_a_backbone(backbone):
    assert isinstance(backbone, Backbone)
    assert backbone.item_embeddings().shape == (NUM_ITEMS, backbone.dim)
    assert backbone.encode(random_histories()).shape == (6, backbone.dim)


def test_padding_changes_nothing(backbone):
    histories = random_histories()
    wider = torch.cat([histories, torch.full((6, 5), -1)], dim=1)
    torch.testing.assert_close(backbone.encode(wider), backbone.encode(histories))


def test_batch_equals_single(backbone):
    histories = random_histories()
    singles = [backbone.encode(row[row >= 0][None]) for row in histories]
    torch.testing.assert_close(backbone.encode(histories), torch.cat(singles))


def test_the_latest_items_count(backbone):
    long = torch.arange(18)[None] % NUM_ITEMS
    latest = long[:, -backbone.max_length :]
    mixed = torch.cat([long, torch.nn.functional.pad(latest[:, :3], (0, 15), value=-1)])
    torch.testing.assert_close(backbone.encode(long), backbone.encode(latest))
    torch.testing.assert_close(backbone.encode(mixed)[:1], backbone.encode(latest))
    torch.testing.assert_close(backbone.encode(mixed)[1:], backbone.encode(latest[:, :3]))


def test_order_and_items_matter(backbone):
    users = backbone.encode(torch.tensor([[1, 2, 3], [2, 1, 3], [1, 2, 4]]))
    assert not torch.allclose(users[0], users[1], atol=1e-4)
    assert not torch.allclose(users[0], users[2], atol=1e-4)


def test_the_future_changes_nothing(backbone):
    histories = torch.from_numpy(np.random.default_rng(1).integers(0, NUM_ITEMS, (4, 8)))
    for place in range(7):
        changed = histories.clone()
        changed[:, place + 1 :] = (changed[:, place + 1 :] + 1) % NUM_ITEMS
        now, then = backbone.states(histories), backbone.states(changed)
        torch.testing.assert_close(now[:, : place + 1], then[:, : place + 1])
        assert not torch.allclose(now[:, place + 1 :], then[:, place + 1 :], atol=1e-4)


def test_an_empty_history_gives_zeros_and_changes_no_other(backbone):
    histories = random_histories()
    histories[2] = -1
    users = backbone.encode(histories)
    assert not users[2].any()
    torch.testing.assert_close(users[3:], backbone.encode(histories[3:]))
    assert backbone.encode(torch.empty(3, 0, dtype=torch.int64)).tolist() == [[0.0] * backbone.dim] * 3
    assert backbone.encode(torch.empty(0, 4, dtype=torch.int64)).shape == (0, backbone.dim)


def test_wrong_histories_are_refused(backbone):
    with pytest.raises(ValueError, match="row 1 holds item 20, expected 0 to 19"):
        backbone.encode(torch.tensor([[1, 2], [3, 20]]))
    with pytest.raises(ValueError, match="row 0 holds item -2"):
        backbone.encode(torch.tensor([[-2, -2]]))
    with pytest.raises(ValueError, match="row 1 has padding before an item"):
        backbone.encode(torch.tensor([[1, 2], [-1, 2]]))


def test_frozen_is_bitwise_frozen(backbone):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    head = torch.nn.Linear(backbone.dim, 1)
    optimizer = torch.optim.SGD([*head.parameters(), *backbone.parameters()], lr=1.0)
    histories = random_histories()
    expected = backbone.encode(histories)
    for _ in range(3):
        optimizer.zero_grad()
        head(backbone.encode(histories)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(backbone.encode(histories), expected)


@pytest.mark.parametrize("train", TRAINED.values(), ids=TRAINED.keys())
def test_a_checkerboard_gives_the_right_recommendation(train):
    histories, missing = checkerboard(240, 12, np.random.default_rng(0))
    dataset = dataset_of(histories, 12)
    backbone = train(dataset)
    starts, ends = dataset.offsets[:-1], dataset.offsets[1:]
    users = encode_histories(backbone, dataset.items, starts, ends)
    scores = dot_product_scores(users, backbone.item_embeddings())
    ranks = catalogue_ranks(scores, missing, 12, Excluded(starts, ends, dataset.items))
    assert ranks.tolist() == [0] * 240
