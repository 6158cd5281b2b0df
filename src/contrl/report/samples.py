"""The same prompt across stages: items that were right when their task was last trained and are wrong at the end.

Numbers say how much was forgotten, answers show how. Only a few items are read and their text is cut, so a run with
a million long completions gives the same small table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrl.continual.results import Results, eval_file

ITEMS_PER_TASK = 3
MAX_TASKS = 8
MAX_CHARACTERS = 400


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt after one stage."""

    row: str
    correct: bool
    completion: str


@dataclass(frozen=True)
class Sample:
    """One prompt and its answers, oldest first."""

    id: str
    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class TaskSamples:
    """The flow of one task's items between two rows, and a few of those that were lost.

    Attributes:
        lost, gained: items right in ``since`` and wrong in ``until``, and the reverse; of ``total`` common items.
    """

    task: str
    since: str
    until: str
    lost: int
    gained: int
    total: int
    samples: tuple[Sample, ...]


def forgotten_samples(results: Results) -> list[TaskSamples]:
    """Per task that was trained before the final row and whose items are recorded in both rows."""
    found: list[TaskSamples] = []
    for column, task in enumerate(results.tasks):
        last = results.numbers.last_visit(column, results.end)
        if last is None or last == results.end or len(found) == MAX_TASKS:
            continue
        before, after = _correct(results, last, task), _correct(results, results.end, task)
        common = [key for key in before if key in after]
        if not any(before[key] or after[key] for key in common):
            continue  # nothing is right or wrong here: no items, or a metric without correctness
        lost = [key for key in common if before[key] and not after[key]]
        gained = sum(after[key] and not before[key] for key in common)
        samples = _samples(results, column, lost[:ITEMS_PER_TASK])
        flow = TaskSamples(task, results.rows[last], results.rows[results.end], len(lost), gained, len(common), samples)
        found.append(flow)
    return found


def cut(text: object) -> str:
    """Text as shown: at most ``MAX_CHARACTERS`` characters, saying how many were left out."""
    text = "" if text is None else str(text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}… ({len(text) - MAX_CHARACTERS} more)"


def _samples(results: Results, column: int, ids: Sequence[str]) -> tuple[Sample, ...]:
    """The chosen items with their answers in the start row, in the rows of the task's visits and in every later one."""
    if not ids:
        return ()
    visits = results.numbers.visits(column)
    rows = sorted({0, *visits, *range(visits[-1], results.end + 1)})
    answers: dict[str, list[Answer]] = {key: [] for key in ids}
    prompts: dict[str, str] = {}
    for row in rows:
        for item in _read(_file(results, row, results.tasks[column]), ["id", "correct", "completion", "prompt"], ids):
            key = str(item["id"])
            answers[key].append(Answer(results.rows[row], bool(item["correct"]), cut(item["completion"])))
            prompts[key] = cut(item["prompt"])
    return tuple(Sample(key, prompts[key], tuple(answers[key])) for key in ids if key in prompts)


def _correct(results: Results, row: int, task: str) -> dict[str, bool]:
    return {str(item["id"]): bool(item["correct"]) for item in _read(_file(results, row, task), ["id", "correct"])}


def _file(results: Results, row: int, task: str) -> Path:
    return eval_file(results.folder, row, task)


def _read(path: Path, columns: list[str], ids: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Rows of an item file; none when it is missing, damaged or lacks a column (``results.notes`` says so)."""
    if not path.is_file():
        return []
    import pyarrow.parquet as parquet

    try:
        filters = None if ids is None else [("id", "in", list(ids))]
        return parquet.read_table(path, columns=columns, filters=filters).to_pylist()
    except (OSError, ValueError, LookupError):
        return []
