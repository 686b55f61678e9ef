"""The losses of stage 1 against their equations in plain NumPy, and which joint embedding an item enters with."""

import numpy as np
import pytest
import torch
from tests.oracles import alignment as oracle

from allrec.base import InputError
from allrec.models.alignment import Alignment, AlignmentConfig, AlignmentLosses, matching_loss, recommendation_loss

NAMES = ("matching", "item_reconstruction", "text_reconstruction", "recommendation")


def make_alignment(item_dim=3, text_dim=5, joint_dim=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Alignment(item_dim, text_dim, AlignmentConfig(joint_dim=joint_dim)).double()


def make_batch(rows=6, item_dim=3, text_dim=5):
    generator = torch.Generator().manual_seed(1)
    widths = (item_dim, item_dim, item_dim, text_dim, text_dim)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in widths]


def arrays(tensors):
    return [tensor.numpy() for tensor in tensors]


@pytest.mark.parametrize("name", NAMES)
def test_each_loss_equals_its_equation(name):
    alignment, batch = make_alignment(), make_batch()
    weights = {key: value.detach().numpy() for key, value in alignment.state_dict().items()}
    expected = dict(zip(NAMES, oracle.losses(weights, *arrays(batch)), strict=True))
    assert getattr(alignment.losses(*batch), name).item() == pytest.approx(expected[name], rel=1e-12)


def test_total_weighs_the_reconstructions():
    losses = AlignmentLosses(*(torch.tensor(value) for value in (2.0, 3.0, 5.0, 7.0)))
    assert losses.total(0.5, 0.2).item() == pytest.approx(2 + 0.5 * 3 + 0.2 * 5 + 7)
    assert losses.total(0, 0).item() == 2 + 7


def test_matching_loss_is_a_mean_over_rows_and_coordinates():
    first, second = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert matching_loss(first, second).item() == pytest.approx((2**2 + 3**2) / 4)


def test_recommendation_loss_is_cross_entropy_of_dot_products():
    users, positives, negatives = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]]), torch.tensor([[0.0, 1.0]])
    chosen, other = 1 * 3 - 2 * 1, 2 * 1
    expected = np.log(1 + np.exp(-chosen)) + np.log(1 + np.exp(other))
    assert recommendation_loss(users, positives, negatives).item() == pytest.approx(expected, rel=1e-6)


def test_recommendation_loss_stays_finite_where_a_logit_is_large():
    far = torch.tensor([[200.0]])
    assert recommendation_loss(far, -far, far).item() == pytest.approx(2 * 200**2)


def test_every_part_learns_and_inputs_do_not():
    alignment, batch = make_alignment(), make_batch()
    alignment.losses(*batch).total(0.5, 0.2).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in alignment.parameters())
    assert all(tensor.grad is None for tensor in batch)


def test_shapes():
    alignment = make_alignment(item_dim=3, text_dim=5, joint_dim=4)
    batch = make_batch(rows=7)
    assert all(loss.shape == () for loss in alignment.losses(*batch))
    joint = alignment.items.encode(batch[1])
    assert joint.shape == (7, 4)
    assert alignment.items.decode(joint).shape == (7, 3)
    assert alignment.texts.decode(alignment.texts.encode(batch[3])).shape == (7, 5)
    assert alignment.items.encode(torch.zeros(3).double()).shape == (4,)


def test_joint_items_takes_texts_where_cold_and_embeddings_where_warm():
    alignment = make_alignment()
    _, embeddings, _, texts, _ = make_batch()
    is_cold = torch.tensor([True, False, False, True, True, False])
    joint = alignment.joint_items(embeddings, texts, is_cold)
    for item in range(6):
        expected = alignment.texts.encode(texts[item]) if is_cold[item] else alignment.items.encode(embeddings[item])
        assert torch.allclose(joint[item], expected)


def test_a_cold_items_embedding_is_of_no_account():
    alignment = make_alignment()
    _, embeddings, others, texts, _ = make_batch()
    is_cold = torch.ones(6, dtype=torch.bool)
    first, second = (alignment.joint_items(rows, texts, is_cold) for rows in (embeddings, others * torch.nan))
    assert torch.equal(first, second)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match=r"alpha: .*greater than or equal to 0"):
        AlignmentConfig(alpha=-1)
    with pytest.raises(InputError, match="did you mean 'joint_dim'"):
        AlignmentConfig(joint_dims=4)
