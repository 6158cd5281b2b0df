"""Which rows an evaluation asks: held-out ones, each question once, the first so many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.data import countdown
from contrl.errors import UserError
from contrl.evaluation.prompts import read_prompts
from contrl.rewards.countdown import countdown_reward


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_test_split_and_never_the_train_split(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", [{"prompt": "seen"}])
    write(tmp_path / "data" / "test.jsonl", [{"prompt": f"unseen {i}", "answer": i} for i in range(4)])
    rows, notes = read_prompts(str(tmp_path / "data"), 3)
    assert [(row["prompt"], row["answer"]) for row in rows] == [("unseen 0", 0), ("unseen 1", 1), ("unseen 2", 2)]
    assert notes == []
    assert read_prompts(str(tmp_path / "data"), 9, "train")[0][0]["prompt"] == "seen"
    (tmp_path / "data" / "test.jsonl").rename(tmp_path / "data" / "validation.jsonl")
    with pytest.raises(UserError, match="no split 'test'"):
        read_prompts(str(tmp_path / "data"), 3)


def test_pairs_and_chats_ask_their_question_once(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "Q"}]
    pairs = [{"prompt": question, "chosen": [{"role": "assistant", "content": c}], "rejected": []} for c in "ab"]
    chat = {"messages": [{"role": "user", "content": "R"}, {"role": "assistant", "content": "x"}]}
    rows, notes = read_prompts(write(tmp_path / "pairs.jsonl", [*pairs, chat]), 9)
    assert [row["prompt"][0]["content"] for row in rows] == ["Q", "R"]
    assert any("1 different questions" in note for note in notes)
    assert any("has 2 prompts, not 9" in note for note in notes)


def test_a_file_of_tasks_asks_all_of_them_or_one(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "fixtures" / "aif_gen_shift.json"
    whole, _ = read_prompts(str(path), 1000)
    one, _ = read_prompts(str(path), 1000, dataset_index=0)
    assert 0 < len(one) < len(whole)
    assert len({row["id"] for row in whole}) == len(whole)


@pytest.mark.parametrize("template", ["compact", "base", "qwen-instruct"])
def test_countdowns_files_can_be_verified(tmp_path: Path, template: str) -> None:
    """As ``contrl data countdown`` writes them: the truth lies in ``reward_model``, where veRL looks for it."""
    numbers: dict[str, Any] = {
        "train_size": 3,
        "test_size": 5,
        "num_operands": (3,),
        "max_number": 20,
        "target_range": (5, 50),
    }
    countdown.write(countdown.CountdownConfig(groups=("plus",), template=template, **numbers), tmp_path)
    asked, _ = read_prompts(str(tmp_path / "plus"), 5)
    assert [isinstance(row["prompt"], str) for row in asked] == [template != "qwen-instruct"] * 5
    columns = {name: [row[name] for row in asked] for name in ("ground_truth", "operator_group", "data_source")}
    right = [truth["solution"] for truth in columns["ground_truth"]]
    answers = right if template == "compact" else [f"<answer>{text}</answer>" for text in right]
    assert countdown_reward(prompts=[], completions=answers, **columns) == [1.0] * 5
    assert countdown_reward(prompts=[], completions=answers[1:] + answers[:1], **columns) != [1.0] * 5


def test_rows_without_a_question_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1 has no prompt"):
        read_prompts(write(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"text": "b"}]), 5)
    with pytest.raises(UserError, match="no tasks to choose from"):
        read_prompts(write(tmp_path / "rows.jsonl", [{"prompt": "a"}]), 5, dataset_index=2)
