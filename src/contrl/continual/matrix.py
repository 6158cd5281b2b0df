"""The results matrix as numbers, and 95 % confidence intervals for any weighted sum of its cells.

Row 0 is the model before training, row k the model after stage k; columns are tasks. Nearly every metric is a weighted
sum of cells, so one routine gives every value and every interval. A sum that needs a missing cell is None; a missing
score is never taken for 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum, isfinite, sqrt
from statistics import NormalDist, fmean, variance
from typing import TypeVar

import numpy as np

from contrl.continual.resampling import percentile_interval, resampled_means

Z95 = NormalDist().inv_cdf(0.975)

Key = TypeVar("Key", bound=Hashable)

Position = tuple[int, int]
"""(row, column) of the results matrix."""

PAIRED = "bootstrap, items paired across stages"
INDEPENDENT = "cells taken as independent"
MIXED = "items paired where they are recorded, other cells taken as independent"
UNKNOWN = "no interval"


@dataclass(frozen=True)
class Matrix:
    """The results matrix as numbers.

    Args:
        scores: ``scores[row][column]``, higher is better; None where nothing was measured.
        trained: the columns each row's stage trained: an index, a tuple of them, or ``()``; row 0 trained none.
        se: standard error of each cell, same shape; None where unknown.
        counts: number of evaluation items of each cell, same shape; None where unknown.
        items: (row, column) -> item id -> score, for the cells whose item scores are known.
        correct: (row, column) -> item id -> whether it was right, where that is known.

    Raises:
        ValueError: the shapes disagree, a column index is out of range, row 0 trains something, or a score is NaN.
    """

    scores: Sequence[Sequence[float | None]]
    trained: Sequence[int | tuple[int, ...]]
    se: Sequence[Sequence[float | None]] | None = None
    counts: Sequence[Sequence[int | None]] | None = None
    items: Mapping[Position, Mapping[str, float]] = field(default_factory=dict)
    correct: Mapping[Position, Mapping[str, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.trained) != len(self.scores):
            raise ValueError(f"{len(self.scores)} rows of scores but {len(self.trained)} entries in trained")
        for grid in (self.scores, self.se, self.counts):
            if grid is not None and [len(row) for row in grid] != [self.num_columns] * len(self.scores):
                raise ValueError("every row needs one entry for each column")
        if any(value is not None and not isfinite(value) for row in self.scores for value in row):
            raise ValueError("a missing score is None, never NaN or infinite")
        if self.scores and self.columns_of(0):
            raise ValueError("row 0 is the model before training: it trains no column")
        if any(
            not 0 <= column < self.num_columns for row in range(len(self.scores)) for column in self.columns_of(row)
        ):
            raise ValueError(f"trained names a column outside 0..{self.num_columns - 1}")

    @property
    def num_columns(self) -> int:
        """Number of tasks."""
        return len(self.scores[0]) if self.scores else 0

    @property
    def end(self) -> int:
        """The last row; -1 when there is none."""
        return len(self.scores) - 1

    def columns_of(self, row: int) -> tuple[int, ...]:
        """The columns trained by the stage of this row."""
        trained = self.trained[row]
        return (trained,) if isinstance(trained, int) else tuple(trained)

    def visits(self, column: int) -> list[int]:
        """The rows whose stage trained this column, in order; empty if none did."""
        return [row for row in range(len(self.scores)) if column in self.columns_of(row)]

    def last_visit(self, column: int, row: int) -> int | None:
        """The latest row up to ``row`` whose stage trained this column, or None: where it was just learnt."""
        return max((visit for visit in self.visits(column) if visit <= row), default=None)

    def draws(self, column: int, rows: Sequence[int]) -> np.ndarray | None:
        """``[RESAMPLES, len(rows)]`` scores of a task after these rows, its items drawn again, the same ones for all.

        None unless every row has the same items, at least two of them.
        """
        ids = {frozenset(self.items.get((row, column), ())) for row in rows}
        if len(ids) != 1 or len(next(iter(ids))) < 2:
            return None
        return np.stack([self._drawn(row, column) for row in rows], axis=1)

    def _drawn(self, row: int, column: int) -> np.ndarray:
        if (row, column) not in self._known_draws:
            same = [r for r in range(self.end + 1) if self._same_items(r, row, column)]
            keys = sorted(self.items[row, column])
            values = np.array([[self.items[r, column][key] for r in same] for key in keys])
            columns = resampled_means(values, [column]).T
            self._known_draws.update({(r, column): drawn for r, drawn in zip(same, columns, strict=True)})
        return self._known_draws[row, column]

    def _same_items(self, row: int, other: int, column: int) -> bool:
        return self.items.get((row, column), {}).keys() == self.items[other, column].keys()

    @cached_property
    def _known_draws(self) -> dict[Position, np.ndarray]:
        return {}


@dataclass(frozen=True)
class Formula:
    """What a metric is called and how it is computed. ``text`` is plain ASCII: it is printed beside every number.

    R[k, j] is the score on task j after stage k, R[0, j] the score before training, ``end`` the last stage;
    first(j) and last(j) are the first and the last stage that trained task j.
    """

    title: str
    text: str
    higher_is_better: bool
    source: str


@dataclass(frozen=True)
class Metric:
    """One number read off the matrix.

    Attributes:
        value: None when a cell it needs is missing or it is undefined (forgetting of a single task).
        low, high: the 95 % confidence interval over evaluation items; None when it cannot be told.
        n: number of evaluation items behind it, summed over the tasks it uses; None when unknown.
        basis: how the interval was obtained, in words.
        bias: by how much choosing a cell by its value moves the number, estimated from the bootstrap; None for sums.
        weights: the weighted sum of cells that the value is; None for a maximum.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    formula: str
    higher_is_better: bool
    basis: str = UNKNOWN
    weights: Mapping[Position, float] | None = field(default=None, repr=False, compare=False)
    bias: float | None = None

    @property
    def outside_noise(self) -> bool:
        """Whether the interval excludes 0; False when there is no interval."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


def combination(matrix: Matrix, weights: Mapping[Position, float], name: str, formula: Formula) -> Metric:
    """Σ weight · score over cells, with a 95 % interval over evaluation items by the paired bootstrap.

    Tasks are independent. Within a task an item is drawn with its scores of all stages, because every stage answers the
    same items. Where the item scores of some cell are not known: a normal approximation, with the variance of each
    item's weighted sum (Miller 2024, arXiv:2411.00640) and, for the rest, the cells' standard errors as if independent.
    """
    values = [(weight, matrix.scores[row][column]) for (row, column), weight in weights.items()]
    known = [weight * score for weight, score in values if score is not None]
    if not known or len(known) < len(values):
        return Metric(name, None, None, None, None, formula.text, formula.higher_is_better, UNKNOWN, weights)
    value, draws = fsum(known), _draws(matrix, weights)
    low, high, basis = (None, None, PAIRED) if draws is None else (*percentile_interval(draws), PAIRED)
    if draws is None:
        se, basis = _standard_error(matrix, weights)
        low, high = (None, None) if se is None else (value - Z95 * se, value + Z95 * se)
    count = count_items(matrix, list(weights))
    return Metric(name, value, low, high, count, formula.text, formula.higher_is_better, basis, weights)


def contributions(matrix: Matrix, weights: Mapping[Position, float]) -> dict[int, dict[str, float]] | None:
    """column -> item id -> weighted sum of that item's scores over rows; None if an item score is not known.

    The metric is the sum over columns of the mean over items; ``paired_difference`` compares two runs by these.
    """
    found = {column: _column_items(matrix, weights, column) for column in sorted({column for _, column in weights})}
    complete = {column: items for column, items in found.items() if items is not None}
    return complete if len(complete) == len(found) else None


def paired_difference(items_a: Mapping[Key, Mapping[str, float]], items_b: Mapping[Key, Mapping[str, float]]) -> Metric:
    """Metric of run a minus metric of run b, with a 95 % interval.

    Args:
        items_a, items_b: task -> item id -> contribution, as ``contributions`` gives them, with the same task keys
            on both sides. Tasks that hold the same items in both runs are compared item by item; others as two
            independent samples.

    Raises:
        ValueError: the runs do not have the same tasks, or a task has no items.
    """
    if set(items_a) != set(items_b):
        raise ValueError(f"the runs have different tasks: {sorted(map(str, set(items_a) ^ set(items_b)))}")
    if any(not items for side in (items_a, items_b) for items in side.values()):
        raise ValueError("a task without items cannot be compared")
    value = fsum(fmean(items_a[task].values()) - fmean(items_b[task].values()) for task in items_a)
    terms: list[float | None] = []
    bases: set[str] = set()
    for task, items in items_a.items():
        other, paired = items_b[task], items.keys() == items_b[task].keys()
        bases.add(PAIRED if paired else INDEPENDENT)
        samples = [[items[key] - other[key] for key in items]] if paired else [[*items.values()], [*other.values()]]
        terms.extend(_variance_of_mean(sample) for sample in samples)
    se = _root_sum(terms)
    low, high = (None, None) if se is None else (value - Z95 * se, value + Z95 * se)
    count = sum(len(items_a[task].keys() | items_b[task].keys()) for task in items_a)
    basis = "items paired between runs" if bases == {PAIRED} else "tasks with different items taken as independent"
    return Metric("difference", value, low, high, count, "metric of run a - metric of run b", True, basis)


def proportion_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of n items: unlike ± 1.96 se it has a width at 0 and at 1."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _draws(matrix: Matrix, weights: Mapping[Position, float]) -> np.ndarray | None:
    """``[RESAMPLES]`` of the weighted sum; None unless every task has the same items in all its cells."""
    total = None
    for column in sorted({column for _, column in weights}):
        rows = sorted(row for row, j in weights if j == column)
        draws = matrix.draws(column, rows)
        if draws is None:
            return None
        part = draws @ np.array([weights[row, column] for row in rows])
        total = part if total is None else total + part
    return total


def _column_items(matrix: Matrix, weights: Mapping[Position, float], column: int) -> dict[str, float] | None:
    """item id -> weighted sum over the column's rows; None unless every row holds the same items."""
    rows = {row: weight for (row, j), weight in weights.items() if j == column}
    scores = {row: matrix.items.get((row, column), {}) for row in rows}
    ids = next(iter(scores.values())).keys()
    if not ids or any(items.keys() != ids for items in scores.values()):
        return None
    return {key: fsum(weight * scores[row][key] for row, weight in rows.items()) for key in ids}


def _standard_error(matrix: Matrix, weights: Mapping[Position, float]) -> tuple[float | None, str]:
    """Standard error of Σ weight · score and how it was obtained; None when neither items nor cell errors are known."""
    terms: list[float | None] = []
    bases: set[str] = set()
    for column in {column for _, column in weights}:
        items = _column_items(matrix, weights, column)
        bases.add(INDEPENDENT if items is None else PAIRED)
        if items is not None:
            terms.append(_variance_of_mean(list(items.values())))
            continue
        for (row, j), weight in weights.items():
            se = matrix.se[row][column] if matrix.se is not None and j == column else None
            if j == column:
                terms.append(None if se is None else (weight * se) ** 2)
    total = _root_sum(terms)
    if total is None:
        return None, UNKNOWN
    return total, bases.pop() if len(bases) == 1 else MIXED


def _variance_of_mean(sample: Sequence[float]) -> float | None:
    """Estimated variance of the sample's mean; None for fewer than two items."""
    return variance(sample) / len(sample) if len(sample) > 1 else None


def _root_sum(terms: Sequence[float | None]) -> float | None:
    known = [term for term in terms if term is not None]
    return sqrt(fsum(known)) if terms and len(known) == len(terms) else None


def count_items(matrix: Matrix, cells: Sequence[Position]) -> int | None:
    """Evaluation items behind these cells: the smallest count of each column, summed; None if one is unknown."""
    counts: dict[int, int] = {}
    for row, column in cells:
        count = matrix.counts[row][column] if matrix.counts is not None else len(matrix.items.get((row, column), ()))
        if not count:
            return None
        counts[column] = min(count, counts.get(column, count))
    return sum(counts.values())
