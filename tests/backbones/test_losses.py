import numpy as np
import pytest
import torch

from allrec.backbones import losses
from allrec.backbones.losses import Negatives, binary_cross_entropy, sampled_softmax, softmax

GENERATOR = torch.Generator().manual_seed(0)
STATES = torch.randn(7, 3, generator=GENERATOR, dtype=torch.float64)
ITEMS = torch.randn(11, 3, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.tensor([0, 10, 3, 3, 5, 1, 2])
LOGITS = (STATES @ ITEMS.T).numpy()
ROWS = np.arange(7)


def log_softmax_by_hand(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_binary_cross_entropy_by_hand():
    negatives = torch.tensor([1, 2, 4, 5, 6, 7, 8])
    positive = 1 / (1 + np.exp(-LOGITS[ROWS, TARGETS]))
    negative = 1 / (1 + np.exp(-LOGITS[ROWS, negatives]))
    expected = -np.log(positive).mean() - np.log(1 - negative).mean()
    assert binary_cross_entropy(STATES, TARGETS, ITEMS, Negatives(negatives)).item() == pytest.approx(expected)


def test_softmax_by_hand():
    expected = -log_softmax_by_hand(LOGITS)[ROWS, TARGETS].mean()
    assert softmax(STATES, TARGETS, ITEMS).item() == pytest.approx(expected)


@pytest.mark.parametrize("max_logits", [1, 22, 33])
def test_softmax_in_chunks_has_the_same_value_and_gradient(monkeypatch, max_logits):
    def value_and_gradients():
        states, items = STATES.clone().requires_grad_(), ITEMS.clone().requires_grad_()
        value = softmax(states, TARGETS, items)
        value.backward()
        return value, states.grad, items.grad

    whole = value_and_gradients()
    monkeypatch.setattr(losses, "MAX_LOGITS", max_logits)
    chunked = value_and_gradients()
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other)


def test_sampled_softmax_on_the_whole_catalogue_is_softmax():
    everything = Negatives(torch.arange(11), torch.zeros(11, dtype=torch.float64))
    assert sampled_softmax(STATES, TARGETS, ITEMS, everything).item() == pytest.approx(
        softmax(STATES, TARGETS, ITEMS).item()
    )


def test_sampled_softmax_by_hand():
    sample, log_expected = [3, 3, 9], np.log([0.5, 0.5, 2.0])
    total = np.exp(LOGITS[ROWS, TARGETS])
    for item, correction in zip(sample, log_expected, strict=True):
        total = total + np.exp(LOGITS[:, item] - correction) * (TARGETS.numpy() != item)
    expected = -np.log(np.exp(LOGITS[ROWS, TARGETS]) / total).mean()
    negatives = Negatives(torch.tensor(sample), torch.from_numpy(log_expected))
    assert sampled_softmax(STATES, TARGETS, ITEMS, negatives).item() == pytest.approx(expected)


def test_sampled_softmax_nears_softmax_as_the_sample_grows():
    rng = np.random.default_rng(0)
    shares = np.arange(1, 12) / np.arange(1, 12).sum()
    sample = rng.choice(11, 200_000, p=shares)
    negatives = Negatives(torch.from_numpy(sample), torch.from_numpy(np.log(200_000 * shares[sample])))
    full = softmax(STATES, TARGETS, ITEMS).item()
    assert sampled_softmax(STATES, TARGETS, ITEMS, negatives).item() == pytest.approx(full, abs=0.01)


def test_missing_negatives_are_refused():
    with pytest.raises(ValueError, match="one negative for each token"):
        binary_cross_entropy(STATES, TARGETS, ITEMS, None)
    with pytest.raises(ValueError, match="one negative for each token"):
        binary_cross_entropy(STATES, TARGETS, ITEMS, Negatives(torch.arange(3)))
    with pytest.raises(ValueError, match="expected counts"):
        sampled_softmax(STATES, TARGETS, ITEMS, Negatives(torch.arange(3)))
