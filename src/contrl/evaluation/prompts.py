"""The prompts of an evaluation: the first held-out ones of a data set, each question once.

Rows that were trained on would only show how well they were learnt by heart, so of a source with splits it is the test
split, unless another one is named.
"""

from __future__ import annotations

from contrl.data.continual import is_continual, read_tasks
from contrl.data.prompts import to_prompts
from contrl.data.recipes import RECIPES, UNUSABLE
from contrl.data.sources import find_splits, is_mix, mix, read_rows
from contrl.errors import UserError
from contrl.interfaces import Row

TEST = "test"


def read_prompts(
    source: str, number: int, split: str | None = None, dataset_index: int | None = None
) -> tuple[list[Row], list[str]]:
    """The first ``number`` prompts, with ids and every further column.

    Args:
        source: a file, a folder, a named data set, a hub id, or a file of tasks (then of all its tasks in order).
        number: how many; where there are fewer, all.
        split: default: test; a file that has no splits is taken whole.
        dataset_index: of a file of tasks only this one, from 0.

    Returns:
        The rows, and printable lines about what was left out.

    Raises:
        UserError, EnvironmentFault: as ``contrl.data.sources.read_rows``; no such split; no prompt.
    """
    rows, notes = _rows(source, split, dataset_index)
    unusable = sum(row.get(UNUSABLE) is not None for row in rows)
    if unusable:
        notes.append(f"{unusable} rows cannot be used and are left out")
    rows, repeated = to_prompts([row for row in rows if row.get(UNUSABLE) is None])
    notes += repeated
    without = next((row for row in rows if row.get("prompt") is None), None)
    if without is not None:
        raise UserError(
            f"row {without['id']} has no prompt to answer",
            where=source,
            why=f"its columns are {', '.join(sorted(set(without) - {'id'}))}",
            fix="give rows with `prompt`, or pairs or chats, of which the question is taken",
        )
    if not rows:
        raise UserError("there are no prompts", where=source)
    if len(rows) < number:
        notes.append(f"{source} has {len(rows)} prompts, not {number}: all are taken")
    return rows[:number], notes


def _rows(source: str, split: str | None, dataset_index: int | None) -> tuple[list[Row], list[str]]:
    if is_continual(source):
        tasks = read_tasks(source, dataset_index, test_split=split or TEST)
        several = len(tasks) > 1
        rows = [{**row, "id": f"{t.name}/{row['id']}"} if several else row for t in tasks for row in t.test]
        return rows, []
    if dataset_index not in (None, 0):
        raise UserError(f"{source} has no tasks to choose from", fix="leave --dataset_index out")
    splits = find_splits(source)
    if splits and (split or TEST) not in splits:
        raise UserError(
            f"{source} has no split {split or TEST!r}", why=f"it has {', '.join(splits)}", fix="name one with --split"
        )
    if is_mix(source) or source in RECIPES:
        return mix(source, split or TEST)
    rows = list(read_rows(source, (split or TEST) if splits else "train"))
    return rows, [] if splits else [f"{source} has no splits: all of its rows are taken for held out"]
