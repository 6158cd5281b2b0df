"""Which checkpoints stay: the user's wish in steps, and the newest as long as a resume may need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from contrl.continual.rotation import Rotate, Rotation, checkpoints, remove_checkpoints


@pytest.mark.parametrize(
    ("training", "every", "limit"),
    [
        ({}, 500, None),
        ({"save_steps": 20, "save_total_limit": 3}, 20, 3),
        ({"save_steps": 0.1}, 10, None),
        ({"save_steps": 0.025}, 3, None),  # a fortieth of 100 steps, rounded up as Trainer does
        ({"save_strategy": "epoch", "save_steps": 20}, 7, None),
        ({"save_strategy": "no"}, None, None),
    ],
)
def test_the_wish_in_steps(training: dict[str, Any], every: int | None, limit: int | None) -> None:
    assert Rotation.of(training, num_steps=100, steps_per_epoch=7) == Rotation(every, limit)


def test_multiples_stay_up_to_the_limit_the_newest_first() -> None:
    steps = [3, 12, 6, 14, 9]
    assert Rotation(3, None).kept(steps) == [12, 9, 6, 3]
    assert Rotation(3, 2).kept(steps) == [12, 9]
    assert Rotation(3, 0).kept(steps) == []
    assert Rotation(None, None).kept(steps) == []


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "model.safetensors").touch()


def test_after_each_save_only_the_wanted_and_the_newest_are_there(tmp_path: Path) -> None:
    """Every 10, two of them; a stop on request saved 25, which a resume needs although nobody asked for it."""
    callback = Rotate(tmp_path, Rotation(10, 2))
    found = []
    for step in (10, 20, 25, 30, 40):
        make(tmp_path, step)
        callback.on_save(TrainingArguments(str(tmp_path)), TrainerState(), TrainerControl())
        found.append(sorted(checkpoints(tmp_path)))
    assert found == [[10], [10, 20], [10, 20, 25], [20, 30], [30, 40]]


def test_only_the_first_process_deletes(tmp_path: Path) -> None:
    make(tmp_path, 10, 20)
    state = TrainerState(is_world_process_zero=False)
    Rotate(tmp_path, Rotation(10, 1)).on_save(TrainingArguments(str(tmp_path)), state, TrainerControl())
    assert sorted(checkpoints(tmp_path)) == [10, 20]


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    make(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "final").mkdir()
    remove_checkpoints(tmp_path, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best", "final"]
