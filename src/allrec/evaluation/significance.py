"""Confidence intervals and paired tests over users, as pure functions of one value a user.

Metrics of ranks take few different values, so users are drawn as counts of values: the same distribution as drawing
them one by one, at a fraction of the time and memory.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

SAMPLES = 2000
# Values drawn at one time: 64 MiB of int64.
MAX_DRAWS = 1 << 23


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


class Comparison(NamedTuple):
    """Two systems over the same users: mean difference (first minus second), its interval, and the two-sided p."""

    difference: float
    interval: Interval
    p: float

    def row(self) -> dict[str, Any]:
        """Its part of a row of results."""
        return {"difference": self.difference, "ci95": list(self.interval), "p": self.p}


def bootstrap_interval(
    values: Float[np.ndarray, "users"], rng: np.random.Generator, *, level: float = 0.95, samples: int = SAMPLES
) -> Interval:
    """Percentile bootstrap interval of the mean over users. One user, or equal values, give an interval of no width.

    Args:
        values: one value a user, such as ``gains_at(ranks, 10)``.
        rng: draws the users.
        level: probability that the interval covers the mean.
        samples: bootstrap samples.

    Raises:
        ValueError: no values, or values that are not finite.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    distinct, counts = np.unique(_checked(values), return_counts=True)
    shares = counts / counts.sum()
    drawn = [rng.multinomial(len(values), shares, size) @ distinct for size in _chunks(samples, len(distinct))]
    means = np.concatenate(drawn) / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def student_interval(means: Float[np.ndarray, "seeds"], level: float = 0.95) -> Interval:
    """Student's interval of a mean over repetitions such as seeds.

    Raises:
        ValueError: fewer than two means, or values that are not finite.
    """
    values = _checked(means)
    if len(values) < 2:
        raise ValueError("got one mean, expected two at least: one has no spread")
    from scipy.special import stdtrit  # takes a fifth of a second to import

    width = stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(values.mean() - width), float(values.mean() + width))


def sign_flip_p(
    first: Float[np.ndarray, "users"],
    second: Float[np.ndarray, "users"],
    rng: np.random.Generator,
    *,
    samples: int = 10 * SAMPLES,
) -> float:
    """Two-sided p of a paired permutation test: how often chance signs give a mean difference at least as large.

    Never below 1 / (samples + 1), since the observed signs are one of the possible ones; 1 where nothing differs.

    Args:
        first: one value a user.
        second: values of the same users in the same order.
        rng: draws the signs.
        samples: random sign patterns.

    Raises:
        ValueError: no values, different numbers of them, or values that are not finite.

    Source:
        Fisher's randomisation test; Smucker, Allan and Carterette, CIKM 2007, section 3.1.
    """
    differences = _paired(first, second)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    observed = abs(differences.sum())
    # m users of one size s sum to s * (2 * Binomial(m, 1/2) - m) under chance signs.
    exceeding = 0
    for size in _chunks(samples, max(1, len(sizes))):
        sums = (2 * rng.binomial(counts, 0.5, (size, len(counts))) - counts) @ sizes
        # The slack keeps sums that are equal but for their order of addition from counting as smaller.
        exceeding += int((np.abs(sums) >= observed * (1 - 1e-12)).sum())
    return (1 + exceeding) / (1 + samples)


def compare(
    first: Float[np.ndarray, "users"], second: Float[np.ndarray, "users"], rng: np.random.Generator
) -> Comparison:
    """Paired comparison of two systems over the same users: positive where ``first`` is better."""
    differences = _paired(first, second)
    interval = bootstrap_interval(differences, rng)
    return Comparison(float(differences.mean()), interval, sign_flip_p(first, second, rng))


def holm(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """p values corrected for multiple tests by Holm; below .05 keeps the family-wise error rate at .05.

    The smallest p is multiplied by the number of tests, the next by one less, and so on; none falls below an
    earlier one or exceeds 1. No tests give no values.

    Raises:
        ValueError: a p outside 0 to 1.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm(np.array([0.04, 0.01, 0.5])).tolist()
        [0.08, 0.03, 0.5]
    """
    values = np.asarray(p_values, dtype=np.float64)
    # Written so that nan is refused too.
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"got p values {values.tolist()}, expected numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return adjusted


def _chunks(samples: int, width: int) -> list[int]:
    chunk = max(1, MAX_DRAWS // width)
    return [min(chunk, samples - start) for start in range(0, samples, chunk)]


def _paired(first: Float[np.ndarray, "users"], second: Float[np.ndarray, "users"]) -> Float[np.ndarray, "users"]:
    if first.shape != second.shape:
        raise ValueError(f"got {len(first)} and {len(second)} values, expected the same users in the same order")
    return np.asarray(_checked(first) - _checked(second))


def _checked(values: Float[np.ndarray, "users"]) -> Float[np.ndarray, "users"]:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"got {values.size} values, expected at least one, and every one a finite number")
    return values
