"""What is learnt: rows, rewards, metrics, tasks, and the stages that visit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Row = Mapping[str, Any]
"""One example as it was read: column name -> value. Rows carry a stable ``id``."""


class Reward(Protocol):
    """Scores completions. TRL's contract: keyword call with lists of equal length, one entry a completion.

    Dataset columns arrive as keyword lists. ``None`` in the answer means "not applicable".
    """

    def __call__(self, *, prompts: list, completions: list, **columns: list) -> Sequence[float | None]: ...


@dataclass(frozen=True)
class Metric:
    """How a task is judged, kept separate from the reward it is trained by; higher is better.

    ``score`` has the reward's contract and sees the policy's completions; None instead of a function means
    teacher-forced scoring by ``Method.judge``. An item counts as correct when its score reaches ``correct_at``.
    """

    name: str
    score: Reward | None = None
    correct_at: float = 1.0


LIKELIHOOD = Metric("logp")
"""Teacher-forced: the metric of a task that names neither metric nor reward."""


@dataclass(frozen=True)
class Task:
    """What is learnt in a stage: rows to train on, rows to judge by, the reward and the metric.

    ``method`` and ``training`` override fields of the run's method and training arguments for this task.
    """

    name: str
    train: Sequence[Row]
    eval: Sequence[Row] = ()
    reward: Reward | None = None
    metric: Metric | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One visit to one or more tasks. ``index`` counts from 1; 0 is the start, before any training."""

    index: int
    tasks: tuple[str, ...]
    round: int = 1

    @property
    def folder(self) -> str:
        """Name of the stage's folder inside ``stages/``."""
        return f"{self.index}-{'+'.join(self.tasks)}"


@dataclass(frozen=True)
class TaskSequence:
    """Ordered tasks and the stages that visit them; ``sequence[i]`` is a Task, never a row."""

    tasks: tuple[Task, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def in_order(cls, tasks: Sequence[Task], rounds: int = 1) -> TaskSequence:
        """Each task once per round, in the order given."""
        names = [task.name for task in tasks]
        stages = [Stage(r * len(names) + i + 1, (name,), r + 1) for r in range(rounds) for i, name in enumerate(names)]
        return cls(tuple(tasks), tuple(stages))

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, name: str) -> Task:
        """The task called ``name``. Raises KeyError when there is none."""
        return {task.name: task for task in self.tasks}[name]
