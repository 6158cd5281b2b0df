"""Rows into groups, once per stage and before anything is trained: what cannot be used is counted and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from contrl.errors import UserError
from contrl.interfaces import Group, Method, Row, Task

SHOWN = 3
"""How many unusable rows are named one by one."""


def prepare_row(task: Task, row: Row, method: Method, tokenizer: PreTrainedTokenizerBase) -> Group:
    """One row of a task as a group that knows its task."""
    group = method.prepare(row, tokenizer)
    group.task = task.name
    return group


def prepare_all(
    rows: Sequence[tuple[Task, Row]], method: Method, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> list[Group]:
    """Every usable row as a group; says how many were left out or cut, and which.

    Raises:
        UserError: when no row is usable.
    """
    groups: list[Group] = []
    refused: list[str] = []
    for task, row in rows:
        try:
            groups.append(prepare_row(task, row, method, tokenizer))
        except UserError as error:
            refused.append(f"task {task.name}, row {row['id']}: {error.what}")
    if not groups:
        raise UserError(f"none of {len(rows)} rows can be used", why="; ".join(refused[:SHOWN]))
    if refused:
        say(
            f"{len(refused)} of {len(rows)} rows cannot be used and are left out; the first: "
            + "; ".join(refused[:SHOWN])
        )
    cut = [group for group in groups if any(not completion.ended for completion in group.completions)]
    if cut:
        named = ", ".join(group.row_id for group in cut[:SHOWN])
        say(f"{len(cut)} of {len(groups)} rows are longer than max_length and were cut at their end (rows {named} ...)")
    return groups
