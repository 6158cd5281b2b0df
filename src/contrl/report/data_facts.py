"""What the run folder knows of its data: rows, lengths in tokens, what was cut, left out, repeated or shared.

Written into run.json when the rows are prepared (``data_facts``); an older run has the row counts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contrl.continual.results import Results

QUANTILES = ("least", "p10", "median", "p90", "most")
SIDES = ("prompt", "completion")


@dataclass(frozen=True)
class TaskData:
    """One task's rows; None where nothing was recorded.

    Attributes:
        train, eval: rows.
        lengths: "prompt" and "completion" -> tokens at ``QUANTILES`` of the train rows.
        cut: train rows longer than the method's limit, cut at their end.
        left_out: rows that could not be used, or whose prompt was too long.
        repeated: train rows that are equal to an earlier one of the task.
        shared: eval rows whose prompt is also a train prompt of this task.
    """

    task: str
    train: int | None
    eval: int | None
    lengths: Mapping[str, tuple[float, ...]]
    cut: int | None
    left_out: int | None
    repeated: int | None
    shared: int | None


def read_data(results: Results) -> list[TaskData]:
    """Every task in the order of the matrix; empty when run.json says nothing of its data."""
    counts, facts = (_mapping(results.run.get(name)) for name in ("data", "data_facts"))
    found = []
    for task in results.tasks:
        rows, more = _mapping(counts.get(task)), _mapping(facts.get(task))
        if not rows and not more:
            continue
        lengths = {
            side: tuple(float(values[name]) for name in QUANTILES)
            for side in SIDES
            if (values := _mapping(_mapping(more.get("tokens")).get(side)))
            and all(name in values for name in QUANTILES)
        }
        numbers = (more.get(name) for name in ("cut", "left_out", "repeated", "shared"))
        found.append(TaskData(task, rows.get("train"), rows.get("eval"), lengths, *numbers))
    return found


def data_flags(data: list[TaskData]) -> list[str]:
    """What a reader must know of the data."""
    flags = []
    for rows in data:
        if rows.cut and rows.train and rows.cut > 0.05 * rows.train:
            flags.append(f"{rows.task}: {rows.cut} of {rows.train} train rows were cut at the length limit")
        if rows.shared:
            flags.append(f"{rows.task}: {rows.shared} of {rows.eval} eval rows ask what a train row asks")
    return flags


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
