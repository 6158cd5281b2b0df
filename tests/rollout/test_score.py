"""The reward contract: what a reward is called with, what it may answer, and how a mixed batch is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import LIKELIHOOD, Completion, Group, Metric, Task, TaskSequence
from contrl.models.embedded import character_tokenizer
from contrl.rewards.functions import Rewards
from contrl.rewards.rules import Length, exact_match
from contrl.rollout.score import ScoreReport, ScoreSettings, call_reward, require_reward, score_rollouts, text_of

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
    assert seen.pop("trainer_state") is None
    assert callable(seen.pop("log_extra"))
    assert callable(seen.pop("log_metric"))
    assert seen == {"prompts": ["1+2=", "2+2="], "completions": ["3", "5"], "answer": [3, 4], "id": ["0", "1"]}


def test_a_conversation_is_answered_by_a_message() -> None:
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "id": "0"}]
    seen: dict[str, Any] = {}

    def reward(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        seen.update(prompts=prompts, completions=completions)
        return [1.0]

    call_reward(reward, rows, ["ho"], "task a")
    assert seen == {"prompts": [rows[0]["prompt"]], "completions": [[{"role": "assistant", "content": "ho"}]]}


def test_prompts_of_both_kinds_may_stand_in_a_batch() -> None:
    rows = [{"prompt": [{"role": "user", "content": "hi"}]}, {"prompt": "hi"}]

    def reward(*, completions: list, **columns: list) -> Sequence[float | None]:
        assert completions == [[{"role": "assistant", "content": "ho"}], "hm"]
        return [1.0, 2.0]

    assert call_reward(reward, rows, ["ho", "hm"], "task a") == [1.0, 2.0]


def test_sampled_tokens_reach_the_reward_and_those_of_the_data_do_not() -> None:
    rows = [{"prompt": "a", "completion_ids": [1, 2, 3]}]
    assert call_reward(Length(half=4), rows, ["x"], "task a", completion_ids=[[1] * 4]) == [0.5]
    with pytest.raises(UserError, match="counts tokens and was given none"):
        call_reward(Length(), rows, ["x"], "task a")


def test_several_rewards_are_one() -> None:
    rewards = Rewards.of([answering([1, None]), answering([2, 4])], [1.0, 0.5])
    assert call_reward(rewards, ROWS, ["3", "5"], "task a") == [2.0, 2.0]


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
        (["good", 1], "returned 'good'"),
        ([[1], [0]], r"returned \[1\]"),
        (None, "returned None"),
        (0.5, "returned 0.5"),
        ("ab", "returned 'ab'"),
        ({"a": 1, "b": 2}, "returned {'a': 1, 'b': 2}"),
        ([float("inf"), 0], "infinite"),
    ],
)
def test_any_other_answer_is_refused_and_the_task_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"task a.*: the reward.*{message}"):
        call_reward(answering(value), ROWS, ["3", "5"], "task a")


def test_an_exception_of_the_reward_leads_to_the_users_line() -> None:
    def reward(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        raise ZeroDivisionError

    with pytest.raises(UserError, match="task a, row 0: the reward reward raised ZeroDivisionError\n  in reward, line"):
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


def right(*, completions: list, **columns: list) -> Sequence[float | None]:
    return [None if text == "?" else float(text == "yes") for text in completions]


def size(*, completions: list, **columns: list) -> Sequence[float | None]:
    return [float(len(text)) for text in completions]


def scored(task: Task, *answers: list[str], **options: Any) -> tuple[list[Group], ScoreReport]:
    groups = [sampled(task.name, str(row), texts) for row, texts in enumerate(answers)]
    sequence = TaskSequence.in_order([task])
    return groups, score_rollouts(groups, sequence, character_tokenizer(), **options)


def test_every_score_and_the_weighted_reward_are_kept() -> None:
    """1 - 0.1 x 3 and so on; where one does not apply the other is the reward."""
    rewards = Rewards.of([right, size], [1.0, -0.1])
    groups, _ = scored(Task("a", [], reward=rewards), ["yes", "?"], ["no", "yes"])
    found = [completion for group in groups for completion in group.completions]
    assert [c.scores for c in found] == [
        {"right": 1.0, "size": 3.0},
        {"right": None, "size": 1.0},
        {"right": 0.0, "size": 2.0},
        {"right": 1.0, "size": 3.0},
    ]
    assert [c.reward for c in found] == pytest.approx([0.7, -0.1, -0.2, 0.7])


def test_metrics_of_each_function() -> None:
    """right: 1, 0, 1 known of 4: std sqrt(1/3); size: 3, 1, 2, 3: mean 9/4, std sqrt(2.75 / 3)."""
    rewards = Rewards.of([right, size])
    _, report = scored(Task("a", [], reward=rewards), ["yes", "?"], ["no", "yes"])
    assert report.metrics == {
        "rewards/right/mean": (2.0, 3.0),
        "rewards/right/missing": (1.0, 4.0),
        "rewards/right/std": (pytest.approx((1 / 3) ** 0.5), 1.0),
        "rewards/size/mean": (9.0, 4.0),
        "rewards/size/missing": (0.0, 4.0),
        "rewards/size/std": (pytest.approx((2.75 / 3) ** 0.5), 1.0),
    }
    assert report.notes == []


def test_one_known_score_has_no_deviation() -> None:
    _, report = scored(Task("a", [], reward=right), ["yes", "?"])
    assert "rewards/right/std" not in report.metrics


def test_a_reward_of_two_tasks_is_one_metric() -> None:
    sequence = TaskSequence.in_order([Task("a", [], reward=size), Task("b", [], reward=Rewards.of([right, size]))])
    groups = [sampled("a", "0", ["four"]), sampled("b", "0", ["yes", "no"]), sampled("a", "1", ["x"])]
    report = score_rollouts(groups, sequence, character_tokenizer())
    assert report.metrics["rewards/size/mean"] == (10.0, 4.0)
    assert report.metrics["rewards/right/mean"] == (1.0, 2.0)
    assert groups[2].completions[0].scores == {"size": 1.0}


def test_completions_without_any_reward_are_noted_once() -> None:
    groups, report = scored(Task("a", [], reward=right), ["?", "?"], ["?", "yes"])
    assert [c.reward for group in groups for c in group.completions] == [None, None, None, 1.0]
    assert report.notes == [
        "task a: some completions have no reward; they teach nothing and are left out of every mean"
    ]


def test_what_functions_log_is_in_the_report() -> None:
    """Columns are in the order of the batch, though the tasks were scored one after the other."""

    def one(*, completions: list, trainer_state: Any, log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("upper", [text.upper() for text in completions])
        log_metric("step", trainer_state)
        return [0.0] * len(completions)

    def two(*, completions: list, log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("upper", completions)
        log_metric("step", 5)
        return [0.0] * len(completions)

    sequence = TaskSequence.in_order([Task("a", [], reward=one), Task("b", [], reward=Rewards.of([one, two]))])
    groups = [sampled("b", "0", ["yes"]), sampled("a", "0", ["no", "x"]), sampled("b", "1", ["ab"])]
    report = score_rollouts(groups, sequence, character_tokenizer(), state=3)
    assert report.extras == {"upper": ["YES", "NO", "X", "AB"], "two/upper": ["yes", None, None, "ab"]}
    assert report.metrics["step"] == (11.0, 3.0)


def test_a_score_that_cannot_be_had_is_missing_and_explained() -> None:
    def picky(*, completions: list, **columns: list) -> list[float]:
        if "x" in completions:
            raise ValueError("no x, please")
        return [1.0] * len(completions)

    task = Task("a", [], reward=Rewards.of([picky, size]))
    groups, report = scored(task, ["yes", "x"], ["no"], settings=ScoreSettings("missing"))
    assert [c.reward for group in groups for c in group.completions] == [4.0, None, 3.0]
    assert report.metrics["rewards/picky/missing"] == (1.0, 3.0)
    assert report.extras == {"picky_error": [None, "ValueError: no x, please", None]}
    assert any("some scores of picky cannot be had (ValueError)" in note for note in report.notes)
    with pytest.raises(UserError, match="task a, row 0: the reward picky raised ValueError: no x, please") as raised:
        scored(task, ["yes", "x"], ["no"])
    assert "--reward_errors missing" in raised.value.fix


def test_a_batch_of_nothing_asks_nobody() -> None:
    assert score_rollouts([], TaskSequence.in_order([]), character_tokenizer()) == ScoreReport()


# --- the verifier -------------------------------------------------------------------------------------------


def verified(reward: Any, metric: Metric, *answers: list[str]) -> dict[str, tuple[float, float]]:
    _, report = scored(Task("a", [], reward=reward, metric=metric), *answers)
    return {name: value for name, value in report.metrics.items() if name.startswith("verifier")}


def test_the_metric_judges_beside_the_reward() -> None:
    """A reward for length is best at "wrong", which the metric sees: the two part."""
    answers = (["yes", "no"], ["?", "wrong"])
    assert verified(size, Metric("accuracy", right), *answers) == {"verifier/accuracy": (1.0, 3.0)}
    assert verified(size, Metric("long", size, correct_at=3.0), *answers) == {}
    assert verified(right, Metric("long", size, correct_at=3.0), *answers) == {"verifier/long": (2.0, 4.0)}


def test_a_metric_that_is_one_of_the_rewards_is_not_asked_again() -> None:
    calls = []

    def counted(*, completions: list, **columns: list) -> list[float]:
        calls.append(len(completions))
        return [float(text == "yes") for text in completions]

    assert verified(Rewards.of([size, counted]), Metric("m", counted), ["yes", "no"]) == {"verifier/m": (1.0, 2.0)}
    assert calls == [2]
    assert verified(Rewards.of([counted]), Metric("m", counted), ["yes", "no"]) == {}


def test_a_metric_that_costs_or_has_no_function_is_not_asked() -> None:
    class Dear:
        is_costly = True

        def __call__(self, **columns: list) -> list[float]:
            raise AssertionError

    assert verified(size, Metric("dear", Dear()), ["yes"]) == {}
    assert verified(size, Metric("several", Rewards.of([right, Dear()])), ["yes"]) == {}
    assert verified(size, LIKELIHOOD, ["yes"]) == {}


def test_a_metric_that_cannot_judge_stops_nothing() -> None:
    """It is meant for evaluation rows; these have no column for it."""

    def needs(*, completions: list, solution: list) -> list[float]:
        raise AssertionError

    _, report = scored(Task("a", [], reward=size, metric=Metric("m", needs)), ["yes"])
    assert report.notes == ["task a: m cannot judge what is sampled in training: the reward needs needs solution"]
    assert "verifier/m" not in report.metrics


def test_a_task_without_a_reward_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="task sums: an online method needs a reward"):
        require_reward(Task("sums", []))
