"""Rows in veRL's columns become tasks: the truth is a column, a raw prompt stays raw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contrl.data import countdown
from contrl.data.sources import read_rows
from contrl.data.verl import lifted
from contrl.rewards.countdown import countdown_reward

FEW: dict[str, Any] = {
    "train_size": 3,
    "test_size": 4,
    "num_operands": (3,),
    "max_number": 20,
    "target_range": (5, 50),
    "groups": ("plus_minus",),
}


@pytest.mark.parametrize("template", countdown.TEMPLATES)
def test_a_parquet_folder_is_a_task_that_the_verifier_can_judge(tmp_path: Path, template: str) -> None:
    countdown.write(countdown.CountdownConfig(template=template, **FEW), tmp_path)
    rows = read_rows(str(tmp_path / "plus_minus"), "test")
    assert len(rows) == 4
    assert {row["operator_group"] for row in rows} == {"plus_minus"}
    assert [isinstance(row["prompt"], str) for row in rows] == [template != "qwen-instruct"] * 4
    truths = [row["ground_truth"] for row in rows]
    answers = [t["solution"] if template == "compact" else f"<answer>{t['solution']}</answer>" for t in truths]
    assert countdown_reward([], answers, truths) == [1.0] * 4


def test_a_file_of_the_origin_keeps_its_raw_text() -> None:
    """ChatML inside one user message, as its qwen-instruct files have it: the model sees exactly that text."""
    text = "<|im_start|>user\nMake 25.<|im_end|>\n<|im_start|>assistant\nLet me see.\n<think>"
    row = {
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"ground_truth": {"target": 25, "numbers": [5, 8, 12]}},
    }
    assert lifted(row)["prompt"] == text
    assert lifted(row)["ground_truth"] == {"target": 25, "numbers": [5, 8, 12]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "ground_truth": {"target": 1}, "reward_model": {"ground_truth": {"target": 2}}},
        {"prompt": [{"role": "user", "content": "a<think>"}], "answer": "b"},
        {"prompt": "a", "reward_model": "a name"},
    ],
)
def test_other_rows_stay_as_they_are(row: dict[str, Any]) -> None:
    assert lifted(row) is row
