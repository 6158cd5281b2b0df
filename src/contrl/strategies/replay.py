"""Replay: rows of earlier tasks join every step, besides the current ones.

What is kept are references to rows, not copies; under an online method an old prompt is rolled out again, so
the data stay on-policy. The current task loses nothing: a step trains as many of its rows as it would without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contrl.errors import UserError
from contrl.interfaces import Context, Row, Strategy, Task


@dataclass
class Replay(Strategy):
    """Experience replay with a fixed ratio.

    Attributes:
        share: replayed rows per current row; 0.5 adds 16 old prompts to a step of 32.
        buffer_size: rows kept of each task, a uniform sample of its training rows; None keeps all.
    """

    name = "replay"

    share: float = 0.5
    buffer_size: int | None = None
    memory: dict[str, list[str]] = field(default_factory=dict, init=False)
    _kept: dict[str, list[Row]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.share < 0 or (self.buffer_size is not None and self.buffer_size < 1):
            raise UserError("replay needs share >= 0 and buffer_size >= 1 (or none)")

    def draw(self, ctx: Context, num_rows: int) -> list[tuple[Task, Row]]:
        """``share * num_rows`` rows of earlier tasks (on average, where that is no whole number), as many of each."""
        tasks = [task for task in ctx.sequence.tasks if task.name in self.memory and task.name not in ctx.stage.tasks]
        if not tasks:
            return []
        generator = np.random.default_rng([ctx.seed, _TAG, ctx.stage.index, ctx.step])
        wanted = self.share * num_rows
        number, part = int(wanted), wanted % 1
        if part > 0:
            # Rounding by chance: half a row per step is a row every other step, not never.
            number += int(generator.random() < part)
        if number == 0:
            return []
        counts = np.bincount(generator.permutation(number) % len(tasks), minlength=len(tasks))
        start = int(generator.integers(len(tasks)))
        chosen: list[tuple[Task, Row]] = []
        for offset, count in enumerate(counts):
            # The odd rows go to another task each step, so that none is favoured.
            task = tasks[(start + offset) % len(tasks)]
            rows = self._rows(task)
            picks = generator.choice(len(rows), size=int(count), replace=int(count) > len(rows))
            chosen += [(task, rows[int(pick)]) for pick in picks]
        return [(task, row) for task, row in chosen if _usable(ctx, row)]

    def _rows(self, task: Task) -> list[Row]:
        if task.name not in self._kept:
            ids = set(self.memory[task.name])
            self._kept[task.name] = [row for row in task.train if str(row["id"]) in ids]
        return self._kept[task.name]

    def after_task(self, ctx: Context) -> None:
        """Keep a sample of the rows just trained on. Evaluation rows are never seen here."""
        for name in ctx.stage.tasks:
            ids = [str(row["id"]) for row in ctx.sequence.task(name).train]
            if self.buffer_size is not None and self.buffer_size < len(ids):
                generator = np.random.default_rng([ctx.seed, _TAG, ctx.stage.index])
                ids = [ids[i] for i in sorted(generator.permutation(len(ids))[: self.buffer_size])]
            self.memory[name] = ids
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


_TAG = 0x5EB1A7
"""Separates this strategy's random numbers from everyone else's."""
