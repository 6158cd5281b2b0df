"""Trainer's log lines as records of the run folder: one record per (stage, step, task, name)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from contrl.continual.run_folder import RunFolder
from contrl.interfaces import Stage


class MetricsLog(TrainerCallback):
    """Appends what the trainer logs to metrics.jsonl; a value that is not finite becomes null, never a number."""

    def __init__(self, folder: RunFolder, stage: Stage) -> None:
        self.folder, self.stage = folder, stage

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if "train_runtime" in (logs or {}):
            return  # Trainer's summary at the end of training, in its own units of rows and epochs
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self.write(state.global_step, values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One record for each value."""
        place = {"stage": self.stage.index, "step": step, "task": "+".join(self.stage.tasks)}
        records = [
            place | {"name": name, "value": float(value) if math.isfinite(value) else None}
            for name, value in values.items()
        ]
        self.folder.append("metrics.jsonl", *records)
