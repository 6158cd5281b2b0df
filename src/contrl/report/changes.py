"""Each cell of the matrix as a change, and each stage as gain against loss; with intervals, item by item."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from contrl.continual.matrix import Formula, Metric, Position, combination
from contrl.continual.results import Results

SINCE_START = Formula("change", "R[k, j] - R[0, j]", True, "difference from before training")
GAIN = Formula("gain", "mean over tasks j of stage k of (R[k, j] - R[k-1, j])", True, "plasticity of one stage")
RETAINED = Formula(
    "retained",
    "mean over tasks j trained before stage k and not in it of (R[k, j] - R[last visit of j, j])",
    True,
    "stability after one stage",
)


def since_start(results: Results, row: int, column: int) -> Metric | None:
    """Score in this row minus the score before training; None in the first row and where a score is missing."""
    if not 0 < row <= results.end:
        return None
    change = combination(results.numbers, {(row, column): 1.0, (0, column): -1.0}, "change", SINCE_START)
    return None if change.value is None else change


@dataclass(frozen=True)
class Balance:
    """What one stage won on its own tasks, and what earlier tasks have kept after it."""

    stage: int
    label: str
    gain: Metric
    retained: Metric


def balances(results: Results) -> list[Balance]:
    """Every stage after which both can be told: it has an earlier task, and all scores are there."""
    found = []
    for row in range(1, results.end + 1):
        own = results.numbers.columns_of(row)
        lasts = {j: results.numbers.last_visit(j, row) for j in range(len(results.tasks)) if j not in own}
        earlier = {j: last for j, last in lasts.items() if last is not None}
        if not own or not earlier:
            continue
        gain = _mean(results, [((row, j), (row - 1, j)) for j in own], GAIN)
        kept = _mean(results, [((row, j), (last, j)) for j, last in earlier.items()], RETAINED)
        if gain.value is not None and kept.value is not None:
            found.append(Balance(row, results.rows[row], gain, kept))
    return found


def start_average(results: Results) -> float | None:
    """Mean score before training; None when a task has none."""
    scores = [cell.value for cell in results.matrix[0] if cell is not None]
    return fmean(scores) if len(scores) == len(results.tasks) else None


def _mean(results: Results, pairs: list[tuple[Position, Position]], formula: Formula) -> Metric:
    weights: dict[Position, float] = {}
    for plus, minus in pairs:
        weights[plus] = weights.get(plus, 0.0) + 1 / len(pairs)
        weights[minus] = weights.get(minus, 0.0) - 1 / len(pairs)
    return combination(results.numbers, weights, formula.title, formula)
