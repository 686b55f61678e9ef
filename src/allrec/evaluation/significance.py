"""Confidence intervals and paired tests over seeds and users, as pure functions of one value a seed and user.

The observation is a user, or a cluster of users who cannot be told apart (same history, same target), under every
seed: seeds and clusters are crossed, so both are resampled, each independently of the other. One seed is taken as it
is: what is said of it holds for these trained models and other users.

Metrics of ranks take few different values, so users are drawn as counts of values: the same distribution as drawing
them one by one, at a fraction of the time and memory.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

SAMPLES = 2000
P_SAMPLES = 10 * SAMPLES
"""Samples of a p, which needs more of them than an interval."""
# Values drawn at one time: 64 MiB of int64.
MAX_DRAWS = 1 << 23
MARGIN = 0.005
"""What "not worse" allows: half a point of HR@1 or NDCG@10, less than seeds move either."""


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


class Comparison(NamedTuple):
    """Two systems over the same seeds and users: mean difference (first minus second), interval, two-sided p.

    ``margin`` is what the first may lose and still count as not worse.
    """

    difference: float
    interval: Interval
    p: float
    margin: float = MARGIN

    @property
    def is_not_worse(self) -> bool:
        """Whether the first is not worse than the second by more than the margin: a one-sided test at 2.5%.

        A large p says no such thing: few users have a large p whatever the systems.
        """
        return self.interval.low > -self.margin

    def row(self) -> dict[str, Any]:
        """Its part of a row of results."""
        return {"difference": self.difference, "ci95": list(self.interval), "p": self.p} | {
            "margin": self.margin, "is_not_worse": self.is_not_worse,
        }  # fmt: skip


def bootstrap_interval(
    values: Float[np.ndarray, "*seeds users"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, "users"] | None = None,
    *,
    level: float = 0.95,
    samples: int = SAMPLES,
) -> Interval:
    """Percentile bootstrap interval of the mean over seeds and users. Equal values give an interval of no width.

    Args:
        values: one value a user, such as ``gains_at(ranks, 10)``, or a row of them a seed.
        rng: draws seeds and users.
        clusters: number of each user's cluster, drawn as one; None draws every user alone.
        level: probability that the interval covers the mean.
        samples: bootstrap samples.

    Raises:
        ValueError: no values, or values that are not finite.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for crossed seeds and users the
        pigeonhole bootstrap of Owen, Annals of Applied Statistics 1, 2007, which is conservative. Few seeds are
        spread out by sqrt(n / (n - 1)), so that their variance is unbiased (Rao and Wu, JASA 83, 1988).
    """
    low, high = np.quantile(_bootstrap_means(values, rng, clusters, samples), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bootstrap_p(
    differences: Float[np.ndarray, "*seeds users"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, "users"] | None = None,
    *,
    samples: int = P_SAMPLES,
) -> float:
    """Two-sided p of a mean of 0: the level at which the percentile interval begins to hold 0.

    Args:
        differences: see ``values`` of ``bootstrap_interval``.
        rng: draws seeds and users.
        clusters: see ``bootstrap_interval``.
        samples: bootstrap samples; p is never below 2 / (samples + 1).
    """
    means = _bootstrap_means(differences, rng, clusters, samples)
    fewer = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + samples))


def sign_flip_p(
    differences: Float[np.ndarray, "users"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, "users"] | None = None,
    *,
    samples: int = P_SAMPLES,
) -> float:
    """Two-sided p of a paired permutation test: how often chance signs give a mean difference at least as large.

    Never below 1 / (samples + 1), since the observed signs are one of the possible ones; 1 where nothing differs.

    Args:
        differences: one a user.
        rng: draws the signs.
        clusters: number of each user's cluster, which has one sign; None gives every user their own.
        samples: random sign patterns.

    Raises:
        ValueError: no values, or values that are not finite.

    Source:
        Fisher's randomisation test; Smucker, Allan and Carterette, CIKM 2007, section 3.1.
    """
    values = _checked(differences)
    sums = values if clusters is None else np.bincount(clusters, values)
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    observed = abs(values.sum())
    # m clusters of one size s sum to s * (2 * Binomial(m, 1/2) - m) under chance signs.
    exceeding = 0
    for size in _chunks(samples, max(1, len(sizes))):
        flipped = (2 * rng.binomial(counts, 0.5, (size, len(counts))) - counts) @ sizes
        # The slack keeps sums that are equal but for their order of addition from counting as smaller.
        exceeding += int((np.abs(flipped) >= observed * (1 - 1e-12)).sum())
    return (1 + exceeding) / (1 + samples)


def compare(
    first: Float[np.ndarray, "*seeds users"],
    second: Float[np.ndarray, "*seeds users"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, "users"] | None = None,
    *,
    margin: float = MARGIN,
) -> Comparison:
    """Paired comparison of two systems over the same seeds and users: positive where ``first`` is better.

    The p of one seed is that of sign flips, exact for these models; of several, that of the interval's bootstrap.

    Args:
        first: one value a user, or a row of them a seed.
        second: the same of the other system, the same seeds and users in the same order.
        rng: draws seeds, users and signs.
        clusters: see ``bootstrap_interval``.
        margin: see ``Comparison``.

    Raises:
        ValueError: no values, different numbers of them, or values that are not finite.
    """
    if first.shape != second.shape:
        raise ValueError(f"got values {first.shape} and {second.shape}, expected the same users in the same order")
    differences = np.atleast_2d(_checked(first) - _checked(second))
    interval = bootstrap_interval(differences, rng, clusters)
    is_one = len(differences) == 1
    p = sign_flip_p(differences[0], rng, clusters) if is_one else bootstrap_p(differences, rng, clusters)
    return Comparison(float(differences.mean()), interval, p, margin)


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


def _bootstrap_means(
    values: Float[np.ndarray, "*seeds users"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, "users"] | None,
    samples: int,
) -> Float[np.ndarray, "samples"]:
    """Means over drawn seeds and drawn clusters of users."""
    by_seed = np.atleast_2d(_checked(values))
    totals = _cluster_totals(by_seed, clusters)
    # Clusters with the same totals are drawn together, as a count.
    patterns, counts = np.unique(totals, axis=0, return_counts=True)
    means = []
    for size in _chunks(samples, len(patterns)):
        drawn = rng.multinomial(len(totals), counts / len(totals), size) @ patterns
        means.append((drawn[:, :-1] / drawn[:, -1:] * _seed_weights(len(by_seed), rng, size)).sum(axis=1))
    return np.concatenate(means)


def _cluster_totals(
    by_seed: Float[np.ndarray, "seeds users"], clusters: Int[np.ndarray, "users"] | None
) -> Float[np.ndarray, "clusters seeds_and_one"]:
    """The sum of each cluster's values under each seed, and last the number of its users."""
    columns = [*by_seed, np.ones(by_seed.shape[1])]
    if clusters is None:
        return np.stack(columns, axis=1)
    _, own = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(own, column) for column in columns], axis=1)


def _seed_weights(num_seeds: int, rng: np.random.Generator, size: int) -> Float[np.ndarray, "samples seeds"]:
    """Weights of the seeds in each sample's mean; see ``bootstrap_interval``."""
    if num_seeds == 1:
        return np.ones((size, 1))
    drawn = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size) / num_seeds
    return 1 / num_seeds + np.sqrt(num_seeds / (num_seeds - 1)) * (drawn - 1 / num_seeds)


def _chunks(samples: int, width: int) -> list[int]:
    chunk = max(1, MAX_DRAWS // width)
    return [min(chunk, samples - start) for start in range(0, samples, chunk)]


def _checked(values: Float[np.ndarray, "*seeds users"]) -> Float[np.ndarray, "*seeds users"]:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"got {values.size} values, expected at least one, and every one a finite number")
    return values
