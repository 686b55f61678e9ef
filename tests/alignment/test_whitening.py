"""Whitening: the covariance is the identity, new vectors are whitened as the fitted ones, and no text stays no text."""

import numpy as np
import pytest
import torch

from allrec.alignment.whitening import Whitening
from allrec.errors import InputError


def vectors(num_items=400, dim=6, seed=0):
    """Correlated, far from the origin, of very unlike lengths."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) * torch.tensor([9.0, 3.0, 1.0, 1.0, 0.3, 0.1])
    return torch.randn(num_items, dim, generator=generator) @ mixing + 20


def test_whitened_vectors_have_mean_zero_and_the_identity_as_covariance():
    whitened = Whitening.fit(vectors(), 0.0)(vectors()).double().numpy()
    np.testing.assert_allclose(whitened.mean(axis=0), np.zeros(6), atol=1e-3)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(6), atol=1e-3)


def test_it_is_the_inverse_root_of_the_covariance_with_a_share_of_its_mean_variance():
    whitening = Whitening.fit(vectors(), 0.5)
    covariance = np.cov(vectors().double().numpy().T, bias=True)
    expected = np.linalg.inv(covariance + 0.5 * np.trace(covariance) / 6 * np.eye(6))
    matrix = whitening.matrix.double().numpy()
    np.testing.assert_allclose(matrix @ matrix, expected, rtol=1e-4, atol=1e-6)
    # Of all whitenings the symmetric one turns vectors least.
    np.testing.assert_array_equal(matrix, matrix.T)


def test_new_vectors_are_whitened_by_what_was_fitted():
    whitening, new = Whitening.fit(vectors(), 0.1), vectors(3, seed=1)
    expected = (new.numpy() - vectors().numpy().mean(axis=0)) @ whitening.matrix.numpy()
    np.testing.assert_allclose(whitening(new).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_no_text_stays_zeros():
    rows = torch.cat([torch.zeros(1, 6), vectors(2)])
    assert torch.equal(Whitening.fit(vectors(), 0.1)(rows)[0], torch.zeros(6))


def test_more_directions_than_vectors_are_stretched_within_bounds():
    few = vectors(4)
    assert Whitening.fit(few, 0.1)(few).abs().max() < 4 / 0.1**0.5


@pytest.mark.parametrize("same", [torch.zeros(0, 3), torch.ones(5, 3)])
def test_equal_texts_are_refused(same):
    with pytest.raises(InputError, match=f"{len(same)} items .* no two of them differ"):
        Whitening.fit(same, 0.1)
