"""Two parts of a preference data set: no question in both, nothing lost, the same ones whatever the order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from contrl.continual.parts import Part


def write(path: Path, numbers: list[int]) -> str:
    rows = [{"prompt": f"{i // 2}=", "chosen": f"{i}", "rejected": "no"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def questions(path: str, part: Literal["reward_model", "policy"], share: float = 0.5) -> tuple[set[str], Part]:
    made = Part(path, part=part, share=share)
    (task,) = made.tasks()
    return {row["prompt"] for row in (*task.train, *task.eval)}, made


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_no_question_is_in_both(tmp_path: Path, share: float) -> None:
    """Forty pairs about twenty questions."""
    path = write(tmp_path / "a.jsonl", list(range(40)))
    pairs, _ = questions(path, "reward_model", share)
    prompts, _ = questions(path, "policy", share)
    assert (len(pairs), len(prompts)) == (20 * share, 20 * (1 - share))
    assert not pairs & prompts
    turned, _ = questions(write(tmp_path / "b.jsonl", list(range(39, -1, -1))), "reward_model", share)
    assert turned == pairs


def test_a_reward_model_is_judged_on_pairs_that_are_held_out(tmp_path: Path) -> None:
    """Of the test split, or of its own part."""
    path = write(tmp_path / "a.jsonl", list(range(40)))
    made = Part(path, part="reward_model")
    (task,) = made.tasks()
    assert (len(task.train), len(task.eval)) == (18, 2)
    assert "a: 2 pairs are held out to judge the reward model by" in made.notes
    (prompts,) = Part(path, part="policy").tasks()
    assert (len(prompts.train), len(prompts.eval)) == (20, 0)
    folder = tmp_path / "split"
    folder.mkdir()
    write(folder / "train.jsonl", list(range(40)))
    write(folder / "test.jsonl", list(range(40, 48)))
    for part in ("reward_model", "policy"):
        (task,) = Part(str(folder), part=part).tasks()
        assert (len(task.train), len(task.eval)) == (20, 8)
