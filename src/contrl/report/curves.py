"""Training curves out of metrics.jsonl: one curve per recorded name, stages end to end on one axis of steps.

Steps count within a stage, so each stage is shifted by the steps before it. Long curves are thinned by averaging
neighbours, so that a page stays small and a spike still shows in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from contrl.continual.results import read_records

MAX_POINTS = 300
JUDGED = "eval/"
"""Begins the names of what is measured between stages: values of the results matrix's rows, not of training steps."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Segment:
    """One stage's part of a curve: (step on the common axis, value) in order."""

    stage: int
    task: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """One recorded name over the whole run."""

    name: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Training:
    """All curves of a run, by name.

    Attributes:
        starts: stage -> first step of the stage on the common axis, for the boundaries between tasks.
        total: number of steps so far.
        not_finite: name -> how many of its values were NaN or infinite (and are left out); the log has null for them.
        last_steps: stage -> its last recorded step.
        logged: name -> stage -> every (step of the stage, value), in order and not thinned.
        judged: (stage, task, name) -> value of what was measured between stages, ``eval/`` taken off the name.
    """

    curves: tuple[Curve, ...]
    starts: dict[int, int]
    total: int
    not_finite: dict[str, int] = field(default_factory=dict)
    last_steps: dict[int, int] = field(default_factory=dict)
    logged: Mapping[str, Mapping[int, Points]] = field(default_factory=dict)
    judged: Mapping[tuple[int, str, str], float] = field(default_factory=dict)

    def values(self, name: str, stage: int) -> list[float]:
        """Every logged value of a name in a stage."""
        return [value for _, value in self.logged.get(name, {}).get(stage, ())]


def read_training(folder: Path) -> Training:
    """Read metrics.jsonl; a run without one has no curves. Raises UserError on a damaged log."""
    records = read_records(folder / "metrics.jsonl", key=("stage", "step", "task", "name"))
    lengths: dict[int, int] = {}
    values: dict[str, dict[tuple[int, str], list[tuple[int, float]]]] = {}
    not_finite: dict[str, int] = {}
    judged: dict[tuple[int, str, str], float] = {}
    for record in records:
        stage, step, task, name = record["stage"], record["step"], str(record["task"]), str(record["name"])
        value = record.get("value")
        if not isinstance(stage, int) or not isinstance(step, int):
            continue  # not a step of a stage of the sequence
        number = finite(value)
        if name.startswith(JUDGED):
            judged.update({} if number is None else {(stage, task, name.removeprefix(JUDGED)): number})
            continue
        lengths[stage] = max(step, lengths.get(stage, 0))
        if number is not None:
            values.setdefault(name, {}).setdefault((stage, task), []).append((step, number))
        elif value is None or isinstance(value, float):
            not_finite[name] = not_finite.get(name, 0) + 1
    starts, total = {}, 0
    for stage in sorted(lengths):
        starts[stage] = total
        total += lengths[stage]
    curves = tuple(_curve(name, series, starts) for name, series in sorted(values.items()))
    return Training(curves, starts, total, not_finite, lengths, _by_stage(values), judged)


def finite(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if is_number else None


def thin(points: Points, limit: int) -> tuple[tuple[float, float], ...]:
    """At most ``limit`` points, each the mean of equally many neighbours (the last may be of fewer)."""
    size = -(-len(points) // limit)
    buckets = [points[start : start + size] for start in range(0, len(points), size)] if size > 1 else []
    return tuple((fmean(x for x, _ in part), fmean(y for _, y in part)) for part in buckets) or tuple(points)


def _curve(name: str, series: Mapping[tuple[int, str], list[tuple[int, float]]], starts: Mapping[int, int]) -> Curve:
    limit = max(2, MAX_POINTS // max(1, len(starts)))
    return Curve(
        name,
        tuple(
            Segment(stage, task, thin([(starts[stage] + step, value) for step, value in sorted(points)], limit))
            for (stage, task), points in sorted(series.items())
        ),
    )


def _by_stage(
    values: Mapping[str, Mapping[tuple[int, str], list[tuple[int, float]]]],
) -> dict[str, dict[int, Points]]:
    found: dict[str, dict[int, Points]] = {}
    for name, series in values.items():
        stages: dict[int, list[tuple[float, float]]] = {}
        for (stage, _), points in series.items():
            stages.setdefault(stage, []).extend(points)
        found[name] = {stage: sorted(points) for stage, points in stages.items()}
    return found
