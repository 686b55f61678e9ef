"""The tuned text encoder: its loss by hand, what is a negative, what stays frozen, and that it learns and resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.encoders import save_encoder
from tests.killing import Killed, killed_at
from tests.training.histories import dataset_of

from allrec.alignment.text_encoder import TextEncoder, TextEncoderConfig
from allrec.alignment.text_tuning import (
    TextTuningConfig,
    UserBatches,
    next_item_loss,
    title_numbers,
    tune_text,
    tuned_embeddings,
)
from allrec.training.loop import LoopConfig
from remedies import refused

WORDS = ["hand", "cream", "rose", "lotion", "velvet", "soap", "silver", "comb", "brush", "mirror", "oil", "serum"]
NUM_ITEMS = len(WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture
def encoder(folder):
    return TextEncoder(TextEncoderConfig(name=str(folder)))


def scene(num_users=60):
    """Users buy along two rings of items, even and odd ones, whose words have nothing in common."""
    rng = np.random.default_rng(0)
    starts = rng.integers(NUM_ITEMS, size=num_users)
    histories = [[(start + 2 * step) % NUM_ITEMS for step in range(5)] for start in starts]
    return replace(dataset_of(histories, NUM_ITEMS), titles=list(WORDS), texts=list(WORDS))


def config_of(epochs=3, **settings):
    loop = LoopConfig(epochs=epochs, learning_rate=3e-3, checkpoint_every=2)
    return TextTuningConfig(**({"layers": 1, "batch_users": 16, "loop": loop} | settings))


def tuned(encoder, dataset=None, config=None, **given):
    dataset, config = scene() if dataset is None else dataset, config or config_of()
    layers = encoder.last_layers(config.layers)
    states = encoder.states_before(config.layers, dataset.texts, config.max_tokens)
    return layers, tune_text(dataset, layers, states, config, seed=0, **given)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The last layers


@pytest.mark.parametrize("num_layers", [1, 5])
def test_the_last_layers_go_on_where_the_stored_states_end(encoder, num_layers):
    texts = ["rose soap", None, "night cream with velvet and silver", "oil", "", "rose soap"]
    states = encoder.states_before(num_layers, texts, 256)
    got = encoder.last_layers(num_layers).eval()(states, torch.tensor([5, 1, 2, 3, 0, 4]))
    expected = encoder.encode([text or "" for text in texts])
    expected = torch.nn.functional.normalize(expected, dim=1)
    expected[[1, 4]] = 0
    assert torch.allclose(got, expected[[5, 1, 2, 3, 0, 4]], atol=1e-5)


def test_a_long_text_is_cut_and_the_encoder_reads_as_far_as_before(encoder):
    longest = encoder._model.max_seq_length
    states = encoder.states_before(1, [" ".join(WORDS * 2)], 8)
    assert states.offsets.tolist() == [0, 8]
    assert encoder._model.max_seq_length == longest


def test_batches_of_unlike_sizes_have_one_shape(encoder):
    """A kernel and its memory are kept for every shape: unlike ones took gigabytes over a hundred steps."""
    states, layers = encoder.states_before(1, WORDS, 256), encoder.last_layers(1).eval()
    shapes = set()
    for count in (1, 2, 7, NUM_ITEMS):
        assert len(layers(states, torch.arange(count))) == count
        shapes.add(tuple(layers._replay.states.shape))
    assert shapes == {(64, 8, 16)}


def test_items_without_any_text_have_zeros(encoder):
    states = encoder.states_before(1, ["oil", None], 8)
    assert torch.equal(encoder.last_layers(1)(states, torch.tensor([1, 1])), torch.zeros(2, 16))
    assert tuned_embeddings(encoder.last_layers(1), states)[1].abs().sum() == 0


# The loss and the batches


def test_the_loss_is_the_softmax_with_the_frequencies_taken_off_as_written_by_hand():
    rng = np.random.default_rng(0)
    logits, shares = rng.normal(size=(3, 5)), rng.dirichlet(np.ones(5))
    excluded, targets = rng.random((3, 5)) < 0.3, [4, 0, 2]
    excluded[0, 4] = True  # the target counts all the same
    expected = 0.0
    for row, target in enumerate(targets):
        counted = [place for place in range(5) if place == target or not excluded[row, place]]
        weights = [np.exp(logits[row, place]) / shares[place] for place in counted]
        expected -= np.log(np.exp(logits[row, target]) / shares[target] / sum(weights)) / 3
    given = (torch.from_numpy(logits), torch.from_numpy(shares).log(), torch.from_numpy(excluded))
    assert next_item_loss(*given, torch.tensor(targets)).item() == pytest.approx(expected)


def test_a_batch_has_every_target_that_is_new_to_its_user_with_the_latest_items_first():
    dataset = dataset_of([[3, 5, 3, 7, 0, 0], [2], [1, 9, 4, 4]], 12)
    has_text = np.arange(12) != 9
    (batch,) = UserBatches(dataset, config_of(max_history=2), 0, has_text)(0)
    rows = {
        (batch.items[target], *batch.items[history[history >= 0]])
        for target, history in zip(batch.targets.numpy(), batch.histories.numpy(), strict=True)
    }
    # The second user has one training item, and the third one of two has no text.
    assert rows == {(5, 3), (7, 3, 5)}
    assert batch.items.tolist() == [3, 5, 7]


def test_equal_titles_are_no_negatives(encoder):
    """With the title of every item equal, no negative is left and the loss is zero from the first step."""
    dataset = replace(scene(), titles=["soap"] * NUM_ITEMS)
    _, report = tuned(encoder, dataset)
    assert report.losses == [0.0] * 3
    assert tuned(encoder)[1].losses[0] > 0.1


def test_items_without_a_title_are_not_equal():
    assert title_numbers(["a", None, "a", None, "b"]).tolist() == [0, 1, 0, 2, 3]


def test_users_without_two_training_items_are_refused_and_longer_histories_do(encoder):
    with refused("no user has two training items, expected some. Give longer histories."):
        tuned(encoder, replace(dataset_of([[1], [2]], NUM_ITEMS), titles=WORDS, texts=WORDS))
    assert tuned(encoder, replace(dataset_of([[1, 2], [2]], NUM_ITEMS), titles=WORDS, texts=WORDS))[1].steps == 3


# The training


def test_it_learns_what_follows_what(encoder):
    dataset, config = scene(), config_of(epochs=40)
    layers, report = tuned(encoder, dataset, config)
    assert report.losses[-1] < 0.8 * report.losses[0]
    states = encoder.states_before(1, dataset.texts, 32)
    cosines = tuned_embeddings(layers, states) @ tuned_embeddings(layers, states).T
    is_together = (torch.arange(NUM_ITEMS)[:, None] - torch.arange(NUM_ITEMS)) % 2 == 0
    before = encoder.last_layers(1).eval()(states, torch.arange(NUM_ITEMS))
    before = before @ before.T
    gaps = [one[is_together].mean() - one[~is_together].mean() for one in (before, cosines)]
    assert gaps[1] > gaps[0] + 0.1


def test_the_encoder_and_the_layers_below_stay_as_they_were_to_the_bit(encoder, folder):
    layers, _ = tuned(encoder)
    assert same(encoder.weights(), TextEncoder(encoder.config).weights())
    fresh = encoder.last_layers(1).state_dict()
    moved = {name for name, value in layers.state_dict().items() if not torch.equal(value, fresh[name])}
    assert moved
    assert all(".layer.1." in name for name in moved)
    assert not any(value.requires_grad for value in layers.parameters())


def test_weights_are_stored_and_read_again(encoder):
    layers, _ = tuned(encoder)
    other = encoder.last_layers(1)
    assert not same(other.weights(), layers.weights())
    other.load_weights(layers.weights())
    assert same(other.weights(), layers.weights())


def test_killed_and_resumed_it_is_the_same(encoder, tmp_path):
    whole, _ = tuned(encoder)
    again, _ = tuned(encoder)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        tuned(encoder, checkpoint=file, on_progress=killed_at(5))
    resumed, _ = tuned(encoder, checkpoint=file)
    assert same(whole.weights(), again.weights())
    assert same(whole.weights(), resumed.weights())
