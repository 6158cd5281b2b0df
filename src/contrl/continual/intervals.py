"""Means over runs with 95 % intervals: what seeds, orders and evaluation items leave open, and what n can show.

Runs of one arm differ in seed and order; their evaluation items are usually the same. So two things vary and both
count: runs (t over the blocks seed x order) and items (each averaged over the runs that answered it). The two
variances are added and the degrees of freedom are Satterthwaite's; nothing is random. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, lgamma, log, sqrt
from statistics import fmean, variance

LEVEL, POWER = 0.95, 0.80

Items = Mapping[str, Mapping[str, float]]
"""Task -> item id -> contribution; a value is the sum over tasks of the mean over items."""


@dataclass(frozen=True)
class Value:
    """A number of one run (or a difference of two), with the contributions of its items where they are known.

    Attributes:
        value: the number.
        items: what each item contributes; None where that is not recorded, or the number is no weighted sum.
        se: its standard error over items, used where there is only one run; None when unknown.
    """

    value: float
    items: Items | None = None
    se: float | None = None

    def minus(self, other: Value) -> Value:
        """The difference, item by item where both runs answered the same items."""
        value, se = self.value - other.value, _add(self.se, other.se)
        if self.items is None or other.items is None:
            return Value(value, None, se)
        items = {}
        for task in {**self.items, **other.items}:
            here, there = self.items.get(task), other.items.get(task)
            if here is not None and there is not None and here.keys() != there.keys():
                return Value(value, None, se)
            keys = (here if here is not None else there or {}).keys()
            items[task] = {key: (here or {}).get(key, 0.0) - (there or {}).get(key, 0.0) for key in keys}
        return Value(value, items, se)


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        value: the mean; None without any run.
        low, high: its 95 % interval; None when nothing is known of the spread.
        n: number of runs (blocks seed x order) behind it.
        detectable: the smallest true difference from 0 that n runs find with 80 % power at the 5 % level; of a
            difference between arms this is the smallest detectable difference. None when the spread is unknown or 0.
        basis: what the interval is over, in words.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    detectable: float | None = None
    basis: str = "no interval"

    @property
    def outside_noise(self) -> bool:
        """Whether the interval excludes 0; False when there is no interval."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


def estimate(values: Sequence[Value]) -> Estimate:
    """The mean of one number over runs, one ``Value`` for each block of seed and order."""
    if not values:
        return Estimate(None)
    mean, n = fmean(value.value for value in values), len(values)
    between = variance([value.value for value in values]) / n if n > 1 else None
    within = _items_variance(values)
    if within is None and n == 1 and values[0].se is not None:
        within = (values[0].se ** 2, inf)
    parts = [(between, float(n - 1))] if between is not None else []
    parts += [within] if within is not None else []
    if not parts:
        return Estimate(mean, n=n)
    total = sum(part for part, _ in parts)
    freedom = _satterthwaite(parts)
    se = sqrt(total)
    half = student_quantile((1 + LEVEL) / 2, freedom) * se
    detectable = half + student_quantile(POWER, freedom) * se
    words = [f"{n} runs (seed x order)"] if between is not None else []
    words += ["evaluation items"] if within is not None else []
    basis = f"over {' and '.join(words)}{'' if n > 1 else '; one run says nothing of other seeds'}"
    return Estimate(mean, mean - half, mean + half, n, detectable or None, basis)


def student_quantile(p: float, freedom: float) -> float:
    """The p-quantile of Student's t (0.5 <= p < 1), by bisection of its distribution function, to 1e-9."""
    low, high = 0.0, 2.0
    while _student_cdf(high, freedom) < p:
        low, high = high, high * 2
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _items_variance(values: Sequence[Value]) -> tuple[float, float] | None:
    """Variance of the mean over runs that comes from the items, and its degrees of freedom.

    Each item's contributions are averaged over all runs first (a task without a part in a run contributes 0 to it).
    None when items are not known or differ from run to run: then the spread between runs holds what they add.
    """
    known = [value.items for value in values if value.items is not None]
    if len(known) < len(values):
        return None
    total, least = 0.0, inf
    for task in {task: None for items in known for task in items}:
        having = [items[task] for items in known if task in items]
        keys = having[0].keys()
        if len(keys) < 2 or any(items.keys() != keys for items in having):
            return None
        means = [sum(items[key] for items in having) / len(values) for key in keys]
        total += variance(means) / len(keys)
        least = min(least, float(len(keys) - 1))
    return (total, least) if known and least < inf else None


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independent variance estimates."""
    total = sum(part for part, _ in parts)
    below = sum(part**2 / freedom for part, freedom in parts)
    return total**2 / below if below > 0 else max(freedom for _, freedom in parts)


def _add(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else sqrt(first**2 + second**2)


def _student_cdf(t: float, freedom: float) -> float:
    """P(T <= t) for t >= 0; beyond 1e7 degrees of freedom the normal distribution's."""
    if freedom > 1e7:
        from statistics import NormalDist

        return NormalDist().cdf(t)
    return 1 - _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b): Abramowitz & Stegun 26.5.8 by Lentz's method."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1 - x)) / a
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(1000):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2:
            term = -(a + half) * (a + b + half) * x / ((a + step - 1) * (a + step))
        else:
            term = half * (b - half) * x / ((a + step - 1) * (a + step))
        d = 1 / (1 + term * d or 1e-300)
        c = 1 + term / (c or 1e-300)
        fraction *= c * d
        if step and abs(c * d - 1) < 1e-14:
            break
    return front * (fraction - 1)
