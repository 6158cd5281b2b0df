"""From sampled token ids to rewards: text in, one number per completion out, ``None`` = missing.

The reward belongs to the task, so a batch that mixes tasks (replay) is scored task by task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from contrl.errors import UserError
from contrl.interfaces import Group, Reward, Row, Task, TaskSequence


def text_of(group: Group, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The completions of a group as text, special tokens left out."""
    return [str(tokenizer.decode(completion.ids, skip_special_tokens=True)) for completion in group.completions]


def call_reward(reward: Reward, rows: Sequence[Row], completions: Sequence[str], where: str) -> list[float | None]:
    """Call a reward function with TRL's contract and check its answer.

    Args:
        reward: the function.
        rows: the source row of each completion; every column of any of them is handed on as a list.
        completions: the texts.
        where: names the task in errors.

    Returns:
        One number per completion; None and NaN both mean that there is none.

    Raises:
        UserError: when the answer has another length or is not finite numbers and None.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
    if clash := sorted({"prompts", "completions"} & names.keys()):
        raise UserError(
            f"the column {clash[0]} has the name of the reward's own argument", where=where, fix="rename it"
        )
    prompts = columns.pop("prompt", [None] * len(rows))
    conversational = bool(prompts) and isinstance(prompts[0], list)
    answers: list[Any] = list(completions)
    if conversational:
        answers = [[{"role": "assistant", "content": text}] for text in completions]
    returned: Any = reward(prompts=prompts, completions=answers, **columns)
    if not isinstance(returned, Iterable) or isinstance(returned, str | Mapping):
        raise UserError(f"the reward returned {returned!r}", where=where, fix="return a list, one entry per completion")
    scores = list(returned)
    if len(scores) != len(completions):
        raise UserError(f"the reward returned {len(scores)} scores for {len(completions)} completions", where=where)
    try:
        numbers = [None if score is None or math.isnan(float(score)) else float(score) for score in scores]
    except (TypeError, ValueError):
        raise UserError(
            f"the reward returned {scores[:3]!r}", where=where, fix="return one number or None per completion"
        ) from None
    if any(number is not None and math.isinf(number) for number in numbers):
        raise UserError("the reward returned an infinite score", where=where, why="no mean can be taken of it")
    return numbers


def score_rollouts(groups: Sequence[Group], sequence: TaskSequence, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set ``reward`` of every completion, each by its own task's reward."""
    for name in dict.fromkeys(group.task for group in groups):
        task = sequence.task(name)
        members = [group for group in groups if group.task == name]
        rows = [group.row for group in members for _ in group.completions]
        texts = [text for group in members for text in text_of(group, tokenizer)]
        scores = iter(call_reward(require_reward(task), rows, texts, f"task {name}"))
        for group in members:
            for completion in group.completions:
                completion.reward = next(scores)


def require_reward(task: Task) -> Reward:
    """The task's reward, or an error that says it needs one."""
    if task.reward is None:
        raise UserError(
            "an online method needs a reward",
            where=f"task {task.name}",
            fix="give the task a reward: NAME or module:fn",
        )
    return task.reward
