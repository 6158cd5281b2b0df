"""What a run cost: wall time by part, tokens, tokens per second, peak memory, calls of judges, as far as recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrl.continual.results import Results
from contrl.report.curves import Training
from contrl.report.stages import StageFacts

UPDATE = "update"
"""What is left of training beside the parts that were timed."""


@dataclass(frozen=True)
class StageCost:
    """Wall time of one stage by part, in order: the parts of training, then the phases around it."""

    stage: int
    name: str
    seconds: Mapping[str, float]


def stage_costs(stages: Sequence[StageFacts]) -> list[StageCost]:
    """The stages whose times are known."""
    found = []
    for stage in stages:
        parts: dict[str, float] = {}
        if "train" in stage.seconds:
            train, timed = stage.seconds["train"], sum(stage.window.values())
            # Of a resumed stage the journal knows the last start only, and the log all of them.
            shrink = min(1.0, train / timed) if timed else 1.0
            parts = {part: seconds * shrink for part, seconds in stage.window.items()}
            parts[UPDATE if parts else "train"] = max(0.0, train - timed)
        parts |= {phase: seconds for phase, seconds in stage.seconds.items() if phase != "train"}
        if parts:
            found.append(StageCost(stage.stage, stage.name, parts))
    return found


def cost_facts(results: Results, training: Training, stages: Sequence[StageFacts]) -> list[tuple[str, str]]:
    """(what, how much) lines: time, tokens, speed, memory, judges; only what is known."""
    seconds = sum(sum(stage.seconds.values()) for stage in stages)
    tokens = sum(stage.tokens or 0 for stage in stages)
    train = sum(stage.seconds.get("train", 0.0) for stage in stages)
    lines = [("wall time of the stages", duration(seconds))] if seconds else []
    if tokens:
        lines.append(("trained tokens", f"{tokens:,}"))
        if train:
            lines.append(("trained tokens per second of training", f"{tokens / train:,.0f}"))
    speeds = [value for points in training.logged.get("tokens_per_second", {}).values() for _, value in points]
    if speeds:
        lines.append(("sampled tokens per second, mean", f"{sum(speeds) / len(speeds):,.0f}"))
    lines.extend(_memory(training))
    resumes = sum(stage.resumes for stage in stages)
    if resumes:
        lines.append(("continued from a checkpoint", f"{resumes} times" if resumes > 1 else "once"))
    return [*lines, *_judges(results.run.get("judges"))]


def duration(seconds: float) -> str:
    """``3 h 20 min``, ``12 min 5 s``, ``42 s``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.3g} s"


def _memory(training: Training) -> list[tuple[str, str]]:
    """Peaks of whatever was logged under a name with "memory"."""
    found = []
    for name, stages in sorted(training.logged.items()):
        if "memory" in name:
            peak = max(value for points in stages.values() for _, value in points)
            found.append((f"peak of {name}", f"{peak:,.4g}"))
    return found


def _judges(judges: Any) -> list[tuple[str, str]]:
    return [(f"judge {name}", str(told)) for name, told in judges.items()] if isinstance(judges, Mapping) else []
