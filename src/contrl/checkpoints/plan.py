"""The plan by which saved weights are judged: a run's own, or one in which every saved row is a stage of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from contrl.checkpoints.asked import Asked
from contrl.config import RunConfig, SequenceConfig
from contrl.continual.plan import Plan
from contrl.continual.processes import Ranks
from contrl.errors import UserError
from contrl.experiment import build_tasks
from contrl.interfaces import Stage, Task, TaskSequence
from contrl.models.load import load_tokenizer
from contrl.planning import build_plan, usable


def plan_of(asked: Asked, ranks: Ranks, say: Callable[[str], None]) -> Plan:
    """How training would have judged; of a run of ours its own plan."""
    config = asked.resolved.config
    tasks = build_tasks(config, say)
    if not asked.fills:
        tasks = [replace(task, train=()) for task in tasks]
    empty = [task.name for task in tasks if not task.eval]
    if empty:
        raise UserError(
            f"there are no rows to judge {', '.join(empty)} by",
            where=_source(config),
            fix="name the split with --dataset_test_split, or hold rows out with --eval_size",
        )
    sequence = TaskSequence(tuple(tasks), tuple(_stages(asked, tasks)))
    plan = build_plan(config, sequence, ranks.world_size)
    sequence = usable(sequence, plan, load_tokenizer(config.model), say)
    return replace(plan, sequence=sequence, evaluates=True, at_start=True)


def _source(config: RunConfig) -> str:
    return str(config.tasks.fields.get("path", config.tasks.name)) if isinstance(config.tasks, SequenceConfig) else ""


def _stages(asked: Asked, tasks: Sequence[Task]) -> Iterator[Stage]:
    """Every row as a stage, with those tasks of the data that it trained, as far as the folder tells."""
    names = [task.name for task in tasks]
    own = asked.saved.tasks
    if set(own) & set(names) and (others := [name for name in names if name not in own]):
        raise UserError(
            f"the data hold tasks of the run and others: {', '.join(others)}",
            where=str(asked.saved.folder),
            why=f"the run's are {', '.join(own)}; in one matrix no metric would be about either",
            fix="evaluate them apart: the run's own tasks, and the others with another --output_dir",
        )
    numbers = _numbers(asked.resolved.config, names)
    for row in asked.saved.rows:
        trained = tuple(name for name in row.tasks or () if name in names)
        if row.dataset is not None:
            trained = tuple(name for number, name in numbers.items() if number == row.dataset)
            if not trained and "dataset_index" not in _chosen(asked.resolved.config):
                raise UserError(
                    f"{row.name} belongs to task {row.dataset}, counted from 0, and the data have {len(names)} tasks",
                    where=str(asked.saved.folder),
                    why=f"tasks of the data: {', '.join(names)}",
                    fix="give the file of tasks that these checkpoints were trained on",
                )
        yield Stage(row.index, trained, row.round)


def _chosen(config: RunConfig) -> dict[str, Any]:
    fields = config.tasks.fields if isinstance(config.tasks, SequenceConfig) else {}
    return {name: value for name, value in fields.items() if value is not None}


def _numbers(config: RunConfig, names: Sequence[str]) -> dict[int, str]:
    """The number of each task in its file -> its name."""
    first = int(_chosen(config).get("dataset_index", 0))
    return dict(enumerate(names, start=first))
