"""The alignment network against its equations in plain NumPy, and which joint embedding an item enters with."""

import pytest
import torch
from tests.oracles import alignment as oracle

from allrec.alignment.model import (
    Alignment,
    AlignmentConfig,
    AlignmentLosses,
    Distinct,
    NoAlignment,
    new_alignment,
)
from allrec.errors import InputError

NAMES = ("matching", "item_reconstruction", "text_reconstruction", "recommendation")


INFONCE = {"matching": "infonce", "has_decoders": False, "alpha": 0, "beta": 0}


def make_alignment(item_dim=3, text_dim=5, joint_dim=4, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Alignment(item_dim, text_dim, AlignmentConfig(joint_dim=joint_dim, **settings)).double()


def weights_of(alignment):
    return {key: value.detach().numpy() for key, value in alignment.state_dict().items()}


def make_batch(rows=6, item_dim=3, text_dim=5):
    generator = torch.Generator().manual_seed(1)
    widths = (item_dim, item_dim, item_dim, text_dim, text_dim)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for width in widths]


def arrays(tensors):
    return [tensor.numpy() for tensor in tensors]


@pytest.mark.parametrize("name", NAMES)
def test_each_loss_equals_its_equation(name):
    alignment, batch = make_alignment(), make_batch()
    expected = dict(zip(NAMES, oracle.losses(weights_of(alignment), *arrays(batch)), strict=True))
    assert getattr(alignment.losses(*batch), name).item() == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_each_loss_of_deeper_encoders_equals_its_equation(name):
    alignment, batch = make_alignment(hidden=(7, 6), dropout=0.2).eval(), make_batch()
    assert weights_of(alignment)["items.decoder.weight"].shape == (3, 4)
    expected = dict(zip(NAMES, oracle.losses(weights_of(alignment), *arrays(batch)), strict=True))
    assert getattr(alignment.losses(*batch), name).item() == pytest.approx(expected[name], rel=1e-12)


def test_a_text_embedding_is_not_drawn_to_its_reconstruction():
    alignment, batch = make_alignment(), make_batch()
    texts = torch.cat(batch[3:]).requires_grad_()
    loss = alignment.losses(*batch[:3], *texts.chunk(2)).text_reconstruction
    alone = torch.cat(batch[3:]).requires_grad_()
    through_encoder = (alignment.texts.decode(alignment.texts.encode(alone)) - torch.cat(batch[3:])).square().mean()
    (found,), (expected,) = torch.autograd.grad(loss, texts), torch.autograd.grad(through_encoder, alone)
    torch.testing.assert_close(found, expected)


def test_dropout_acts_while_training_and_on_hidden_layers_alone():
    embeddings = make_batch()[1]
    deeper, shallow = make_alignment(hidden=(32,), dropout=0.5), make_alignment()
    for alignment in (deeper, shallow):
        assert torch.equal(alignment.eval().items.encode(embeddings), alignment.items.encode(embeddings))
    with torch.random.fork_rng():
        assert not torch.equal(deeper.train().items.encode(embeddings), deeper.items.encode(embeddings))
        assert torch.equal(shallow.train().items.encode(embeddings), shallow.items.encode(embeddings))


def distinct_of(batch, groups):
    return Distinct(batch[1], batch[3], torch.tensor(groups))


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "linear"])
def test_without_decoders_infonce_and_projected_users_equal_their_equations(activation):
    alignment, batch = make_alignment(**INFONCE, activation=activation), make_batch()
    groups = [0, 1, 0, 2, 3, 4]
    losses = alignment.losses(*batch, distinct_of(batch, groups))
    users, positives, negatives, positive_texts, _ = arrays(batch)
    weights = weights_of(alignment)
    items = [oracle.encode(weights, "items", row, activation) for row in positives]
    texts = [oracle.encode(weights, "texts", row, activation) for row in positive_texts]
    assert losses.matching.item() == pytest.approx(oracle.infonce(items, texts, groups, 1 / 0.07), rel=1e-6)
    expected = oracle.projected_recommendation(weights, users, positives, negatives, activation)
    assert losses.recommendation.item() == pytest.approx(expected, rel=1e-12)
    assert losses.item_reconstruction.item() == losses.text_reconstruction.item() == 0


def test_infonce_without_distinct_items_is_a_mistake():
    with pytest.raises(ValueError, match="distinct items, and none were given"):
        make_alignment(**INFONCE).losses(*make_batch())


@pytest.mark.parametrize(
    ("settings", "silent"),
    [
        ({"matching": "none"}, {"matching"}),
        ({"has_recommendation": False}, {"recommendation"}),
        ({"has_decoders": False, "alpha": 0, "beta": 0}, {"item_reconstruction", "text_reconstruction"}),
    ],
)
def test_a_loss_that_is_switched_off_is_nothing_and_the_others_are_as_they_were(settings, silent):
    batch = make_batch()
    whole, changed = make_alignment().losses(*batch), make_alignment(**settings).losses(*batch)
    for name in NAMES:
        if name in silent:
            assert getattr(changed, name).item() == 0
        elif "has_decoders" not in settings:
            assert getattr(changed, name).item() == getattr(whole, name).item()


@pytest.mark.parametrize("settings", [{}, {"hidden": (7,)}, INFONCE, {"has_decoders": False, "alpha": 0, "beta": 0}])
def test_a_user_times_scored_items_is_the_score_that_the_recommendation_loss_learned(settings):
    alignment, (users, embeddings, *_) = make_alignment(**settings), make_batch()
    scores = users @ alignment.scored_items(alignment.items.encode(embeddings)).T
    weights = weights_of(alignment)
    for row, user in enumerate(users.numpy()):
        for item, embedding in enumerate(embeddings.numpy()):
            e = oracle.encode(weights, "items", embedding)
            has_decoder = "items.decoder.weight" in weights
            expected = user @ oracle.decode(weights, "items", e) if has_decoder else weights["users.weight"] @ user @ e
            assert scores[row, item].item() == pytest.approx(expected, rel=1e-9)


def test_total_weighs_the_reconstructions():
    losses = AlignmentLosses(*(torch.tensor(value) for value in (2.0, 3.0, 5.0, 7.0)))
    assert losses.total(0.5, 0.2).item() == pytest.approx(2 + 0.5 * 3 + 0.2 * 5 + 7)
    assert losses.total(0, 0).item() == 2 + 7


@pytest.mark.parametrize("settings", [{}, {"hidden": (9,)}, INFONCE])
def test_every_part_learns_and_inputs_do_not(settings):
    alignment, batch = make_alignment(**settings), make_batch()
    alignment.losses(*batch, distinct_of(batch, range(6))).total(0.5, 0.2).backward()
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


def test_without_stage_1_an_item_enters_as_itself_and_a_cold_one_as_the_mean_of_the_warm():
    alignment = new_alignment(2, 5, AlignmentConfig(kind="identity"))
    embeddings, texts = torch.tensor([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]), torch.randn(3, 5)
    joint = alignment.joint_items(embeddings, texts, torch.tensor([False, False, True]))
    assert joint.tolist() == [[1, 2], [3, 6], [(1 + 3) / 2, (2 + 6) / 2]]
    assert torch.equal(alignment.scored_items(joint), joint)
    assert alignment.joint_items(embeddings, texts, torch.ones(3, dtype=torch.bool)).abs().sum() == 0
    assert isinstance(alignment, NoAlignment)
    assert list(alignment.state_dict()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": (4, 0)}, r"hidden is \(4, 0\), expected widths of at least 1"),
        ({"dropout": 0.1}, "dropout is 0.1 and there is no hidden layer"),
        ({"has_decoders": False}, "alpha is 0.5 and beta 0.2, and there are no decoders"),
        (INFONCE | {"has_recommendation": False}, "nothing learns to score items"),
        ({"alpha": 0, "has_recommendation": False}, "nothing teaches the items' decoder"),
        ({"matching": "none", "beta": 0}, "nothing teaches the texts' encoder"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        AlignmentConfig(**settings)
    assert AlignmentConfig(kind="identity", **settings).kind == "identity"


def test_no_matching_may_be_asked_for_by_a_bare_none():
    assert AlignmentConfig(matching=None).matching == "none"


def test_what_is_not_there_cannot_be_decoded():
    alignment = make_alignment(**INFONCE)
    with pytest.raises(ValueError, match="has no decoders"):
        alignment.items.decode(torch.zeros(2, 4).double())
