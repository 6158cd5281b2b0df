"""The reward contract: what a reward is called with, what it may answer, and how a mixed batch is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Completion, Group, Task, TaskSequence
from contrl.models.embedded import character_tokenizer
from contrl.rewards.rules import exact_match
from contrl.rollout.score import call_reward, require_reward, score_rollouts, text_of

ROWS: list[dict[str, Any]] = [{"prompt": "1+2=", "answer": 3, "id": "0"}, {"prompt": "2+2=", "answer": 4, "id": "1"}]


def answering(value: Any) -> Any:
    """A reward that returns ``value``, whatever it is asked."""
    return lambda **arguments: value


def test_a_reward_is_called_by_keyword_with_lists_of_equal_length() -> None:
    seen: dict[str, Any] = {}

    def reward(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [1, 0]

    assert call_reward(reward, ROWS, ["3", "5"], "task a") == [1.0, 0.0]
    assert seen == {"prompts": ["1+2=", "2+2="], "completions": ["3", "5"], "answer": [3, 4], "id": ["0", "1"]}


def test_a_conversation_is_answered_by_a_message() -> None:
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "id": "0"}]
    seen: dict[str, Any] = {}

    def reward(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        seen.update(prompts=prompts, completions=completions)
        return [1.0]

    call_reward(reward, rows, ["ho"], "task a")
    assert seen == {"prompts": [rows[0]["prompt"]], "completions": [[{"role": "assistant", "content": "ho"}]]}


def test_columns_of_any_row_reach_the_reward() -> None:
    """The first row lacks the column; its entry is None, the others keep theirs."""
    rows = [{"prompt": "a", "id": "0"}, {"prompt": "b", "id": "1", "completion": "x"}]
    assert call_reward(exact_match, rows, ["x", "x"], "task a") == [None, 1.0]


@pytest.mark.parametrize(
    "value", [[1, None], (True, None), [np.float32(1), None], [torch.tensor(1.0), None], [1.0, float("nan")]]
)
def test_numbers_of_every_kind_are_taken_and_missing_stays_missing(value: Any) -> None:
    """NaN is no number either: it must not reach a mean."""
    assert call_reward(answering(value), ROWS, ["3", "5"], "task a") == [1.0, None]


def test_arrays_are_taken() -> None:
    assert call_reward(answering(torch.tensor([0.5, 1.0])), ROWS, ["3", "5"], "task a") == [0.5, 1.0]
    assert call_reward(answering(np.array([0.5, np.nan])), ROWS, ["3", "5"], "task a") == [0.5, None]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "returned 1 scores for 2 completions"),
        ([], "returned 0 scores for 2 completions"),
        (["good", 1], r"returned \['good', 1\]"),
        ([[1], [0]], r"returned \[\[1\], \[0\]\]"),
        (None, "returned None"),
        (0.5, "returned 0.5"),
        ("ab", "returned 'ab'"),
        ({"a": 1, "b": 2}, "returned {'a': 1, 'b': 2}"),
        ([float("inf"), 0], "infinite"),
    ],
)
def test_any_other_answer_is_refused_and_the_task_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"task a: the reward.*{message}"):
        call_reward(answering(value), ROWS, ["3", "5"], "task a")


def test_an_exception_of_the_reward_is_its_own() -> None:
    """The traceback leads to the user's line."""

    def reward(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call_reward(reward, ROWS, ["3", "5"], "task a")


def test_a_column_with_an_arguments_name_is_refused() -> None:
    with pytest.raises(UserError, match="the column completions has the name of the reward's own argument"):
        call_reward(answering([1]), [{"prompt": "a", "completions": 3}], ["x"], "task a")


def test_text_leaves_special_tokens_out() -> None:
    tokenizer = character_tokenizer()
    ids = [*tokenizer("3*14-5")["input_ids"], tokenizer.eos_token_id]
    group = Group("0", "a", [5], [Completion(ids), Completion(ids[:1])])
    assert text_of(group, tokenizer) == ["3*14-5", "3"]


def sampled(task: str, row_id: str, answers: list[str]) -> Group:
    tokenizer = character_tokenizer()
    completions = [Completion([*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]) for answer in answers]
    return Group(row_id, task, [5], completions, {"prompt": "p", "completion": "yes", "id": row_id})


def test_a_mixed_batch_is_scored_task_by_task() -> None:
    """Replayed groups stand between current ones; each completion gets the score of its own task's reward."""

    def length(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        return [float(len(text)) for text in completions]

    sequence = TaskSequence.in_order([Task("match", [], reward=exact_match), Task("length", [], reward=length)])
    groups = [
        sampled("match", "0", ["yes", "no"]),
        sampled("length", "1", ["four", "x", "ab"]),
        sampled("match", "2", ["no", "yes"]),
    ]
    score_rollouts(groups, sequence, character_tokenizer())
    assert [[c.reward for c in group.completions] for group in groups] == [[1.0, 0.0], [4.0, 1.0, 2.0], [0.0, 1.0]]


def test_a_task_without_a_reward_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="task sums: an online method needs a reward"):
        require_reward(Task("sums", []))
