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

    ``method`` and ``training`` override fields of the run's method and training arguments for this task. Of a task that
    ``recalls`` the eval rows are train rows on purpose: what is judged is memory.
    """

    name: str
    train: Sequence[Row]
    eval: Sequence[Row] = ()
    reward: Reward | None = None
    metric: Metric | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    recalls: bool = False


LONGEST_FOLDER = 120
"""Characters of the tasks' names in the name of a stage's folder; file systems take 255 bytes."""


@dataclass(frozen=True)
class Stage:
    """One visit to one or more tasks. ``index`` counts from 1; 0 is the start, before any training."""

    index: int
    tasks: tuple[str, ...]
    round: int = 1

    @property
    def folder(self) -> str:
        """Name of the stage's folder inside ``stages/``."""
        return f"{self.index}-{'+'.join(self.tasks)[:LONGEST_FOLDER]}"


@dataclass(frozen=True)
class TaskSequence:
    """Ordered tasks and the stages that visit them; ``sequence[i]`` is a Task, never a row."""

    tasks: tuple[Task, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def in_order(cls, tasks: Sequence[Task], rounds: int = 1) -> TaskSequence:
        """Each task once per round, in the order given."""
        return cls.staged(tasks, [(task.name,) for task in tasks], rounds)

    @classmethod
    def staged(cls, tasks: Sequence[Task], groups: Sequence[Sequence[str]], rounds: int = 1) -> TaskSequence:
        """The stages of every round, given the names of the tasks of each.

        ``tasks`` are put in the order in which they are first learnt; those of no stage, which are only judged, last.
        """
        count = len(groups)
        stages = [
            Stage(r * count + i + 1, tuple(names), r + 1) for r in range(rounds) for i, names in enumerate(groups)
        ]
        learnt = list(dict.fromkeys(name for names in groups for name in names))
        places = {name: place for place, name in enumerate(learnt)}
        return cls(tuple(sorted(tasks, key=lambda task: places.get(task.name, len(places)))), tuple(stages))

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, name: str) -> Task:
        """The task called ``name``. Raises KeyError when there is none."""
        return {task.name: task for task in self.tasks}[name]
