"""Metrics of continual learning: pure formulas on the results matrix, each printed with its name and its source.

Most are weighted sums of cells; the functions here say which cells and which weights, ``matrix`` does the arithmetic
and the interval. A maximum, a minimum and flips of single items are the exceptions. Libraries use the same word for
different formulas, so a number never travels without its formula. docs/metrics.md explains them, with the choices made
for tasks that come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np

from contrl.continual.flips import flips_of
from contrl.continual.matrix import (
    PAIRED,
    UNKNOWN,
    Formula,
    Matrix,
    Metric,
    Position,
    combination,
    contributions,
    count_items,
    paired_difference,
    proportion_interval,
)
from contrl.continual.resampling import percentile_interval, reflected_interval

__all__ = [
    "FORMULAS",
    "METRICS",
    "Formula",
    "Matrix",
    "Metric",
    "Position",
    "average",
    "average_over_time",
    "backward_transfer",
    "combination",
    "compute",
    "contributions",
    "forgetting",
    "forgetting_max",
    "forward_transfer",
    "gained",
    "learning_accuracy",
    "lost",
    "min_after_learned",
    "own_stage_gain",
    "paired_difference",
    "proportion_interval",
]

_GEM = "Lopez-Paz & Ranzato 2017 (GEM), arXiv:1706.08840"
_RWALK = "Chaudhry et al. 2018 (Riemannian Walk), arXiv:1801.10112"

FORMULAS: dict[str, Formula] = {
    "average": Formula("average", "mean over tasks j of R[end, j]", True, f"{_GEM}: ACC"),
    "forgetting": Formula(
        "forgetting",
        "mean over tasks j not trained in the last stage of (R[last(j), j] - R[end, j])",
        False,
        "just-learned minus final; equals -BWT when no task comes back",
    ),
    "bwt": Formula(
        "BWT",
        "mean over tasks j first trained before the last stage of (R[end, j] - R[first(j), j])",
        True,
        f"{_GEM}: backward transfer",
    ),
    "own_stage_gain": Formula(
        "own-stage gain",
        "mean over visits (stage k trains task j) of (R[k, j] - R[k-1, j])",
        True,
        "what a stage taught of its own task",
    ),
    "learning_accuracy": Formula(
        "learning accuracy",
        "mean over visits (stage k trains task j) of R[k, j]",
        True,
        "Riemer et al. 2019 (MER), arXiv:1810.11910: LA",
    ),
    "fwt": Formula(
        "FWT",
        "mean over tasks j first trained after stage 1 of (R[first(j)-1, j] - R[0, j])",
        True,
        f"{_GEM}: forward transfer, with the start of the run as its baseline",
    ),
    "average_over_time": Formula(
        "average over time",
        "mean over stages k of (mean over tasks j trained in stages 1..k of R[k, j])",
        True,
        "Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725: average incremental accuracy",
    ),
    "forgetting_max": Formula(
        "forgetting (max)",
        "mean over tasks j not trained in the last stage of (max over stages 1 <= k < end of R[k, j] - R[end, j])",
        False,
        f"{_RWALK}: forgetting; biased upwards, because a maximum of noisy scores is",
    ),
    "min_after_learned": Formula(
        "min after learned",
        "mean over tasks j first trained before the last stage of (min over stages first(j) < k <= end of R[k, j])",
        True,
        "De Lange et al. 2023 (stability gap), arXiv:2205.13452: average minimum accuracy, at the ends of stages",
    ),
    "lost": Formula(
        "lost (1->0)",
        "mean over tasks j not trained in the last stage of "
        "(share of items right after stage last(j) and wrong after stage end)",
        False,
        "what was right when it was last trained and is wrong now; lost - gained is the forgetting of the share right",
    ),
    "gained": Formula(
        "gained (0->1)",
        "mean over tasks j not trained in the last stage of "
        "(share of items wrong after stage last(j) and right after stage end)",
        True,
        "what was wrong when it was last trained and is right now",
    ),
}


def compute(matrix: Matrix) -> dict[str, Metric]:
    """Every metric of ``FORMULAS``, in that order."""
    return {name: METRICS[name](matrix) for name in FORMULAS}


def average(matrix: Matrix) -> Metric:
    """Final average ACC = 1/T · Σ_j R[end, j] over all T tasks, trained or not. GEM, arXiv:1706.08840."""
    tasks = range(matrix.num_columns)
    return _named(matrix, "average", [((matrix.end, j), 1 / len(tasks)) for j in tasks])


def average_over_time(matrix: Matrix) -> Metric:
    """AP = 1/K · Σ_k 1/|S_k| · Σ_{j ∈ S_k} R[k, j], S_k the tasks trained in stages 1..k. iCaRL, arXiv:1611.07725.

    Stages before anything was trained do not count.
    """
    seen = [sorted({j for row in range(k + 1) for j in matrix.columns_of(row)}) for k in range(matrix.end + 1)]
    stages = [k for k, tasks in enumerate(seen) if tasks]
    return _named(
        matrix, "average_over_time", [((k, j), 1 / len(stages) / len(seen[k])) for k in stages for j in seen[k]]
    )


def backward_transfer(matrix: Matrix) -> Metric:
    """BWT = 1/|P| · Σ_{j ∈ P} (R[end, j] - R[first(j), j]), P = tasks with first(j) < end. GEM, arXiv:1706.08840.

    With rounds this counts from the FIRST visit: everything later did to the task, its own later visits included.
    Negative means forgetting.
    """
    tasks = [(j, first) for j, first in _firsts(matrix) if first < matrix.end]
    return _named(matrix, "bwt", _differences([((matrix.end, j), (first, j)) for j, first in tasks]))


def forgetting(matrix: Matrix) -> Metric:
    """Forgetting = 1/|P| · Σ_{j ∈ P} (R[last(j), j] - R[end, j]), P = tasks with last(j) < end. The headline.

    With rounds this counts from the LAST visit: what the model could do when the task was last taught and cannot do
    at the end. Unlike the maximum-based form it selects no cell by its value, so noise does not push it upwards.
    """
    return _named(matrix, "forgetting", _differences([((last, j), (matrix.end, j)) for j, last in _left(matrix)]))


def forgetting_max(matrix: Matrix) -> Metric:
    """F = 1/|P| · Σ_{j ∈ P} (max_{1 <= k < end} R[k, j] - R[end, j]), P as in forgetting. arXiv:1801.10112.

    The maximum of noisy scores is biased upwards (by about 0.03 at 200 items and four stages); ``bias`` estimates by
    how much, and the interval has it taken off.
    """
    spans = {j: range(1, matrix.end) for j, _ in _left(matrix)}
    return _extreme(matrix, "forgetting_max", spans, highest=True)


def min_after_learned(matrix: Matrix) -> Metric:
    """1/|P| · Σ_{j ∈ P} min_{first(j) < k <= end} R[k, j], P = tasks with first(j) < end: how deep tasks ever fell."""
    spans = {j: range(first + 1, matrix.end + 1) for j, first in _firsts(matrix) if first < matrix.end}
    return _extreme(matrix, "min_after_learned", spans, highest=False)


def lost(matrix: Matrix) -> Metric:
    """Mean over tasks of the share of items right when just learnt and wrong at the end."""
    return _flipped(matrix, "lost")


def gained(matrix: Matrix) -> Metric:
    """Mean over tasks of the share of items wrong when just learnt and right at the end."""
    return _flipped(matrix, "gained")


def forward_transfer(matrix: Matrix) -> Metric:
    """FWT = 1/|Q| · Σ_{j ∈ Q} (R[first(j)-1, j] - R[0, j]), Q = tasks with first(j) >= 2. GEM, arXiv:1706.08840.

    GEM's baseline is a randomly initialised model; for language models it is the model the run started from.
    """
    tasks = [(j, first) for j, first in _firsts(matrix) if first >= 2]
    return _named(matrix, "fwt", _differences([((first - 1, j), (0, j)) for j, first in tasks]))


def learning_accuracy(matrix: Matrix) -> Metric:
    """LA = mean of R[k, j] over all visits (stage k trains task j). MER, arXiv:1810.11910."""
    visits = _visits(matrix)
    return _named(matrix, "learning_accuracy", [(visit, 1 / len(visits)) for visit in visits])


def own_stage_gain(matrix: Matrix) -> Metric:
    """Mean of R[k, j] - R[k-1, j] over all visits (stage k trains task j): what a stage taught of its own task."""
    return _named(matrix, "own_stage_gain", _differences([((k, j), (k - 1, j)) for k, j in _visits(matrix)]))


METRICS: dict[str, Callable[[Matrix], Metric]] = {
    "average": average,
    "forgetting": forgetting,
    "bwt": backward_transfer,
    "own_stage_gain": own_stage_gain,
    "learning_accuracy": learning_accuracy,
    "fwt": forward_transfer,
    "average_over_time": average_over_time,
    "forgetting_max": forgetting_max,
    "min_after_learned": min_after_learned,
    "lost": lost,
    "gained": gained,
}


def _named(matrix: Matrix, name: str, terms: Sequence[tuple[Position, float]]) -> Metric:
    weights: dict[Position, float] = {}
    for cell, weight in terms:
        weights[cell] = weights.get(cell, 0.0) + weight
    return combination(matrix, weights, name, FORMULAS[name])


def _extreme(matrix: Matrix, name: str, spans: Mapping[int, range], *, highest: bool) -> Metric:
    """Mean over tasks of the lowest score in a span of rows, or of the highest one minus the final one."""
    formula, pick = FORMULAS[name], (np.max if highest else np.min)
    cells = [(k, j) for j, rows in spans.items() for k in {*rows, matrix.end}]
    if not cells or any(matrix.scores[k][j] is None for k, j in cells):
        return Metric(name, None, None, None, None, formula.text, formula.higher_is_better)

    def of(scores: np.ndarray) -> np.ndarray:
        """[B, rows of the span, then the last one] -> [B]"""
        return pick(scores[:, :-1], axis=1) - (scores[:, -1] if highest else 0.0)

    rows = {j: [*span, matrix.end] for j, span in spans.items()}
    whole = [of(np.array([[matrix.scores[k][j] for k in rows[j]]], dtype=float)) for j in rows]
    value, low, high, bias = float(np.mean(whole)), None, None, None
    drawn = [matrix.draws(j, rows[j]) for j in rows]
    known = [of(draws) for draws in drawn if draws is not None]
    if len(known) == len(drawn):
        draws = np.mean(known, axis=0)
        bias, (low, high) = float(draws.mean() - value), reflected_interval(value, draws)
    basis = UNKNOWN if low is None else f"{PAIRED}, reflected"
    count = count_items(matrix, cells)
    return Metric(name, value, low, high, count, formula.text, formula.higher_is_better, basis, None, bias)


def _flipped(matrix: Matrix, name: str) -> Metric:
    formula = FORMULAS[name]
    found = [flips_of(matrix, j, last, matrix.end) for j, last in _left(matrix)]
    known = [flips for flips in found if flips is not None]
    if not known or len(known) < len(found):
        return Metric(name, None, None, None, None, formula.text, formula.higher_is_better)
    shares = [flips.lost if name == "lost" else flips.gained for flips in known]
    draws = [flips.draws(name) for flips in known]
    low, high = (None, None)
    if all(each is not None for each in draws):
        low, high = percentile_interval(np.mean([each for each in draws if each is not None], axis=0))
    basis, count = UNKNOWN if low is None else PAIRED, sum(flips.n for flips in known)
    return Metric(name, fmean(shares), low, high, count, formula.text, formula.higher_is_better, basis)


def _differences(pairs: Sequence[tuple[Position, Position]]) -> list[tuple[Position, float]]:
    """The mean of (first cell - second cell) as weighted cells."""
    share = 1 / len(pairs) if pairs else 0.0
    return [term for plus, minus in pairs for term in ((plus, share), (minus, -share))]


def _visits(matrix: Matrix) -> list[Position]:
    """(row, column) of every visit of a stage to a task."""
    return [(k, j) for k in range(matrix.end + 1) for j in matrix.columns_of(k)]


def _firsts(matrix: Matrix) -> list[Position]:
    """(column, first visit) of the tasks that were trained."""
    return [(j, visits[0]) for j in range(matrix.num_columns) if (visits := matrix.visits(j))]


def _left(matrix: Matrix) -> list[Position]:
    """(column, last visit) of the tasks that were trained, but not in the last stage: those that can be forgotten."""
    lasts = ((j, matrix.last_visit(j, matrix.end)) for j in range(matrix.num_columns))
    return [(j, last) for j, last in lasts if last is not None and last < matrix.end]
