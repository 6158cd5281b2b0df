"""The results matrix of a run folder: read from its append-only logs, written as results.json.

The logs are the truth (scores.jsonl, eval/*.parquet, run.json); results.json is derived and can be made again at any
time. Readers keep the last record of a key and ignore a torn last line, so a run killed while writing still reads.
A score that was not measured is null everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from contrl.continual.cells import Cell, Items, eval_file, read_cell, read_items
from contrl.continual.document import as_json
from contrl.continual.matrix import Formula, Matrix, Metric, Position, combination
from contrl.continual.metrics import compute
from contrl.continual.records import read_manifest, read_records, write_atomic
from contrl.errors import UserError

__all__ = ["Cell", "Results", "as_json", "eval_file", "read", "read_manifest", "read_records", "write", "write_atomic"]

LOWER_IS_BETTER = ("loss",)
"""Recorded beside the scores; a matrix of them would turn every formula round."""
_CHANGE = Formula("change", "R[k, j] - R[last visit of j up to k, j]", True, "difference from just learnt")


@dataclass(frozen=True)
class Results:
    """What a run folder says about scores.

    Attributes:
        run: run.json as it is.
        metric: name of the scores in the matrix; several names joined by " / " when tasks are judged differently.
        tasks: the columns: the sequence's tasks, each once, in order of first visit.
        rows: "start", then "<stage>-<task>" for every planned stage, trained or not yet.
        trained: for each row the columns its stage trains; ``()`` for "start".
        matrix: ``matrix[row][column]``, None where nothing was measured.
        items: (row, column) -> item id -> score, where eval/*.parquet holds them and agrees with the matrix.
        correct: (row, column) -> item id -> whether it was right, where the task says what is right.
        notes: what a reader must know: item files that could not be used, scores that are no numbers.
    """

    folder: Path
    run: Mapping[str, Any]
    metric: str
    tasks: tuple[str, ...]
    rows: tuple[str, ...]
    trained: tuple[tuple[int, ...], ...]
    matrix: tuple[tuple[Cell | None, ...], ...]
    items: Mapping[Position, Mapping[str, float]]
    correct: Mapping[Position, Mapping[str, bool]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.run.get("status") == "finished"

    @cached_property
    def end(self) -> int:
        """The row the metrics call final; -1 if nothing was scored.

        Of a finished run the last row. Of any other the last stage with every task scored, else the last with every
        task trained so far (an evaluation that skips tasks not seen yet): a run in progress shows figures.
        """
        if self.finished:
            return len(self.rows) - 1
        everything = set(range(len(self.tasks)))
        for only_seen in (False, True):
            for row in range(len(self.rows) - 1, 0, -1):
                seen = {column for trained in self.trained[: row + 1] for column in trained}
                if all(self.matrix[row][column] is not None for column in (seen if only_seen else everything)):
                    return row
        return 0 if any(self.matrix[0]) else -1

    @cached_property
    def numbers(self) -> Matrix:
        """Rows up to ``end`` as the input of the metrics."""
        rows = self.matrix[: self.end + 1]
        return Matrix(
            scores=[[cell.value if cell else None for cell in row] for row in rows],
            trained=self.trained[: self.end + 1],
            se=[[cell.se if cell else None for cell in row] for row in rows],
            counts=[[cell.n if cell else None for cell in row] for row in rows],
            items=self.items,
            correct=self.correct,
        )

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Every metric by name; values are None where a cell they need is missing."""
        return compute(self.numbers)

    def change(self, row: int, column: int) -> Metric | None:
        """Score in this row minus the score just after the task's latest visit before it, with its interval.

        None for a task not trained yet, or trained in this very row: there is nothing to compare with.
        """
        last = self.numbers.last_visit(column, row) if row <= self.end else None
        if last is None or last == row:
            return None
        return combination(self.numbers, {(row, column): 1.0, (last, column): -1.0}, "change", _CHANGE)


# --- reading -----------------------------------------------------------------------------------------


def read(run_folder: str | Path, metric: str | None = None) -> Results:
    """Read the scores of a run folder, finished or not.

    Args:
        metric: which recorded metric fills the matrix. Default: for each task "success" if it was recorded, else the
            first metric that was.

    Raises:
        UserError: the folder is no run, one of its logs is damaged, or no task has a score under ``metric``.
    """
    folder = Path(run_folder)
    run = read_manifest(folder)
    tasks = tuple(dict.fromkeys(run["sequence"]))
    stages = _stages(run, tasks, folder)
    records = read_records(folder / "scores.jsonl", key=("stage", "task", "metric"))
    judged = _headline_metrics(records, tasks, metric, folder)
    notes: list[str] = []
    found = {
        (record["stage"], record["task"]): cell
        for record in records
        if record["metric"] == judged.get(record["task"]) and (cell := read_cell(record, notes)) is not None
    }
    matrix = tuple(tuple(found.get((row, task)) for task in tasks) for row in range(len(stages) + 1))
    items: dict[Position, Items] = {}
    for row, cells in enumerate(matrix):
        for column, (task, cell) in enumerate(zip(tasks, cells, strict=True)):
            if cell is not None:
                items[row, column] = read_items(eval_file(folder, row, task), judged[task], cell, notes)
    return Results(
        folder=folder,
        run=run,
        metric=" / ".join(dict.fromkeys(judged[task] for task in tasks if task in judged)) or (metric or "score"),
        tasks=tasks,
        rows=("start", *_labels(run, stages)),
        trained=((), *(tuple(tasks.index(name) for name in names) for names in stages)),
        matrix=matrix,
        items={place: found.scores for place, found in items.items() if found.scores},
        correct={place: found.correct for place, found in items.items() if found.correct},
        notes=tuple(notes),
    )


def _stages(run: Mapping[str, Any], tasks: Sequence[str], folder: Path) -> list[tuple[str, ...]]:
    """The tasks each planned stage trains, stage 1 first. A joint stage names its tasks as a list or as a+b."""
    stages: list[tuple[str, ...]] = []
    for row, stage in enumerate(run.get("stages") or [{"task": task} for task in run["sequence"]], start=1):
        name = str(stage.get("task", ""))
        names = stage.get("tasks")
        if names is None:
            names = [name] if name in tasks else name.split("+")
        unknown = [name for name in names if name not in tasks]
        if unknown or stage.get("stage", row) != row:
            raise UserError(
                f"stage {row} does not fit the sequence: {stage}",
                where=str(folder / "run.json"),
                why=f"stages count from 1 and train tasks of the sequence ({', '.join(tasks)})",
            )
        stages.append(tuple(names))
    return stages


def _labels(run: Mapping[str, Any], stages: Sequence[tuple[str, ...]]) -> list[str]:
    """What each row is called: by the tasks it trained, or, of weights of which nothing tells that, by their folder."""
    names = [str(stage.get("task", "")) for stage in run.get("stages") or ()]
    return [f"{row}-{'+'.join(tasks) or names[row - 1]}" for row, tasks in enumerate(stages, start=1)]


def _headline_metrics(
    records: Sequence[Mapping[str, Any]], tasks: Sequence[str], metric: str | None, folder: Path
) -> dict[str, str]:
    """Task -> the metric that fills its column."""
    recorded: dict[str, list[str]] = {}
    for record in records:
        recorded.setdefault(record["task"], []).append(record["metric"])
    if metric is None:
        own = [record for record in records if "beside" not in record]
        names = {task: list(dict.fromkeys(r["metric"] for r in own if r["task"] == task)) for task in tasks}
        return {task: "success" if "success" in known else known[0] for task, known in names.items() if known}
    if metric in LOWER_IS_BETTER:
        raise UserError(
            f"a matrix of {metric} would call every gain a loss",
            why="all formulas take it that higher is better",
            fix="logp is its negative",
        )
    judged = {task: metric for task in tasks if metric in recorded.get(task, [])}
    if not judged:
        known = sorted({name for names in recorded.values() for name in names})
        raise UserError(
            f"no score is called {metric!r}",
            where=str(folder / "scores.jsonl"),
            fix=f"recorded: {', '.join(known)}" if known else "nothing was scored yet",
        )
    return judged


# --- writing -----------------------------------------------------------------------------------------


def write(run_folder: str | Path) -> Path:
    """Write results.json of a run folder (atomically) and return its path."""
    results = read(run_folder)
    path = results.folder / "results.json"
    text = json.dumps(as_json(results), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, f"{text}\n".encode())
    return path
