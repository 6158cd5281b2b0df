"""Replay: rows of earlier tasks join every step, besides the current ones.

What is kept are references to rows, not copies; under an online method an old prompt is rolled out again, so
the data stay on-policy. The current task loses nothing: a step trains as many of its rows as it would without.
With answers "own" even a method that imitates needs no stored answers: the policy answers the old prompts itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from contrl.errors import UserError
from contrl.interfaces import Context, OnlineMethod, Refusal, Row, Setting, Strategy, Task
from contrl.rollout.own_answers import answered, choose_rows, require_prompts
from contrl.strategies.memory import TAG, balanced, reservoir, sampled, uniform


@dataclass
class Replay(Strategy):
    """Experience replay with a fixed ratio.

    Attributes:
        share: replayed rows per current row; 0.5 adds 16 old prompts to a step of 32.
        buffer_size: rows kept, a uniform sample: of each task (below 1 the share of its rows), or with ``reservoir`` of
            all together; None keeps all.
        buffer: "per_task" draws as many rows of each earlier task; "reservoir" uniformly from one buffer over all rows
            seen, so a large task is replayed more often than a small one.
        answers: "stored" replays the rows as they are; "own" replays their prompts with answers that the policy gave at
            the start of the stage, for methods that imitate. Methods that sample roll prompts out again in any case.
        num_answers: of own answers: how many prompts are answered at the start of a stage; None takes all in memory.
        max_new_tokens: of own answers; those that do not end by then are left out. None takes 64.
        temperature: of own answers.
    """

    name = "replay"

    share: float = 0.5
    buffer_size: int | float | None = None
    buffer: Literal["per_task", "reservoir"] = "per_task"
    answers: Literal["stored", "own"] = "stored"
    num_answers: int | None = 256
    max_new_tokens: int | None = None
    temperature: float = 1.0
    memory: dict[str, list[str]] = field(default_factory=dict, init=False)
    _kept: dict[str, list[Row]] = field(default_factory=dict, init=False, repr=False)
    _own: dict[str, list[Row]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.share < 0 or (self.buffer_size is not None and self.buffer_size <= 0):
            raise UserError("replay needs share >= 0 and buffer_size >= 1, or below 1 a share of the rows (or none)")
        if self.buffer == "reservoir" and (self.buffer_size is None or self.buffer_size < 1):
            raise UserError("replay: a reservoir needs a buffer_size", fix="give one, or leave buffer out")
        if self.num_answers is not None and self.num_answers < 1:
            raise UserError(f"replay: num_answers is {self.num_answers}", fix="at least 1, or null for all in memory")

    def refuses(self, setting: Setting) -> Refusal | None:
        method = setting.method
        if self.answers == "own" and not (method.imitates or isinstance(method, OnlineMethod)):
            return Refusal(
                "answers: own gives a prompt an answer, and the method learns from judged ones",
                "use answers: stored, or kl with on: old",
            )
        return super().refuses(setting)

    # --- own answers ------------------------------------------------------------------------------------

    def before_task(self, ctx: Context) -> None:
        """Let the policy answer prompts of earlier tasks, where its own answers are to be replayed."""
        self._own = None
        if self.answers == "stored" or self.share == 0 or isinstance(ctx.method, OnlineMethod):
            return
        require_prompts(ctx.sequence.tasks)
        tasks = [replace(task, train=self._rows(task)) for task in self._tasks(ctx)]
        number = sum(len(task.train) for task in tasks) if self.num_answers is None else self.num_answers
        key = (ctx.seed, TAG, ctx.stage.index)
        chosen = choose_rows(tasks, number, key) if tasks else []
        self._own = {}
        limit, temperature = self.max_new_tokens, self.temperature
        for group, row in answered(ctx, chosen, key, limit, temperature) if chosen else ():
            if group.completions[0].ended and _usable(ctx, row):
                self._own.setdefault(group.task, []).append(row)
        if chosen and not self._own:
            asked = ", ".join(task.name for task in tasks)
            raise UserError(
                f"none of {len(chosen)} own answers to prompts of {asked} can be replayed",
                why="they do not end, or are empty",
                fix="raise max_new_tokens, or use answers: stored",
            )

    # --- what is replayed ---------------------------------------------------------------------------------

    def draw(self, ctx: Context, num_rows: int) -> list[tuple[Task, Row]]:
        """``share * num_rows`` rows of earlier tasks (on average, where that is no whole number)."""
        tasks = self._tasks(ctx)
        if not tasks:
            return []
        generator = np.random.default_rng([ctx.seed, TAG, ctx.stage.index, ctx.step])
        wanted = self.share * num_rows
        number, part = int(wanted), wanted % 1
        if part > 0:
            # Rounding by chance: half a row per step is a row every other step, not never.
            number += int(generator.random() < part)
        if number == 0:
            return []
        if self._own is not None:
            ctx.report({"replay/own_answers": (sum(map(len, self._own.values())), 1.0)})
        pick = balanced if self.buffer == "per_task" else uniform
        pools = [(task, self._rows(task)) for task in tasks]
        return [(task, row) for task, row in pick(pools, number, generator) if _usable(ctx, row)]

    def _tasks(self, ctx: Context) -> list[Task]:
        """Earlier tasks with rows to replay."""
        return [task for task in ctx.sequence.tasks if task.name not in ctx.stage.tasks and self._rows(task)]

    def _rows(self, task: Task) -> list[Row]:
        if self._own is not None:
            return self._own.get(task.name, [])
        if task.name not in self._kept:
            ids = set(self.memory.get(task.name, ()))
            self._kept[task.name] = [row for row in task.train if str(row["id"]) in ids]
        return self._kept[task.name]

    # --- memory -------------------------------------------------------------------------------------------

    def after_task(self, ctx: Context) -> None:
        """Keep a sample of the rows just trained on. Evaluation rows are never seen here."""
        if self.buffer == "reservoir" and self.buffer_size is not None:
            seen = [*self.memory, *ctx.stage.tasks]
            self.memory = reservoir(ctx.sequence.tasks, seen, int(self.buffer_size), ctx.seed)
        else:
            for name in ctx.stage.tasks:
                self.memory[name] = sampled(ctx.sequence.task(name), self.buffer_size, ctx.seed, ctx.stage.index)
        self._kept = {}

    def state_dict(self) -> dict[str, Any]:
        """The ids kept of each task."""
        return {"memory": {name: list(ids) for name, ids in self.memory.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory = {name: list(ids) for name, ids in state.get("memory", {}).items()}
        self._kept = {}


def _usable(ctx: Context, row: Row) -> bool:
    """Whether the stage's method can train on the row; one that its own stage left out is left out again."""
    try:
        ctx.method.prepare(row, ctx.tokenizer)
    except UserError:
        return False
    return True
