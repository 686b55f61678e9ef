"""Stage 1's variants: what InfoNCE tells apart, that it learns, no stage 1 at all, and a tuned text encoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.encoders import save_encoder
from tests.killing import Killed, killed_at
from tests.training.histories import dataset_of

from allrec.alignment import training as stage_one
from allrec.alignment.measures import measure_alignment
from allrec.alignment.model import AlignmentConfig, NoAlignment
from allrec.alignment.text_encoder import TextEncoder, TextEncoderConfig, embed_texts
from allrec.alignment.training import AlignmentStageConfig, distinct_batches, text_groups, train_alignment
from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.errors import InputError
from allrec.training.loop import LoopConfig

INFONCE = {"matching": "infonce", "activation": "linear", "has_decoders": False, "alpha": 0, "beta": 0}


def bytes_of(module):
    return b"".join(value.detach().numpy().tobytes() for value in module.state_dict().values())


def scene(num_items=120, num_users=150, texts_alike=0):
    """Texts are a linear view of the item embeddings, but for ``texts_alike`` items that share the first one's."""
    rng = np.random.default_rng(0)
    histories = [rng.permutation(num_items)[:9].tolist() for _ in range(num_users)]
    config = SASRecConfig(dim=8, blocks=1, max_length=4)
    backbone = freeze(SASRec(num_items, config, torch.Generator().manual_seed(3)))
    backbone.item_table.data = torch.from_numpy(rng.normal(size=(num_items, 8))).float()
    texts = torch.tanh(backbone.item_embeddings().detach() @ torch.from_numpy(rng.normal(size=(8, 12))).float())
    texts[1 : 1 + texts_alike] = texts[0]
    return dataset_of(histories, num_items), backbone, texts


def config_of(network=INFONCE, epochs=4, **settings):
    loop = LoopConfig(epochs=epochs, learning_rate=1e-2, checkpoint_every=2)
    network = AlignmentConfig(joint_dim=16, **network)
    return AlignmentStageConfig(
        **({"network": network, "batch_size": 64, "distinct_items": 50, "loop": loop} | settings)
    )


# What InfoNCE tells apart


@given(num_items=st.integers(2, 30), size=st.integers(2, 40), num_batches=st.integers(1, 12), seed=st.integers(0, 9))
def test_batches_hold_distinct_items_all_about_as_often(num_items, size, num_batches, seed):
    items = np.arange(num_items) * 3 + 1
    batches = distinct_batches(items, size, num_batches, np.random.default_rng(seed))
    assert [len(batch) for batch in batches] == [min(size, num_items)] * num_batches
    assert all(len(set(batch.tolist())) == len(batch) for batch in batches)
    assert set(np.concatenate(batches).tolist()) <= set(items.tolist())
    # A shuffle is used up before the next.
    per_shuffle = max(1, num_items // size)
    counts = np.bincount(np.concatenate(batches), minlength=items[-1] + 1)[items]
    assert counts.max() <= -(-num_batches // per_shuffle)
    if num_items % size == 0 and num_batches % per_shuffle == 0:
        assert counts.min() == counts.max()


def test_one_item_alone_cannot_be_told_apart():
    with pytest.raises(InputError, match="1 items were seen in training and have a text"):
        distinct_batches(np.array([4]), 8, 1, np.random.default_rng(0))


def test_equal_texts_are_one_group():
    texts = torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0], [0.0, 0.0], [1.0, 3.0], [2.0, 1.0]])
    groups = text_groups(texts)
    assert (groups[:, None] == groups[None, :]).tolist() == (texts[:, None] == texts[None, :]).all(-1).tolist()


def test_each_step_tells_apart_distinct_items_that_were_seen_and_have_a_text(monkeypatch):
    dataset, backbone, texts = scene(texts_alike=2)
    never = np.flatnonzero(dataset.train_counts() == 0)
    texts[5] = 0
    seen = []
    losses = stage_one.Alignment.losses

    def spied(self, *arguments):
        seen.append(arguments[-1])
        return losses(self, *arguments)

    monkeypatch.setattr(stage_one.Alignment, "losses", spied)
    train_alignment(dataset, backbone, texts, config_of(epochs=1), seed=0)
    embeddings = backbone.item_embeddings().detach()
    assert len(seen) > 3
    for distinct in seen:
        items = [int(np.flatnonzero((embeddings == row).all(1))[0]) for row in distinct.embeddings]
        assert len(set(items)) == len(items) == 50
        assert not set(items) & {5, *never.tolist()}
        assert torch.equal(distinct.texts, texts[items])
        alike = [group for item, group in zip(items, distinct.text_groups.tolist(), strict=True) if item <= 2]
        assert len(set(alike)) <= 1
        assert len(set(distinct.text_groups.tolist())) == len(items) - max(0, len(alike) - 1)


# Learning


def test_infonce_lets_an_item_find_its_text_far_above_chance():
    dataset, backbone, texts = scene()
    alignment, report = train_alignment(dataset, backbone, texts, config_of(epochs=25), seed=0)
    embeddings, counts = backbone.item_embeddings().detach(), dataset.train_counts()
    found = measure_alignment(alignment, embeddings, texts, counts)["retrieval"]
    # Chance is 1 in 120.
    assert found["q to e"]["recall@1"] > 0.5
    assert found["e to q"]["recall@1"] > 0.5
    assert report.losses[-1] < 0.7 * report.losses[0]
    assert not alignment.training
    assert not any(parameter.requires_grad for parameter in alignment.parameters())


def test_the_projected_user_learns_to_choose():
    """Users choose items of their own half of the catalogue; half of the coordinates tell which it is."""
    rng = np.random.default_rng(0)
    histories = [(rng.permutation(20)[:8] + 20 * (user % 2)).tolist() for user in range(60)]
    dataset, backbone, _ = dataset_of(histories, 40), scene(num_items=40)[1], None
    backbone.item_table.data[:20, 0], backbone.item_table.data[20:, 0] = 2.0, -2.0
    texts = torch.from_numpy(rng.normal(size=(40, 6))).float()
    alignment, _ = train_alignment(dataset, backbone, texts, config_of(epochs=20), seed=0)
    embeddings = backbone.item_embeddings().detach()
    items = alignment.scored_items(alignment.joint_items(embeddings, texts, torch.zeros(40, dtype=torch.bool)))
    users = backbone.encode(torch.tensor([history[:4] for history in histories])).detach()
    scores = users @ items.T
    own = torch.tensor([[item // 20 == user % 2 for item in range(40)] for user in range(60)])
    assert scores[own].mean() > scores[~own].mean() + 1


def test_deeper_encoders_learn():
    dataset, backbone, texts = scene()
    loop = LoopConfig(epochs=15, learning_rate=3e-3, optimizer="adamw", weight_decay=0.1)
    config = config_of({"hidden": (48, 32), "dropout": 0.2}, loop=loop)

    def shares(seed):
        """What is left of each loss after training; a step's loss is its batch's, so epochs are compared."""
        seen = []
        train_alignment(dataset, backbone, texts, config, seed=seed, on_progress=lambda _, values: seen.append(values))
        first, last = ([step for step in seen if step["epoch"] == epoch] for epoch in (0, 14))
        return {name: np.mean([step[name] for step in last]) / np.mean([step[name] for step in first]) for name in most}

    # Medians of five seeds were .43, .73 and .97 with our dropout, and .43, .74 and .96 with torch's.
    most = {"text_reconstruction": 0.46, "item_reconstruction": 0.8, "recommendation": 0.99}
    found = [shares(seed) for seed in range(5)]
    for name, bound in most.items():
        assert np.median([one[name] for one in found]) < bound


@pytest.mark.parametrize("step", [1, 9])
@pytest.mark.parametrize("network", [INFONCE, {"hidden": (8,), "dropout": 0.3}])
def test_a_variant_killed_and_resumed_ends_in_the_same_bytes(tmp_path, network, step):
    dataset, backbone, texts = scene()
    arguments = (dataset, backbone, texts, config_of(network))
    whole, report = train_alignment(*arguments, seed=0)
    with pytest.raises(Killed):
        train_alignment(*arguments, seed=0, checkpoint=tmp_path / "c", on_progress=killed_at(step))
    resumed, again = train_alignment(*arguments, seed=0, checkpoint=tmp_path / "c")
    assert bytes_of(resumed) == bytes_of(whole)
    assert again == report
    assert bytes_of(train_alignment(*arguments, seed=1)[0]) != bytes_of(whole)


def test_the_draw_of_distinct_items_changes_nothing_else_of_a_step(monkeypatch):
    dataset, _, texts = scene()
    seen = {}
    for name, network in (("infonce", INFONCE), ("mse", {})):
        config = config_of(network)
        batches = stage_one._batches(dataset, np.arange(150), texts, config, 0)(3)
        seen[name] = [(batch.rows.tolist(), batch.negatives.tolist()) for batch in batches]
        assert all((batch.distinct is None) == (name == "mse") for batch in batches)
    assert seen["infonce"] == seen["mse"]


# No stage 1


def test_without_stage_1_nothing_is_trained():
    dataset, backbone, texts = scene()
    alignment, report = train_alignment(dataset, backbone, texts, config_of({"kind": "identity"}), seed=0)
    assert isinstance(alignment, NoAlignment)
    assert (report.steps, report.losses) == (0, [])


# A tuned text encoder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


def tuned_scene(encoder_folder, seed=0, **settings):
    rng = np.random.default_rng(1)
    histories = [rng.permutation(6)[:5].tolist() for _ in range(12)]
    names = ["rose soap", "silver comb", "rose soap", None, "night oil", "hand cream"]
    backbone = freeze(SASRec(6, SASRecConfig(dim=8, blocks=1, max_length=4), torch.Generator().manual_seed(3)))
    encoder = TextEncoder(TextEncoderConfig(name=str(encoder_folder), max_tokens=16))
    texts = embed_texts(names, encoder.encode, encoder.dim)
    dataset = replace(dataset_of(histories, 6), texts=names)
    config = config_of({}, epochs=2, tune_text=True, batch_size=16)
    trained = train_alignment(dataset, backbone, texts, config, seed=seed, encoder=encoder, **settings)
    return trained, encoder, texts, embed_texts(names, encoder.encode, encoder.dim)


def test_texts_are_embedded_once_each_and_no_text_is_zeros():
    asked = []

    def encode(texts):
        asked.append(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    assert embed_texts(["abc", None, "a", "abc", ""], encode, 1).tolist() == [[3], [0], [1], [3], [0]]
    assert asked == [["a", "abc"]]
    assert embed_texts([None, None], encode, 2).tolist() == [[0, 0], [0, 0]]


def test_an_embedding_for_tuning_is_the_frozen_one_with_gradients(encoder_folder):
    encoder = TextEncoder(TextEncoderConfig(name=str(encoder_folder), max_tokens=16))
    texts = ["rose soap", "a silver comb and a brush and a mirror and an oil"]
    encoder.tunable().eval()
    embeddings = encoder.embed(texts)
    assert torch.allclose(embeddings, encoder.encode(texts), atol=1e-6)
    embeddings.sum().backward()
    assert any(value.grad is not None for value in encoder.tunable().parameters())


def test_tuning_moves_the_text_encoder_and_leaves_it_frozen(encoder_folder):
    (alignment, _), encoder, before, after = tuned_scene(encoder_folder)
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    assert torch.equal(after[0], after[2])
    assert after[3].abs().sum() == 0
    assert not any(value.requires_grad for value in [*encoder._model.parameters(), *alignment.parameters()])
    assert not encoder._model.training
    stranger = TextEncoder(TextEncoderConfig(name=str(encoder_folder), max_tokens=16))
    assert not torch.allclose(stranger.encode(["rose soap"]), after[:1], atol=1e-3)
    stranger.load_weights(encoder.weights())
    assert torch.allclose(stranger.encode(["rose soap"]), after[:1], atol=1e-6)


def test_tuning_killed_and_resumed_ends_in_the_same_bytes(encoder_folder, tmp_path):
    (whole, report), encoder, _, _ = tuned_scene(encoder_folder)
    assert report.steps > 3
    with pytest.raises(Killed):
        tuned_scene(encoder_folder, checkpoint=tmp_path / "c", on_progress=killed_at(3))
    (resumed, _), again, _, _ = tuned_scene(encoder_folder, checkpoint=tmp_path / "c")
    assert bytes_of(resumed) == bytes_of(whole)
    assert bytes_of(again._model) == bytes_of(encoder._model)


def test_tuning_a_text_encoder_that_nobody_reads_is_refused():
    with pytest.raises(InputError, match="nobody reads the texts"):
        AlignmentStageConfig(network=AlignmentConfig(kind="identity"), tune_text=True)
