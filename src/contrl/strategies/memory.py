"""Which rows replay keeps, and how it draws from them.

Ids are kept, no copies. All of it is a function of the seed, the tasks and the generator that is given: a resumed run
keeps and draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contrl.interfaces import Row, Task

Pools = Sequence[tuple[Task, Sequence[Row]]]
"""Earlier tasks, each with the rows that are kept of it: at least one."""

TAG = 0x5EB1A7
"""Separates replay's random numbers from everyone else's."""


def sampled(task: Task, size: int | float | None, seed: int, stage: int) -> list[str]:
    """A uniform sample of the task's training rows, in their order.

    Args:
        size: how many; below 1 which share of them; None, or more than there are, takes all.
    """
    ids = [str(row["id"]) for row in task.train]
    if size is None:
        return ids
    number = int(size) if size >= 1 else max(1, round(size * len(ids)))
    if number < len(ids):
        generator = np.random.default_rng([seed, TAG, stage])
        ids = [ids[i] for i in sorted(generator.permutation(len(ids))[:number])]
    return ids


def reservoir(tasks: Sequence[Task], seen: Sequence[str], size: int, seed: int) -> dict[str, list[str]]:
    """A uniform sample of the training rows of all tasks seen, the same as a stream of them would leave.

    Every row has a random number of its own and the ``size`` smallest stay: so row n enters with probability size / n
    and, once pushed out, never comes back (Vitter 1985, by sorting instead of by slots). A task that comes back brings
    no new rows.

    Args:
        tasks: of the sequence; a task's place in it seeds its numbers.
        seen: names of those trained so far.
        size: rows kept in all.
        seed: of the run.

    Returns:
        Ids by task, also of tasks none of whose rows is kept.
    """
    drawn = [
        (float(number), place, row)
        for place, task in enumerate(tasks)
        if task.name in seen
        for row, number in enumerate(np.random.default_rng([seed, TAG, 0, place]).random(len(task.train)))
    ]
    kept: dict[str, list[str]] = {task.name: [] for task in tasks if task.name in seen}
    for _, place, row in sorted(sorted(drawn)[:size], key=lambda entry: entry[1:]):
        kept[tasks[place].name].append(str(tasks[place].train[row]["id"]))
    return kept


def balanced(pools: Pools, number: int, generator: np.random.Generator) -> list[tuple[Task, Row]]:
    """As many rows of each task; the odd ones go to another task each step, so that none is favoured."""
    counts = np.bincount(generator.permutation(number) % len(pools), minlength=len(pools))
    start = int(generator.integers(len(pools)))
    chosen: list[tuple[Task, Row]] = []
    for offset, count in enumerate(counts):
        task, rows = pools[(start + offset) % len(pools)]
        picks = generator.choice(len(rows), size=int(count), replace=int(count) > len(rows))
        chosen += [(task, rows[int(pick)]) for pick in picks]
    return chosen


def uniform(pools: Pools, number: int, generator: np.random.Generator) -> list[tuple[Task, Row]]:
    """Each row as likely as any other."""
    rows = [(task, row) for task, kept in pools for row in kept]
    picks = generator.choice(len(rows), size=number, replace=number > len(rows))
    return [rows[int(pick)] for pick in picks]
