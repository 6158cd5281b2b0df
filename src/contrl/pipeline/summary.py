"""What a pipeline came to: one row for each step, with the numbers that its folder holds.

Nothing is computed here: scores come from a run's results, rewards from its last logged step, win rates from an
evaluation's file. A number that was not measured is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from contrl.continual import results
from contrl.continual.records import read_records
from contrl.pipeline.state import State
from contrl.pipeline.steps import Step
from contrl.report.watched import clock

EVALUATION = "evaluation_metrics.json"
_JUDGED = ("win_rate", "win_rate_ties_half", "tie_rate", "avg_reward", "reward_improvement", "length_ratio", "missing")
_LOGGED = {"rewards/margins": "margin", "margin": "margin", "reward": "reward", "loss": "loss"}
"""Logged name -> its name in the table. Of a method that samples the loss says nothing, and it has a reward."""


@dataclass(frozen=True)
class Row:
    """One step of the summary; ``seconds`` over all starts."""

    name: str
    command: str
    model: str
    seconds: float
    numbers: Mapping[str, float | None]


def rows(steps: Sequence[Step], state: State) -> list[Row]:
    """The rows of the steps, from their records."""
    found = [(step, state.records[step.name]) for step in steps]
    return [Row(step.name, step.command, record.model, record.seconds, record.numbers) for step, record in found]


def numbers(step: Step) -> dict[str, float | None]:
    """The main numbers of a step that has come to its end."""
    if (step.folder / EVALUATION).exists():
        return _evaluated(json.loads((step.folder / EVALUATION).read_text(encoding="utf-8")))
    return _trained(step) if (step.folder / "results.json").exists() else {}


def table(found: Sequence[Row]) -> str:
    """The rows as text: step, method, model, time, numbers."""
    head = ("step", "method", "model", "time", "numbers")
    lines = [(row.name, row.command, row.model or "-", clock(row.seconds), _shown(row.numbers)) for row in found]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(word.ljust(width) for word, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in (head, *lines)
    )


def _trained(step: Step) -> dict[str, float | None]:
    """The score of a run, over its tasks, and where training ended."""
    found = results.read(step.folder)
    cells = [cell for cell in found.matrix[found.end] if cell is not None] if found.end >= 0 else []
    start = [cell for cell in found.matrix[0] if cell is not None]
    given: dict[str, float | None] = {}
    if cells:
        if len(start) == len(cells):
            given[f"{found.metric} before"] = fmean(cell.value for cell in start)
        given[found.metric] = fmean(cell.value for cell in cells)
    logged = read_records(step.folder / "metrics.jsonl", ("stage", "step", "task", "name"))
    last = {record["name"]: record["value"] for record in logged if record["stage"] >= 1}
    for name, short in _LOGGED.items():
        if name in last and not (name == "loss" and "reward" in last):
            given[short] = last[name]
    return given


def _evaluated(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The main numbers of an evaluation; a number may stand alone or as ``{"value": ...}`` with its interval."""
    plain = {name: value.get("value") if isinstance(value, Mapping) else value for name, value in metrics.items()}
    return {name: plain[name] for name in _JUDGED if isinstance(plain.get(name), int | float)}


def _shown(given: Mapping[str, float | None]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in given.items() if value is not None)
