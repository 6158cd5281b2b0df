"""A source that holds a sequence of tasks: AIF-Gen's file, a folder of folders in veRL's columns, or a name of its own.

Everything that takes a data set asks here whether it is one task or several. What lies on this machine under a name
comes before a named sequence; who wants that one all the same gives it as the sequence and not as a path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from contrl.data import aif_gen
from contrl.data.aif_gen import ContinualTask
from contrl.data.folders import local, splits_of_folder
from contrl.data.named import NAMED, read_named
from contrl.data.sources import read_rows
from contrl.errors import UserError

__all__ = ["ContinualTask", "is_continual", "is_named", "pick", "read_tasks"]

Item = TypeVar("Item")

VERIFIERS = ("countdown",)
"""Data sources whose rows bring their own verifier: the part of veRL's ``data_source`` before a slash or underscore."""


def is_named(source: str) -> bool:
    """Whether ``source`` is one of AIF-Gen's own sequences and nothing of that name lies on this machine."""
    return source in NAMED and local(source) is None


def is_continual(source: str) -> bool:
    """Whether ``source`` holds a sequence of tasks; False for anything that cannot be read, too."""
    return is_named(source) or bool(_task_folders(source)) or aif_gen.is_continual(source)


def read_tasks(
    source: str, index: int | None = None, *, train_split: str = "train", test_split: str | None = "test"
) -> list[ContinualTask]:
    """The tasks of a source, or the one at ``index``, counted from 0.

    Raises:
        UserError: as ``aif_gen.read_tasks`` and ``read_rows``.
    """
    if is_named(source):
        return pick(read_named(source, train_split=train_split, test_split=test_split), index, source)
    if folders := _task_folders(source):
        return [_task(folder, train_split, test_split) for folder in pick(folders, index, source)]
    return aif_gen.read_tasks(source, index, train_split=train_split, test_split=test_split)


def pick(items: list[Item], index: int | None, where: str) -> list[Item]:
    """All, or the one at ``index``. Raises UserError for one that is not there."""
    if index is None:
        return items
    if not 0 <= index < len(items):
        raise UserError(
            f"there is no task {index}: dataset_index must be 0 to {len(items) - 1}",
            where=where,
            why=f"it holds {len(items)} tasks, counted from 0",
        )
    return [items[index]]


# --- folders in veRL's columns ----------------------------------------------------------------------------


def _task_folders(source: str) -> list[Path]:
    """``data/continual/<task>/{train,test}.parquet``: the folders in natural order, [] when it is something else."""
    path = local(source)
    if path is None or not path.is_dir():
        return []
    folders = [folder for folder in path.iterdir() if folder.is_dir() and _is_task(folder)]
    return sorted(folders, key=lambda folder: _natural(folder.name))


def _is_task(folder: Path) -> bool:
    """Whether a folder's train file has veRL's columns; only its header is read."""
    import pyarrow
    import pyarrow.parquet as parquet

    file = folder / "train.parquet"
    if not file.is_file():
        return False
    try:
        return {"prompt", "data_source", "reward_model"} <= set(parquet.read_schema(file).names)
    except (pyarrow.ArrowException, OSError):
        return False


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Numbers in a name by their value: 2 before 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"\d+|\D+", name)]


def _task(folder: Path, train_split: str, test_split: str | None) -> ContinualTask:
    train = read_rows(str(folder), train_split)
    has_test = test_split is not None and test_split in splits_of_folder(folder)
    test = read_rows(str(folder), test_split) if test_split is not None and has_test else []
    notes = () if has_test or test_split is None else (f"{folder.name} has no {test_split} split: nothing to judge by",)
    kinds = {re.split(r"[/_]", str(row.get("data_source")))[0] for row in train}
    verifier = kinds.pop() if len(kinds) == 1 else ""
    return ContinualTask(folder.name, train, test, str(folder), notes, verifier if verifier in VERIFIERS else "")
