"""Rows into groups, once per stage and before anything is trained: what cannot be used is counted and named.

A row that cannot be used stops the run unless the user has said how many may be left out, because a thousand silently
missing rows look like a model that does not learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from contrl.data.chat import check_end_trained, require_end_trained
from contrl.data.recipes import UNUSABLE
from contrl.data.tokens import prepare_rows
from contrl.errors import UserError
from contrl.interfaces import Group, Method, Row, Task

SHOWN = 3
"""How many unusable rows are named one by one."""


def prepare_row(task: Task, row: Row, method: Method, tokenizer: PreTrainedTokenizerBase) -> Group:
    """One row of a task as a group that knows its task. Raises UserError for a row that cannot be used."""
    if row.get(UNUSABLE) is not None:
        raise UserError(str(row[UNUSABLE]))
    group = method.prepare(row, tokenizer)
    group.task = task.name
    return group


def prepare_all(
    rows: Sequence[tuple[Task, Row]],
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
    *,
    max_bad_rows: int = 0,
) -> list[Group]:
    """Every usable row as a group; says how many were left out or cut, and which.

    Args:
        rows: tasks and their rows.
        method: what makes a group of a row.
        tokenizer: of the model.
        say: told in one line what a person should know.
        max_bad_rows: how many rows may be left out.

    Raises:
        UserError: when there is no row, more than ``max_bad_rows`` or all of them cannot be used, or no answer of
            conversations ends with a trained end token.
    """
    if not rows:
        raise UserError("there are no rows to train on", fix="give a data set that is not empty")
    groups: list[Group] = []
    refused: list[str] = []
    for (task, row), made in zip(rows, prepare_rows([row for _, row in rows], method, tokenizer), strict=True):
        if row.get(UNUSABLE) is not None:
            refused.append(f"task {task.name}, row {row['id']}: {row[UNUSABLE]}")
        elif isinstance(made, UserError):
            refused.append(f"task {task.name}, row {row['id']}: {made.what}")
        else:
            made.task = task.name
            groups.append(made)
    first = "; ".join(refused[:SHOWN])
    if not groups:
        raise UserError(f"none of {len(rows)} rows can be used", why=first)
    if len(refused) > max_bad_rows:
        raise UserError(
            f"{len(refused)} of {len(rows)} rows cannot be used",
            why=f"the first: {first}",
            fix=f"mend them, or --max_bad_rows {len(refused)} to leave them out",
        )
    if refused:
        say(f"{len(refused)} of {len(rows)} rows cannot be used and are left out; the first: {first}")
    _tell_cut(groups, say)
    require_end_trained(groups, tokenizer)
    warning = check_end_trained(groups, tokenizer)
    if warning:
        say(warning)
    return groups


def _tell_cut(groups: Sequence[Group], say: Callable[[str], None]) -> None:
    cut = [group for group in groups if any(not completion.ended for completion in group.completions)]
    if cut:
        named = ", ".join(group.row_id for group in cut[:SHOWN])
        say(f"{len(cut)} of {len(groups)} rows are longer than max_length and were cut at their end (rows {named} ...)")
