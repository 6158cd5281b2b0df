"""What users call a data set, as tasks: one data set is a sequence of one, a list of them a sequence.

Rows are read whole, because a step's batches need all lengths and a resumed run the same rows; of a stream as many are
taken as ``max_steps`` can visit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from contrl.data.files import with_unique_ids
from contrl.data.sources import read_rows
from contrl.errors import UserError
from contrl.interfaces import LIKELIHOOD, Method, Row, Task

ALONE = "train"
"""The task's name where there is only one data set."""

_HELD_OUT = ("test", "validation", "eval", "val")


@dataclass(frozen=True)
class Reader:
    """How rows are read.

    Attributes:
        text_field: the column that holds plain text, which becomes ``text``.
        formatting: makes the text of a row, or None.
        most: rows to take of a stream; None where its length is not limited by the steps.
    """

    text_field: str = "text"
    formatting: Callable[[Any], Any] | None = None
    most: int | None = None

    def rows(self, dataset: Any, where: str) -> list[Row]:
        """The rows of one data set.

        Raises:
            UserError: when it is none, or a stream without end.
        """
        if isinstance(dataset, str):
            found: Iterable[Any] = read_rows(dataset)
        elif isinstance(dataset, IterableDataset):
            found = self._taken(dataset, where)
        elif isinstance(dataset, Dataset):
            found = dataset.to_list()
        elif isinstance(dataset, Iterable) and not isinstance(dataset, Mapping):
            found = dataset
        else:
            fix = "give a datasets.Dataset, a list of dicts, or a list of data sets"
            raise UserError(f"{where} is a {type(dataset).__name__}, no data set", fix=fix)
        rows = with_unique_ids(list(found), where)
        if not rows:
            raise UserError(f"{where} has no rows")
        return [self._formatted(row, where) for row in rows]

    def _taken(self, stream: IterableDataset, where: str) -> list[Any]:
        if self.most is None:
            raise UserError(f"{where} is a stream and max_steps is not set", fix="set max_steps, or load it whole")
        return list(itertools.islice(stream, self.most))

    def _formatted(self, row: Row, where: str) -> Row:
        if self.formatting is not None:
            text = self.formatting(row)
            if not isinstance(text, str):
                what = f"formatting_func gives a {type(text).__name__}, not text, for row {row['id']}"
                raise UserError(what, where=where, fix="write it for one row: it gets a dict and returns a string")
            return {"id": row["id"], "text": text}
        if self.text_field != "text" and self.text_field in row:
            return {name: value for name, value in row.items() if name != self.text_field} | {
                "text": row[self.text_field]
            }
        return row


def is_sequence(dataset: Any) -> bool:
    """Whether what was given are several data sets, each a task."""
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        return False
    if isinstance(dataset, Mapping):
        return True
    if not isinstance(dataset, list | tuple):
        return False
    return bool(dataset) and not isinstance(dataset[0], Mapping)


def make_tasks(train: Any, held_out: Any, reader: Reader) -> list[Task]:
    """The tasks of what a trainer was given.

    Args:
        train: a data set, its splits, a list of data sets or Task objects, or data sets by name.
        held_out: one data set, or by name; for several tasks one for each, in order or by the tasks' names.
        reader: how rows are read.

    Raises:
        UserError: for anything else.
    """
    if isinstance(train, DatasetDict | IterableDatasetDict):
        train, held_out = _split(train, held_out)
    if not is_sequence(train):
        return [Task(ALONE, reader.rows(train, "train_dataset"), held_rows(held_out, reader))]
    named = dict(train) if isinstance(train, Mapping) else {f"task{i}": given for i, given in enumerate(train)}
    if not isinstance(train, Mapping):
        named = {given.name if isinstance(given, Task) else name: given for name, given in named.items()}
        if len(named) < len(train):
            raise UserError("two tasks have the same name", fix="name each differently")
    held = _held_by_task(held_out, list(named))
    return [_task(name, given, held.get(name), reader) for name, given in named.items()]


def _task(name: str, given: Any, held: Any, reader: Reader) -> Task:
    where = f"task {name}"
    if isinstance(given, Task):
        task = replace(given, train=with_unique_ids(given.train, where), eval=with_unique_ids(given.eval, where))
    else:
        if isinstance(given, DatasetDict):
            given, held = _split(given, held)
        task = Task(name, reader.rows(given, where))
    if held is not None:
        task = replace(task, eval=reader.rows(held, f"{where}, evaluation"))
    return task


def _split(splits: Any, held_out: Any) -> tuple[Any, Any]:
    if "train" not in splits:
        fix = 'give one split, as in dataset["train"]; or a list of data sets, each a task'
        raise UserError(f"the data set has the splits {', '.join(splits)}, and no train", fix=fix)
    found = next((splits[name] for name in _HELD_OUT if name in splits), None)
    return splits["train"], found if held_out is None else held_out


def held_rows(held_out: Any, reader: Reader) -> list[Row]:
    """Evaluation rows; of several named data sets all rows, each with its name as ``source``."""
    if held_out is None:
        return []
    if not isinstance(held_out, Mapping):
        return reader.rows(held_out, "eval_dataset")
    rows: list[Row] = []
    for name, dataset in held_out.items():
        part = reader.rows(dataset, f"eval_dataset {name}")
        rows += [{**row, "id": f"{name}/{row['id']}", "source": name} for row in part]
    return rows


def _held_by_task(held_out: Any, names: Sequence[str]) -> dict[str, Any]:
    if held_out is None:
        return {}
    if isinstance(held_out, Mapping):
        unknown = [name for name in held_out if name not in names]
        if unknown:
            raise UserError(f"eval_dataset has {', '.join(unknown)}", why=f"the tasks are {', '.join(names)}")
        return dict(held_out)
    if not isinstance(held_out, list | tuple) or len(held_out) != len(names):
        raise UserError(
            f"there are {len(names)} tasks and eval_dataset is not {len(names)} data sets",
            fix="give a list with one data set for each task, or a dict from the tasks' names",
        )
    return dict(zip(names, held_out, strict=True))


def as_method_takes(task: Task, method: Method, say: Callable[[str], None]) -> Task:
    """The task with its rows as the method wants them, judged by the method where nothing else judges it."""
    train, held_out = method.rows(task.train, say), method.rows(task.eval, lambda text: None)
    if task.train and not train:
        raise UserError(f"no row of {task.name} is left to train on")
    return replace(task, train=train, eval=held_out, metric=task.metric or LIKELIHOOD)
