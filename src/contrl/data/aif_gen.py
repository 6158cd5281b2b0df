"""AIF-Gen's continual files: one JSON object whose ``datasets`` are the tasks of a sequence, in order.

A task is ``{"task": {"domain", "objective", "preference"}, "train": [rows], "test": [rows]}``. Two tasks may differ
in what they are about or only in what is preferred, so names begin with the number of the task.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from contrl.data.files import GZIP, MARK, read_json, suffix_of, with_ids
from contrl.data.folders import CONTINUAL_FILES, local
from contrl.data.hub import continual_file, is_name
from contrl.data.recipes import RECIPES
from contrl.errors import UserError
from contrl.interfaces import Row

LONGEST_NAME = 24
"""Characters of a domain in a task's name; names become folders."""

_HEAD = 4096
_OPENING = re.compile(r'\s*\{\s*"datasets"\s*:\s*\[')


class ContinualTask(NamedTuple):
    """One task of a sequence: its rows by split, what it asks for in a sentence, what to say of rows left out.

    ``verifier`` names the reward that its rows bring; "" none.
    """

    name: str
    train: list[Row]
    test: list[Row]
    description: str
    notes: tuple[str, ...] = ()
    verifier: str = ""


def is_continual(source: str) -> bool:
    """Whether ``source`` holds a sequence of tasks; False for anything that cannot be read, too."""
    return _file(source) is not None


def read_tasks(
    source: str, index: int | None = None, *, train_split: str = "train", test_split: str | None = "test"
) -> list[ContinualTask]:
    """The tasks of a continual file, or the one at ``index``, counted from 0.

    Args:
        source: the file (also .gz), a folder or a hub repository with ``dataset.json`` or ``data.json``.
        train_split, test_split: the keys of each task that hold its rows; no ``test_split``, no test rows.

    Raises:
        UserError: naming file, task and row of what is wrong.
    """
    path = _file(source)
    if path is None:
        raise UserError(
            f"{source} holds no sequence of tasks", fix='an object {"datasets": [{"task", "train", "test"}]}'
        )
    entries = read_json(path)["datasets"]
    if not entries:
        raise UserError("the list of tasks is empty", where=str(path))
    chosen = range(len(entries))
    if index is not None:
        if not 0 <= index < len(entries):
            raise UserError(
                f"there is no task {index}: dataset_index must be 0 to {len(entries) - 1}",
                where=str(path),
                why=f"it holds {len(entries)} tasks, counted from 0",
            )
        chosen = range(index, index + 1)
    splits = (train_split, test_split)
    return [_task(entries[number], number, splits, str(path)) for number in chosen]


def _task(entry: Any, number: int, splits: tuple[str, str | None], where: str) -> ContinualTask:
    where = f"{where}, task {number}"
    if not isinstance(entry, Mapping):
        raise UserError(f"a {type(entry).__name__}, not an object with task, train and test", where=where)
    train, test = (_rows(entry, split, where) if split is not None else [] for split in splits)
    about = entry.get("task")
    about = about if isinstance(about, Mapping) else {}
    return ContinualTask(_name(about, number), train, test, _description(about))


def _rows(entry: Mapping[str, Any], split: str, where: str) -> list[Row]:
    rows = entry.get(split)
    if not isinstance(rows, list):
        found = [str(name) for name, value in entry.items() if isinstance(value, list)]
        raise UserError(f"has no list {split!r}", where=where, why=f"lists found: {', '.join(found) or 'none'}")
    if not rows:
        raise UserError(f"{split} is empty", where=where, fix=f"give it rows, or name another split than {split!r}")
    for index, row in enumerate(rows):
        here = f"{where}, {split} row {index}"
        if not isinstance(row, dict):
            raise UserError(f"a {type(row).__name__}, not an object with prompt, chosen and rejected", where=here)
        if ("chosen" in row) != ("rejected" in row):
            absent = "rejected" if "chosen" in row else "chosen"
            raise UserError(f"has no {absent!r}", where=here, why=f"it has {', '.join(sorted(row))}")
    return with_ids(rows, f"{where}, {split}")


def _name(about: Mapping[str, Any], number: int) -> str:
    """ "0-cooking": the number makes it unique, the domain readable."""
    domain = about.get("domain")
    names = [domain] if isinstance(domain, str) else list(domain) if isinstance(domain, Mapping) else []
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join(str(name) for name in names).lower())
    slug = slug[:LONGEST_NAME].strip("-")
    return f"{number}-{slug}" if slug else str(number)


def _description(about: Mapping[str, Any]) -> str:
    parts = [str(about[key]).strip() for key in ("objective", "preference") if about.get(key)]
    return " | preferred: ".join(parts)


# --- where the file is --------------------------------------------------------------------------------------


def _file(source: str) -> Path | None:
    """The continual file that ``source`` stands for, or None when it is something else."""
    if source in RECIPES or not source.strip():
        return None
    path = local(source)
    if path is None:
        path = continual_file(source) if is_name(source) and suffix_of(Path(source)) != ".json" else None
        return path if path is not None and _holds_tasks(path) else None
    if path.is_dir():
        files = [path / name for name in CONTINUAL_FILES if (path / name).is_file()]
        return next((file for file in files if _holds_tasks(file)), None)
    return path if _holds_tasks(path) else None


def _holds_tasks(path: Path) -> bool:
    """By its first characters where they decide it, else by all of it."""
    if suffix_of(path) != ".json":
        return False
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == GZIP else open(path, "rb") as file:
            head = file.read(_HEAD).removeprefix(MARK).decode("utf-8", "ignore")
    except (OSError, EOFError, zlib.error):
        return False
    if _OPENING.match(head):
        return True
    if not head.lstrip().startswith("{") or ('"datasets"' not in head and len(head) < _HEAD // 4):
        return False
    try:
        value = read_json(path)
    except UserError:
        return False
    return isinstance(value, dict) and isinstance(value.get("datasets"), list)
