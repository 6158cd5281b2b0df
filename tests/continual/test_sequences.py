"""Countdown as a sequence of tasks."""

from __future__ import annotations

from contrl.continual.sequences import COUNTDOWN_METRIC, Countdown, countdown_success
from contrl.rewards.countdown import countdown_reward

SMALL = {"num_operands": [3], "max_number": 20, "target_range": [1, 1000], "template": "compact"}


def test_success_is_a_full_reward_and_nothing_less() -> None:
    """3 + 4 + 5 = 12 earns 1; a well-formed wrong answer earns 0.1, which is no success."""
    (task,) = Countdown(groups=("plus",), train_size=4, test_size=4, **SMALL).tasks()
    row = task.train[0]
    columns = {name: [value, value, value] for name, value in row.items() if name not in ("prompt", "completion")}
    numbers = row["ground_truth"]["numbers"]
    wrong = "+".join(map(str, [*numbers, numbers[0]]))
    answers = {"prompts": [row["prompt"]] * 3, "completions": [row["completion"], wrong, "no"], **columns}
    assert countdown_reward(**answers) == [1.0, 0.1, 0.0]
    assert countdown_success(**answers) == [1.0, 0.0, 0.0]


def test_one_task_a_group_judged_by_success_on_rows_never_trained() -> None:
    tasks = Countdown(groups=("plus", "plus_minus"), train_size=50, test_size=20, **SMALL).tasks()
    assert [task.name for task in tasks] == ["plus", "plus_minus"]
    for task in tasks:
        assert (len(task.train), len(task.eval)) == (50, 20)
        assert task.metric is COUNTDOWN_METRIC
        assert task.reward is countdown_reward

    def instances(rows: list) -> set[tuple[tuple[int, ...], int]]:
        return {(tuple(sorted(r["ground_truth"]["numbers"])), r["ground_truth"]["target"]) for r in rows}

    trained = set().union(*(instances(list(task.train)) for task in tasks))
    judged = set().union(*(instances(list(task.eval)) for task in tasks))
    assert not trained & judged
