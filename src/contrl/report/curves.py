"""Training curves out of metrics.jsonl: one curve per recorded name, stages end to end on one axis of steps.

Steps count within a stage, so each stage is shifted by the steps before it. Long curves are thinned by averaging
neighbours, so that a page stays small and a spike still shows in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from contrl.continual.results import read_records

MAX_POINTS = 600
JUDGED = "eval/"
"""Begins the names of what is measured between stages: values of the results matrix's rows, not of training steps."""
# What a reader looks for first, whatever the method; a policy loss says little, so loss comes after these.
FIRST = (
    "reward",
    "success",
    "accuracy",
    "accuracies",
    "margin",
    "margins",
    "kl",
    "entropy",
    "loss",
    "completion_length",
    "grad_norm",
)


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
    """All curves of a run, the most telling first.

    Attributes:
        starts: stage -> first step of the stage on the common axis, for the boundaries between tasks.
        total: number of steps so far.
        not_finite: name -> how many of its values were NaN or infinite (and are left out).
    """

    curves: tuple[Curve, ...]
    starts: dict[int, int]
    total: int
    not_finite: dict[str, int] = field(default_factory=dict)


def read_training(folder: Path) -> Training:
    """Read metrics.jsonl; a run without one has no curves. Raises UserError on a damaged log."""
    records = read_records(folder / "metrics.jsonl", key=("stage", "step", "task", "name"))
    lengths: dict[int, int] = {}
    values: dict[str, dict[tuple[int, str], list[tuple[int, float]]]] = {}
    not_finite: dict[str, int] = {}
    for record in records:
        stage, step, task, value = record["stage"], record["step"], str(record["task"]), record.get("value")
        if not isinstance(stage, int) or not isinstance(step, int) or str(record["name"]).startswith(JUDGED):
            continue  # not a step of a stage of the sequence
        lengths[stage] = max(step, lengths.get(stage, 0))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not isfinite(value):
            not_finite[record["name"]] = not_finite.get(record["name"], 0) + 1
            continue
        values.setdefault(record["name"], {}).setdefault((stage, task), []).append((step, float(value)))
    starts, total = {}, 0
    for stage in sorted(lengths):
        starts[stage] = total
        total += lengths[stage]
    limit = max(2, MAX_POINTS // max(1, len(lengths)))
    curves = [
        Curve(
            name,
            tuple(
                Segment(stage, task, thin([(starts[stage] + step, value) for step, value in sorted(points)], limit))
                for (stage, task), points in sorted(series.items())
            ),
        )
        for name, series in values.items()
    ]
    return Training(tuple(sorted(curves, key=lambda curve: _rank(curve.name))), starts, total, not_finite)


def thin(points: Sequence[tuple[float, float]], limit: int) -> tuple[tuple[float, float], ...]:
    """At most ``limit`` points, each the mean of equally many neighbours (the last may be of fewer)."""
    size = -(-len(points) // limit)
    buckets = [points[start : start + size] for start in range(0, len(points), size)] if size > 1 else []
    return tuple((fmean(x for x, _ in part), fmean(y for _, y in part)) for part in buckets) or tuple(points)


def _rank(name: str) -> tuple[Any, ...]:
    """Position of a name: by its last part, so that ``train/reward`` stands with ``reward``."""
    short = name.rsplit("/", 1)[-1]
    return (FIRST.index(short) if short in FIRST else len(FIRST), name)
