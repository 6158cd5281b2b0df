"""Joint training: every stage trains on the rows of all tasks so far, the arm that has nothing to forget.

What it scores is what a strategy could reach at best, at the price of keeping all data and training on it again. It is
no upper bound by law: tasks that want opposite things are learnt worse together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from contrl.interfaces import Context, Row, Strategy, Task

_HAS_ALL = "joint already trains on all rows of earlier tasks"


@dataclass
class Joint(Strategy):
    """The rows of the stage and of other tasks, each judged and rewarded by its own task.

    Attributes:
        data: "seen": of this and all earlier stages; "all": of the whole sequence from the first stage on.
    """

    name = "joint"
    conflicts: ClassVar[dict[str, str]] = {"replay": _HAS_ALL, "adapters": "its tasks share their weights"}

    data: Literal["seen", "all"] = "seen"

    def rows(self, ctx: Context, rows: list[tuple[Task, Row]]) -> list[tuple[Task, Row]]:
        """The stage's own rows and those of the other tasks."""
        others = [task for task in ctx.sequence.tasks if task.name not in ctx.stage.tasks]
        if self.data == "seen":
            others = ctx.earlier_tasks()
        return [*rows, *((task, row) for task in others for row in task.train)]
