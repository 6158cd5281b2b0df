"""One cell of the results matrix: a recorded score, and the scores and the bit of every item behind it.

An item file is believed only where it agrees with the recorded score; what cannot be used is a note, never an error,
because a matrix without pairing is still a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isclose, isfinite, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from contrl.continual.matrix import Z95, proportion_interval

CORRECTNESS = ("success", "accuracy")  # metrics whose items are the `correct` column of eval/*.parquet, not `score`


@dataclass(frozen=True)
class Cell:
    """One score: mean over ``n`` evaluation items, with its standard error; n and se are None when not recorded."""

    value: float
    se: float | None = None
    n: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval: Wilson's when the score is a share of right answers, else value ± 1.96 se."""
        if self.n and 0.0 <= self.value <= 1.0:
            binomial = sqrt(self.value * (1 - self.value) / self.n)
            # Among scores within 0..1 a 0/1 score has the largest variance there is, so this se tells it apart. The
            # slack is for writers that divide by n - 1.
            if self.se is not None and isclose(self.se, binomial, rel_tol=1 / self.n + 1e-3, abs_tol=1e-9):
                return proportion_interval(self.value, self.n)
        return None if self.se is None else (self.value - Z95 * self.se, self.value + Z95 * self.se)


@dataclass(frozen=True)
class Items:
    """What the item file of a cell holds: item id -> score, and -> whether it was right, where that is known."""

    scores: Mapping[str, float] = field(default_factory=dict)
    correct: Mapping[str, bool] = field(default_factory=dict)


def eval_file(folder: Path, stage: int, task: str) -> Path:
    """Where the item scores of a task after a stage lie (stage 0: before training)."""
    return folder / "eval" / f"{stage}-{task}.parquet"


def read_cell(record: Mapping[str, Any], notes: list[str]) -> Cell | None:
    """The record as a cell; None for a null score, and, with a note, for one that is not a finite number."""
    value, se, n = record.get("value"), record.get("se"), record.get("n")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        notes.append(f"the score of {record['task']} after stage {record['stage']} is {value!r}: taken as not measured")
        return None
    known = isinstance(se, int | float) and isfinite(se)
    return Cell(
        float(value), float(se) if known and se is not None else None, n if isinstance(n, int) and n > 0 else None
    )


def read_items(path: Path, metric: str, cell: Cell, notes: list[str]) -> Items:
    """The items of one cell; no scores when they are not there or their mean is not the recorded score.

    An item without a score is left out, as it was left out of the recorded mean. A metric that was measured beside the
    score has a column of its name.
    """
    if not path.is_file():
        return Items()
    import pyarrow.parquet as parquet

    try:
        known = parquet.read_schema(path).names
        own = [metric] if metric in known else ["score"]
        rows = parquet.read_table(path, columns=["id", "correct", *own]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these two
        notes.append(f"{path.name} cannot be read ({str(error).splitlines()[0]}): its items are not paired")
        return Items()
    scored = [row for row in rows if row[own[0]] is not None]
    correct = {str(row["id"]): bool(row["correct"]) for row in scored if row["correct"] is not None}
    for name in ("correct", "score") if metric in CORRECTNESS and own == ["score"] else own:
        scores = {str(row["id"]): float(row[name]) for row in scored if row[name] is not None}
        mean = fmean(scores.values()) if scores else None
        if mean is not None and len(scores) == len(scored) and isclose(mean, cell.value, rel_tol=1e-4, abs_tol=1e-4):
            return Items(scores, correct)
    notes.append(f"the items of {path.name} do not average to the recorded {metric}: they are not paired")
    return Items()
