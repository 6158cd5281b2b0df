"""What the policy itself answers to prompts of earlier tasks: data that remember it, without stored answers.

The answers are a function of (weights, seed, stage), so a resumed run, and every rank, finds the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from contrl.data.chat import encode_prompt, template_options
from contrl.data.prompts import to_prompts
from contrl.errors import UserError
from contrl.interfaces import Context, Group, OnlineMethod, Row, Task
from contrl.models.load import end_tokens
from contrl.rollout.sampler import Noise, Sampling, generate

DEFAULT_LENGTH = 64


def choose_rows(
    tasks: Sequence[Task], number: int, key: Sequence[int], rows: Sequence[Row] = ()
) -> list[tuple[Task, Row]]:
    """``number`` training rows in all, as many of each task; or of ``rows``, as a task called "generic".

    Args:
        tasks: where the rows come from.
        number: fewer are given when there are fewer.
        key: seeds the choice.
        rows: taken instead, when there are any.
    """
    sources = [Task("generic", rows)] if rows else list(tasks)
    generator = np.random.default_rng(list(key))
    chosen = []
    for position, task in enumerate(sources):
        size = number // len(sources) + (position < number % len(sources))
        order = sorted(generator.permutation(len(task.train))[:size].tolist())
        chosen += [(task, task.train[i]) for i in order]
    return chosen


def require_prompts(tasks: Sequence[Task]) -> None:
    """Refuse tasks with rows that ask nothing.

    Raises:
        UserError: for a row without a prompt.
    """
    for task in tasks:
        for row in task.train:
            if to_prompts([row])[0][0].get("prompt") is None:
                raise UserError(
                    f"row {row['id']} of task {task.name} has no prompt that the policy could answer",
                    fix="give rows a `prompt`, or replay them as they are",
                )


def answered(
    ctx: Context, rows: Sequence[tuple[Task, Row]], key: Sequence[int], max_new_tokens: int | None, temperature: float
) -> list[tuple[Group, Row]]:
    """Each prompt with one answer of the current policy, as a group and as a row ``prompt``, ``completion``.

    Answers without any token are left out.

    Args:
        ctx: of the stage.
        rows: of any format that has a prompt.
        key: of the sampling noise.
        max_new_tokens: None takes the method's own limit, or 64.
        temperature: 0 takes the likeliest answers.

    Raises:
        UserError: for a row without a prompt.
    """
    method, tokenizer = ctx.method, ctx.tokenizer
    limit = max_new_tokens or (method.max_new_tokens if isinstance(method, OnlineMethod) else DEFAULT_LENGTH)
    asked = [(task, to_prompts([row])[0][0]) for task, row in rows]
    without = next((row for _, row in asked if row.get("prompt") is None), None)
    if without is not None:
        raise UserError(
            f"row {without['id']} has no prompt that the policy could answer", fix="give rows a `prompt`, or use replay"
        )
    prompts = [
        (f"{task.name}/{row['id']}", encode_prompt(row["prompt"], tokenizer, **template_options(row)))
        for task, row in asked
    ]
    sampling = Sampling(limit, 1, temperature)
    sampled = generate(ctx.model, prompts, sampling, Noise(tuple(key)), end_tokens(ctx.model))
    found: list[tuple[Group, Row]] = []
    for (task, row), (_, prompt_ids), (completion,) in zip(asked, prompts, sampled, strict=True):
        if completion.ids:
            text = str(tokenizer.decode(completion.ids, skip_special_tokens=True))
            answer: Any = text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            group = Group(str(row["id"]), task.name, prompt_ids, [completion], row)
            found.append((group, {**row, "completion": answer}))
    return found
