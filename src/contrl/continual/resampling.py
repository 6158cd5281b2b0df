"""The paired bootstrap over evaluation items: how a number would come out with other items of the same kind.

Items are drawn again with replacement, an item with its scores of all stages at once. What is drawn is a function of
the number of items and a key, so equal runs have equal intervals, and two calls for one task draw the same items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
"""Samples behind an interval; its ends then move by about 3 % of its half width from seed to seed."""
_NUMBERS_AT_ONCE = 2**22


def resampled_means(values: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """``[RESAMPLES, K]`` means of columns of ``[N, K]`` values over N rows drawn with replacement.

    Args:
        key: whole numbers from 0 that name the draw.
    """
    number = len(values)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([number, *key])))
    means, size = [], max(1, _NUMBERS_AT_ONCE // number)
    for start in range(0, RESAMPLES, size):
        samples = min(size, RESAMPLES - start)
        drawn = generator.integers(0, number, (samples, number)) + number * np.arange(samples)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=samples * number).reshape(samples, number)
        # einsum and not a matrix product: the same sums on any number of threads.
        means.append(np.einsum("sn,nk->sk", counts, values) / number)
    return np.concatenate(means)


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws (Efron & Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def reflected_interval(value: float, draws: np.ndarray) -> tuple[float, float]:
    """The basic bootstrap interval ``[2 v - q97.5, 2 v - q2.5]`` (Davison & Hinkley 1997, section 5.2).

    For maxima and minima of noisy scores, whose draws lie as far beyond the value as the value beyond the truth: the
    reflection takes that bias off the interval.
    """
    low, high = percentile_interval(draws)
    return 2 * value - high, 2 * value - low
