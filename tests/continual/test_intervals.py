"""Means over runs and items, by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from contrl.continual.intervals import Value, estimate, student_quantile


@pytest.mark.parametrize("freedom", [1, 2, 5, 11.3, 400, 1e9])
@pytest.mark.parametrize("p", [0.8, 0.975])
def test_the_quantile_is_scipys(p, freedom):
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), abs=1e-7)


def test_without_items_it_is_a_t_interval_over_runs():
    values = [0.5, 0.7, 0.6, 0.8]
    found = estimate([Value(v) for v in values])
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.65, low, high, 4))
    expected = (stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)) * stats.sem(values)
    assert found.detectable == pytest.approx(expected)


def test_items_that_all_runs_share_widen_it():
    """Equal runs have no spread, yet four items leave much open: contributions 0, 0, 1, 1 have variance 1/3."""
    items = {"task": {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}}
    found = estimate([Value(0.5, items)] * 3)
    half = stats.t.ppf(0.975, 3) * math.sqrt(1 / 12)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert found.basis == "over 3 runs (seed x order) and evaluation items"


def test_a_task_without_a_part_in_some_runs_counts_with_zero_there():
    """Two orders: each forgets the other task. The item means over runs are half the contributions."""
    one = Value(0.5, {"x": {"a": 0.0, "b": 1.0}})
    other = Value(0.5, {"y": {"a": 0.0, "b": 1.0}})
    found = estimate([one, other])
    # Each task: contributions 0 and 1/2, variance 1/8, of the mean 1/16; two tasks.
    assert found.high - 0.5 == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(2 / 16))


def test_different_items_leave_the_spread_between_runs_alone():
    found = estimate([Value(0.4, {"t": {"a": 0.0, "b": 0.8}}), Value(0.6, {"t": {"c": 0.4, "d": 0.8}})])
    assert found.basis == "over 2 runs (seed x order)"


def test_one_run_has_the_interval_of_its_items_and_says_so():
    assert estimate([Value(0.5, None, 0.1)]).high == pytest.approx(0.5 + 1.959964 * 0.1)
    assert "one run says nothing of other seeds" in estimate([Value(0.5, None, 0.1)]).basis
    assert (estimate([Value(0.5)]).low, estimate([]).value) == (None, None)


def test_without_any_spread_nothing_is_called_detectable():
    found = estimate([Value(1.0)] * 3)
    assert (found.low, found.high, found.detectable) == (1.0, 1.0, None)


def test_a_difference_pairs_items():
    """Both runs find c and d hard: their difference is 1 on b only, although each varies over all items."""
    one = Value(0.5, {"t": {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}})
    other = Value(0.25, {"t": {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}})
    assert one.minus(other) == Value(0.25, {"t": {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0}})
    assert one.minus(Value(0.25, {"t": {"z": 0.5}})).items is None


def test_its_intervals_cover_the_truth():
    """Runs and items both vary; the mean of 6 runs x 40 items misses 0 about as often as it may, never far more."""
    rng = np.random.default_rng(0)
    misses, trials = 0, 400
    for _ in range(trials):
        hard, values = rng.normal(0, 1, 40), []
        for run in rng.normal(0, 0.2, 6):
            scores = hard + run + rng.normal(0, 0.5, 40)
            values.append(Value(float(scores.mean()), {"t": {str(i): float(s) for i, s in enumerate(scores)}}))
        misses += estimate(values).outside_noise
    assert misses / trials < 0.075
