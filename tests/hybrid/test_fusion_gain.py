"""What the language model adds is kept where validation says so, and left out where it does not."""

import numpy as np
import pytest
import torch

from allrec.hybrid.fitting import Lists, is_gain
from allrec.hybrid.fusion import EvidenceScale, Fusion, FusionConfig, fused_scores, load_addition, save_addition

SCALE = EvidenceScale(torch.zeros(2), torch.ones(2), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def addition(members):
    config = FusionConfig(knots=2, members=members)
    return Fusion(["llm", "count"], ["count"], ["count"], config, SCALE, torch.Generator().manual_seed(0))


def lists_of(told):
    """Three candidates a row, the target in the second place; ``told`` is the evidence for it."""
    features = np.zeros((len(told), 3, 2), np.float32)
    features[:, 1, 0] = told
    return Lists(
        features, np.tile([4, 7, 9], (len(told), 1)), np.full(len(told), 7), np.zeros((len(told), 3), np.float32)
    )


@pytest.mark.parametrize(
    ("told", "is_kept"), [([1, 1, 1, 1], True), ([-1, -1, -1, -1], False), ([2, -2, 2, -2], False)]
)
def test_evidence_that_speaks_for_the_target_is_kept(told, is_kept):
    assert is_gain(lists_of(told), addition(2), np.array([0, 1, 0, 1]), 2.0, np.arange(4)) is is_kept


def test_the_gain_is_a_mean_over_its_standard_error():
    lists, folds, model = lists_of([1.0, -0.8, 1.0, 1.0]), np.array([0, 1, 0, 1]), addition(2)
    scores = fused_scores(model, lists.features, folds)
    gains = np.log(3) - (np.log(np.exp(scores).sum(axis=1)) - scores[:, 1])
    ratio = gains.mean() / (gains.std() / 2)
    assert is_gain(lists, model, folds, ratio - 1e-3, np.arange(4))
    assert not is_gain(lists, model, folds, ratio + 1e-3, np.arange(4))


def test_users_of_one_history_and_target_are_one_observation():
    """Copies of every user leave the mean and its standard error as they were."""
    told, model = [1.0, -0.8, 1.0, 0.9], addition(2)
    lists, copied = lists_of(told), lists_of(told * 5)
    clusters, folds = np.tile(np.arange(4), 5), np.tile([0, 1], 10)
    least = bisected(lambda least: is_gain(lists, model, folds[:4], least, np.arange(4)))
    assert bisected(lambda least: is_gain(copied, model, folds, least, clusters)) == pytest.approx(least, rel=1e-4)
    alone = bisected(lambda least: is_gain(copied, model, folds, least, np.arange(20)))
    assert alone == pytest.approx(least * 5**0.5, rel=1e-4)


def bisected(is_kept):
    """The number of standard errors up to which a gain is kept."""
    low, high = 0.0, 100.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return low


def test_padding_takes_no_part():
    lists, folds = lists_of([1.0, 1.0]), np.array([0, 1])
    padded = lists._replace(candidates=np.array([[4, 7, -1], [4, 7, -1]]))
    padded.features[:, 2] = 50
    assert is_gain(padded, addition(2), folds, 2.0, np.arange(2))


def test_that_nothing_is_added_is_stored(tmp_path):
    save_addition(tmp_path, None, "lists-llm")
    assert load_addition(tmp_path, "lists-llm") is None
    kept = addition(1)
    save_addition(tmp_path, kept, "lists-llm")
    found = load_addition(tmp_path, "lists-llm")
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), kept.state_dict().values(), strict=True))
