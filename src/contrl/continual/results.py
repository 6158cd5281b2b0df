"""The results matrix of a run folder: read from its append-only logs, written as results.json.

The logs are the truth (scores.jsonl, eval/*.parquet, run.json); results.json is derived and can be made again at any
time. Readers keep the last record of a key and ignore a torn last line, so a run killed while writing still reads.
A score that was not measured is null everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isclose, isfinite, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from contrl.continual.matrix import Z95, Formula, Matrix, Metric, Position, combination, proportion_interval
from contrl.continual.metrics import compute
from contrl.continual.records import SCHEMA_VERSION, read_manifest, read_records, write_atomic
from contrl.errors import UserError

__all__ = ["Cell", "Results", "as_json", "eval_file", "read", "read_manifest", "read_records", "write", "write_atomic"]

CORRECTNESS = ("success", "accuracy")  # metrics whose items are the `correct` column of eval/*.parquet, not `score`
_CHANGE = Formula("change", "R[k, j] - R[last visit of j up to k, j]", True, "difference from just learnt")


@dataclass(frozen=True)
class Cell:
    """One score: mean over ``n`` evaluation items, with its standard error; n and se are None when not recorded."""

    value: float
    se: float | None = None
    n: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval: Wilson's when the score is a share of right answers, else value ± 1.96 se."""
        if self.n and 0.0 <= self.value <= 1.0:
            binomial = sqrt(self.value * (1 - self.value) / self.n)
            # Among scores within 0..1 a 0/1 score has the largest variance there is, so this se tells it apart. The
            # slack is for writers that divide by n - 1.
            if self.se is not None and isclose(self.se, binomial, rel_tol=1 / self.n + 1e-3, abs_tol=1e-9):
                return proportion_interval(self.value, self.n)
        return None if self.se is None else (self.value - Z95 * self.se, self.value + Z95 * self.se)


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
        if record["metric"] == judged.get(record["task"]) and (cell := _cell(record, notes)) is not None
    }
    matrix = tuple(tuple(found.get((row, task)) for task in tasks) for row in range(len(stages) + 1))
    items: dict[Position, Mapping[str, float]] = {}
    for row, cells in enumerate(matrix):
        for column, (task, cell) in enumerate(zip(tasks, cells, strict=True)):
            if cell is not None:
                scores = _item_scores(eval_file(folder, row, task), judged[task], cell, notes)
                items.update({(row, column): scores} if scores else {})
    return Results(
        folder=folder,
        run=run,
        metric=" / ".join(dict.fromkeys(judged[task] for task in tasks if task in judged)) or (metric or "score"),
        tasks=tasks,
        rows=("start", *_labels(run, stages)),
        trained=((), *(tuple(tasks.index(name) for name in names) for names in stages)),
        matrix=matrix,
        items=items,
        notes=tuple(notes),
    )


def eval_file(folder: Path, stage: int, task: str) -> Path:
    """Where the item scores of a task after a stage lie (stage 0: before training)."""
    return folder / "eval" / f"{stage}-{task}.parquet"


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
        names = {task: list(dict.fromkeys(recorded.get(task, []))) for task in tasks}
        return {task: "success" if "success" in known else known[0] for task, known in names.items() if known}
    judged = {task: metric for task in tasks if metric in recorded.get(task, [])}
    if not judged:
        known = sorted({name for names in recorded.values() for name in names})
        raise UserError(
            f"no score is called {metric!r}",
            where=str(folder / "scores.jsonl"),
            fix=f"recorded: {', '.join(known)}" if known else "nothing was scored yet",
        )
    return judged


def _cell(record: Mapping[str, Any], notes: list[str]) -> Cell | None:
    """The record as a cell; None for a null score, and, with a note, for one that is not a finite number."""
    value, se, n = record.get("value"), record.get("se"), record.get("n")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        notes.append(f"the score of {record['task']} after stage {record['stage']} is {value!r}: taken as not measured")
        return None
    known = isinstance(se, int | float) and isfinite(se)
    return Cell(
        float(value), float(se) if known and se is not None else None, n if isinstance(n, int) and n > 0 else None
    )


def _item_scores(path: Path, metric: str, cell: Cell, notes: list[str]) -> dict[str, float] | None:
    """Item id -> score of one cell; None when they are not there or their mean is not the recorded score.

    An item without a score is left out, as it was left out of the recorded mean.
    """
    if not path.is_file():
        return None
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(path, columns=["id", "score", "correct"]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these two
        notes.append(f"{path.name} cannot be read ({str(error).splitlines()[0]}): its items are not paired")
        return None
    scored = [row for row in rows if row["score"] is not None]
    for name in ("correct", "score") if metric in CORRECTNESS else ("score",):
        scores = {str(row["id"]): float(row[name]) for row in scored if row[name] is not None}
        mean = fmean(scores.values()) if scores else None
        if mean is not None and len(scores) == len(scored) and isclose(mean, cell.value, rel_tol=1e-4, abs_tol=1e-4):
            return scores
    notes.append(f"the items of {path.name} do not average to the recorded {metric}: they are not paired")
    return None


# --- writing -----------------------------------------------------------------------------------------


def write(run_folder: str | Path) -> Path:
    """Write results.json of a run folder (atomically) and return its path."""
    results = read(run_folder)
    path = results.folder / "results.json"
    text = json.dumps(as_json(results), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, f"{text}\n".encode())
    return path


def as_json(results: Results) -> dict[str, Any]:
    """results.json as an object: the matrix with null for what was not measured, and every metric with its formula."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": results.run.get("status"),
        "metric": results.metric,
        "tasks": list(results.tasks),
        "rows": list(results.rows),
        "trained": [[results.tasks[column] for column in columns] for columns in results.trained],
        "matrix": [
            [cell and {"value": cell.value, "se": cell.se, "n": cell.n} for cell in row] for row in results.matrix
        ],
        "final_row": results.rows[results.end] if results.end >= 0 else None,
        "metrics": {
            name: {
                "value": metric.value,
                "low": metric.low,
                "high": metric.high,
                "n": metric.n,
                "formula": metric.formula,
                "higher_is_better": metric.higher_is_better,
                "basis": metric.basis,
            }
            for name, metric in results.metrics.items()
        },
        "notes": list(results.notes),
    }
