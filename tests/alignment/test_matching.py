"""The losses of stage 1, each against arithmetic or an equation written one item at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import alignment as oracle

from allrec.alignment.losses import (
    Temperature,
    infonce_loss,
    is_matchable,
    matching_loss,
    recommendation_loss,
)


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


@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=7), scale=st.floats(0.1, 20))
def test_infonce_equals_its_equation_whatever_texts_are_equal(groups, scale):
    rng = np.random.default_rng(len(groups))
    items, texts = rng.normal(size=(2, len(groups), 4))
    loss = infonce_loss(torch.from_numpy(items), torch.from_numpy(texts), torch.tensor(groups), scale)
    assert loss.item() == pytest.approx(oracle.infonce(items, texts, groups, scale), rel=1e-9, abs=1e-12)


def test_infonce_of_two_orthogonal_pairs():
    unit = torch.eye(2)
    # Each picks between cosines 1 and 0 with scale 3, both ways.
    assert infonce_loss(unit, unit, torch.tensor([0, 1]), 3.0).item() == pytest.approx(math.log(1 + math.exp(-3)))
    assert infonce_loss(unit, unit.flip(0), torch.tensor([0, 1]), 3.0).item() == pytest.approx(
        math.log(1 + math.exp(3))
    )


def test_items_of_equal_text_are_not_told_apart():
    unit, same = torch.eye(2), torch.ones(2, 2)
    assert infonce_loss(unit, same, torch.tensor([5, 5]), 3.0).item() == 0
    # A third item is told from both, and both from it alone.
    items = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    expected = 2 * (2 * math.log(1 + math.exp(-3)) + math.log(1 + 2 * math.exp(-3))) / (2 * 3)
    assert infonce_loss(items, items, torch.tensor([5, 5, 6]), 3.0).item() == pytest.approx(expected)


def test_the_temperature_begins_at_7_hundredths_and_a_step_too_far_is_taken_back():
    temperature = Temperature()
    assert temperature().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        temperature.log_scale.fill_(9.0)
    assert temperature().item() == pytest.approx(100)
    temperature().backward()
    assert temperature.log_scale.grad.item() == pytest.approx(100)
    with torch.no_grad():
        temperature.log_scale.sub_(1.0)
    assert temperature().item() == pytest.approx(100 / math.e)


def test_only_items_that_were_seen_and_have_a_text_are_matched():
    texts = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert is_matchable(torch.tensor([3, 3, 0]), texts).tolist() == [True, False, False]
