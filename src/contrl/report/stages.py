"""The stages of a run as its folder tells them: tasks, round, steps, trained tokens, and where its time went.

The manifest says what was planned, the journal when each phase ended, the metrics how many tokens and seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contrl.continual.results import Results, read_records
from contrl.report.curves import Training

PHASES = ("train", "look back", "evaluate", "save")
"""Phases of a stage, in order; ``_ENDS`` are the journal's events that end them."""
_ENDS = ("trained", "after_task", "evaluated", "saved")
WINDOW = "seconds/"
"""Begins the names of seconds per rollout window."""


@dataclass(frozen=True)
class StageFacts:
    """One planned stage; None where nothing is known yet.

    Attributes:
        name: its tasks, joined by "+".
        tokens: trained tokens.
        rows: train rows of its tasks.
        seconds: phase -> wall time, of the phases that ended; of a resumed stage what the last start took.
        window: part of training -> wall time spent there, as far as it was logged ("sampling", "reward", "measure").
        resumes: how often it was continued from a checkpoint.
    """

    stage: int
    tasks: tuple[str, ...]
    round: int
    steps: int | None
    tokens: int | None
    rows: int | None
    seconds: Mapping[str, float] = field(default_factory=dict)
    window: Mapping[str, float] = field(default_factory=dict)
    resumes: int = 0

    @property
    def name(self) -> str:
        """Its tasks in a word."""
        return "+".join(self.tasks)


def read_stages(results: Results, training: Training, *, steps_per_window: int = 1) -> list[StageFacts]:
    """Every planned stage, in order.

    Args:
        steps_per_window: optimizer steps that reuse one set of rollouts, of online methods.

    Raises:
        UserError: on a damaged log.
    """
    run = results.run
    events = read_records(results.folder / "journal.jsonl", key=("stage", "event"))
    times: dict[tuple[Any, str], Any] = {(event["stage"], event["event"]): event.get("time") for event in events}
    resumed = _resumes(results)
    data: Mapping[str, Any] = run["data"] if isinstance(run.get("data"), Mapping) else {}
    stages = run.get("stages") or [{} for _ in results.rows[1:]]
    found = []
    for number, planned in enumerate(stages, start=1):
        tasks = tuple(results.tasks[column] for column in results.trained[number])
        sizes = [data[task]["train"] for task in tasks if isinstance(data.get(task), Mapping) and "train" in data[task]]
        tokens = training.values("num_tokens", number)[-1:]
        found.append(
            StageFacts(
                stage=number,
                tasks=tasks,
                round=planned.get("round") or 1,
                steps=training.last_steps.get(number),
                tokens=round(tokens[0]) if tokens else None,
                rows=sum(sizes) if len(sizes) == len(tasks) else None,
                seconds=_phases(times, number),
                window=_window(training, number, steps_per_window),
                resumes=resumed.get(number, 0),
            )
        )
    return found


def _phases(times: Mapping[tuple[Any, str], Any], stage: int) -> dict[str, float]:
    begins = [times.get((stage, event)) for event in ("resumed_from", "started")]
    before = max((time for time in begins if isinstance(time, int | float)), default=None)
    found: dict[str, float] = {}
    for phase, event in zip(PHASES, _ENDS, strict=True):
        end = times.get((stage, event))
        if isinstance(before, int | float) and isinstance(end, int | float) and end >= before:
            found[phase] = end - before
        before = end
    return found


def _window(training: Training, stage: int, steps_per_window: int) -> dict[str, float]:
    """Seconds of each logged part: the log holds means over the windows since the line before."""
    found = {}
    for name, stages in training.logged.items():
        if not name.startswith(WINDOW) or stage not in stages:
            continue
        before, seconds = 0.0, 0.0
        for step, value in stages[stage]:
            seconds += value * max(1, round((step - before) / steps_per_window))
            before = step
        found[name.removeprefix(WINDOW)] = seconds
    return found


def _resumes(results: Results) -> dict[int, int]:
    records = read_records(results.folder / "journal.jsonl", key=("stage", "event", "time"))
    found: dict[int, int] = {}
    for record in records:
        if record["event"] == "resumed_from":
            found[record["stage"]] = found.get(record["stage"], 0) + 1
    return found
