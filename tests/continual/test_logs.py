"""Trainer's log lines as records."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from contrl.continual.logs import MetricsLog
from contrl.continual.run_folder import RunFolder
from contrl.interfaces import Stage


def test_one_record_a_number_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(RunFolder(tmp_path), Stage(2, ("sums", "words")))
    logs = {"loss": 0.25, "grad_norm": float("nan"), "reward": float("-inf"), "steps": 3, "note": "text"}
    log.on_log(TrainingArguments(str(tmp_path)), TrainerState(global_step=7), TrainerControl(), logs=logs)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    place = {"stage": 2, "step": 7, "task": "sums+words"}
    assert found == [
        place | {"name": "loss", "value": 0.25},
        place | {"name": "grad_norm", "value": None},
        place | {"name": "reward", "value": None},
        place | {"name": "steps", "value": 3.0},
    ]
