"""Whitening: embeddings turned and stretched until they have mean 0 and the identity as their covariance.

Vectors of language models lie in a narrow cone, where every cosine is nearly one; whitening spreads them out.

Source: Zhang et al., WhitenRec, ICDE 2024, arXiv:2402.15876, ZCA; here with a share of the mean variance added, so that
directions without variance are not stretched without bound.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from allrec.errors import InputError


class Whitening(NamedTuple):
    """A whitening, frozen once fitted.

    Attributes:
        mean: of the vectors that it was fitted on.
        matrix: symmetric; a centred vector times it is whitened.
    """

    mean: Float[Tensor, "dim"]
    matrix: Float[Tensor, "dim dim"]

    @classmethod
    def fit(cls, vectors: Float[Tensor, "items dim"], added: float) -> "Whitening":
        """The ZCA whitening of some vectors: W = (C + added · tr(C) / dim · I)^(-1/2) of their covariance C.

        Args:
            vectors: those of the items seen in training alone.
            added: share of the mean variance that is added to the variance in every direction.

        Raises:
            InputError: there are fewer than two different vectors.
        """
        known = vectors.double()
        mean = known.mean(dim=0)
        covariance = (known - mean).T @ (known - mean) / max(1, len(known))
        size = covariance.diagonal().mean()
        if not size > 0:
            raise InputError(
                f"{len(vectors)} items were seen in training and have a text, and no two of them differ, so there is "
                "nothing to whiten. Set second_text.enabled=false."
            )
        variances, directions = torch.linalg.eigh(covariance)
        stretch = (variances.clamp(min=0) + added * size).rsqrt()
        return cls(mean.float(), (directions * stretch @ directions.T).float())

    def __call__(self, vectors: Float[Tensor, "items dim"]) -> Float[Tensor, "items dim"]:
        """Whitened vectors; one of zeros, which has no text, stays zeros."""
        return ((vectors - self.mean) @ self.matrix) * vectors.any(dim=1, keepdim=True)
