"""The same prompts across stages: which items were right after one stage and wrong after another, and how.

Numbers say how much was forgotten, answers show how. Of each task a few items of every kind are shown; their text is
cut, so a run with a million long completions gives the same small page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contrl.continual.results import Results, eval_file

ITEMS_PER_TASK = 12
ANSWERS = 900
"""Answers on a page, all tasks and stages together: more stages show fewer items."""
MAX_TASKS = 8
MAX_CHARACTERS = 400
CUT = "clipped"
"""Column with the share of an item's answers that were cut at the length limit."""

KINDS = {
    "lost": "right when its task was last trained, wrong at the end",
    "regained": "lost in between, right again at the end",
    "gained": "wrong before training, right at the end",
    "kept": "right throughout",
    "never": "never right",
    "unstable": "right after some stages, wrong after others",
}
# How many of a task's items each kind gets at most, in the order in which they are shown.
_SHARES = {"lost": 5, "gained": 3, "regained": 1, "unstable": 1, "never": 1, "kept": 1}


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt after one stage; ``cut`` is None where nobody recorded it.

    ``stage`` is the row of the matrix, ``is_same`` whether the answer is that of the row before.
    """

    stage: int
    row: str
    correct: bool
    completion: str
    cut: bool | None = None
    is_same: bool = False


@dataclass(frozen=True)
class Sample:
    """One prompt and its answers, oldest first; ``kind`` is one of ``KINDS``, ``words`` tells its flow."""

    id: str
    prompt: str
    kind: str
    words: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class TaskSamples:
    """One task's items.

    Attributes:
        since, until: rows between which the flow is counted: the task's last training (else the start) and the end.
        lost, gained: items right in ``since`` and wrong in ``until``, and the reverse; of ``total`` common items.
    """

    task: str
    since: str
    until: str
    lost: int
    gained: int
    total: int
    samples: tuple[Sample, ...]


def item_samples(results: Results) -> list[TaskSamples]:
    """Every task whose items are recorded as right or wrong, in the order of the matrix."""
    found: list[TaskSamples] = []
    for column, task in enumerate(results.tasks[:MAX_TASKS]):
        right = {row: flags for row in range(results.end + 1) if (flags := _correct(results, row, task))}
        if len(right) < 2 or not any(any(flags.values()) for flags in right.values()):
            continue  # nothing is right or wrong here: no items, or a metric without correctness
        rows = sorted(right)
        last = results.numbers.last_visit(column, results.end)
        since = last if last in right and last != rows[-1] else rows[0]
        until = rows[-1]
        common = [key for key in right[rows[0]] if all(key in flags for flags in right.values())]
        kinds = {key: _kind([right[row][key] for row in rows], rows.index(since)) for key in common}
        shown = _choose(kinds, _room(results))
        found.append(
            TaskSamples(
                task=task,
                since=results.rows[since],
                until=results.rows[until],
                lost=sum(right[since][key] and not right[until][key] for key in common),
                gained=sum(right[until][key] and not right[since][key] for key in common),
                total=len(common),
                samples=_samples(results, column, rows, {key: kinds[key] for key in shown}),
            )
        )
    return found


def cut(text: object) -> str:
    """Text as shown: at most ``MAX_CHARACTERS`` characters, saying how many were left out."""
    text = "" if text is None else str(text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}… ({len(text) - MAX_CHARACTERS} more)"


def flow_words(right: Sequence[bool], stages: Sequence[int]) -> str:
    """``right after stage 1, wrong after stage 3``: the last loss or gain, else that nothing changed.

    Args:
        right: whether the answer was right, in order.
        stages: the row of the matrix of each; 0 is before training.
    """
    turns = [index for index in range(1, len(right)) if right[index] != right[index - 1]]
    if not turns:
        return "right throughout" if right[0] else "never right"
    losses = [index for index in turns if right[index - 1]]
    turn = losses[-1] if losses and not right[-1] else turns[-1]
    before, after = ("right", "wrong") if right[turn - 1] else ("wrong", "right")
    return f"{before} {_after(stages[turn - 1])}, {after} {_after(stages[turn])}"


def _after(stage: int) -> str:
    return f"after stage {stage}" if stage else "before training"


def _kind(right: Sequence[bool], since: int) -> str:
    """``since``: position of the row of the task's last training."""
    if all(right):
        return "kept"
    if not any(right):
        return "never"
    if right[since] and not right[-1]:
        return "lost"
    if right[since] and right[-1] and not all(right[since:]):
        return "regained"
    return "gained" if right[-1] and not right[0] else "unstable"


def _room(results: Results) -> int:
    """Items of a task that a page has room for."""
    answers = max(1, results.end + 1) * min(len(results.tasks), MAX_TASKS)
    return max(3, min(ITEMS_PER_TASK, ANSWERS // answers))


def _choose(kinds: Mapping[str, str], room: int) -> list[str]:
    """Item ids: the first few of every kind, in file order, the lost ones first."""
    chosen: list[str] = []
    for kind, share in _SHARES.items():
        chosen += [key for key in kinds if kinds[key] == kind][:share]
    return chosen[:room]


def _samples(results: Results, column: int, rows: Sequence[int], kinds: Mapping[str, str]) -> tuple[Sample, ...]:
    """The chosen items with their answers after every stage."""
    if not kinds:
        return ()
    answers: dict[str, list[Answer]] = {key: [] for key in kinds}
    prompts: dict[str, str] = {}
    wanted = ["id", "correct", "completion", "prompt", CUT]
    for row in rows:
        for item in _read(eval_file(results.folder, row, results.tasks[column]), wanted, list(kinds)):
            key, text = str(item["id"]), cut(item["completion"])
            is_same = bool(text) and bool(answers[key]) and answers[key][-1].completion == text
            share = item.get(CUT)
            is_cut = share > 0 if isinstance(share, int | float) else None
            answers[key].append(Answer(row, results.rows[row], bool(item["correct"]), text, is_cut, is_same))
            prompts[key] = cut(item["prompt"])
    return tuple(
        Sample(key, prompts[key], kind, flow_words([a.correct for a in given], [a.stage for a in given]), tuple(given))
        for key, kind in kinds.items()
        if (given := answers[key]) and key in prompts
    )


def _correct(results: Results, row: int, task: str) -> dict[str, bool]:
    items = _read(eval_file(results.folder, row, task), ["id", "correct"])
    return {str(item["id"]): bool(item["correct"]) for item in items if item["correct"] is not None}


def _read(path: Path, columns: list[str], ids: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Rows of an item file; none when it is missing, damaged or lacks a column (``results.notes`` says so).

    The column ``CUT`` may be missing: older runs do not have it.
    """
    if not path.is_file():
        return []
    import pyarrow.parquet as parquet

    try:
        filters = None if ids is None else [("id", "in", list(ids))]
        known = set(parquet.read_schema(path).names)
        wanted = [name for name in columns if name in known or name != CUT]
        return parquet.read_table(path, columns=wanted, filters=filters).to_pylist()
    except (OSError, ValueError, LookupError):
        return []
