"""The files of a run folder as bytes: manifest, append-only JSONL logs, atomic writes.

A log is appended to and never rewritten, so a killed run leaves at most one torn last line. Readers keep the last
record of a key, ignore the torn line and refuse any other damage by file and line. Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from contrl.errors import UserError

SCHEMA_VERSION = 1
EVALUATION = "evaluation"
"""``kind`` in the manifest of a folder that holds results of weights from elsewhere, and no run to go on with."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """run.json of a run folder; raises UserError when the folder is no run or was written by a newer contrl."""
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run folder",
            why="it does not exist" if not folder.exists() else "it holds no run.json",
            fix="give the folder named by --output_dir of `contrl run` or `contrl demo`",
        )
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("run.json cannot be read", where=str(path), why=str(error)) from error
    if not isinstance(run, dict) or not isinstance(run.get("sequence"), list) or not run["sequence"]:
        raise UserError("run.json names no tasks", where=str(path), why="a run has a list `sequence` of task names")
    if not isinstance(run.get("schema_version"), int) or run["schema_version"] > SCHEMA_VERSION:
        raise UserError(
            f"run.json has schema_version {run.get('schema_version')!r}",
            where=str(path),
            why=f"this contrl reads version {SCHEMA_VERSION}",
            fix="read it with the contrl that wrote it, or a newer one",
        )
    return run


def read_records(path: Path, key: Sequence[str]) -> list[dict[str, Any]]:
    """Records of an append-only JSONL log that carry every field of ``key``; of equal keys the last one.

    A last line without its newline that does not parse was cut off by a crash and is ignored; a missing file is an
    empty log. Other records (events such as ``resumed_from``) are left out.

    Raises:
        UserError: a complete line is not a JSON object; names file and line.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    kept: dict[Hashable, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
            if not isinstance(record, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(
                "not a JSON record",
                where=f"{path}:{number}",
                why=str(error),
                fix="remove that line; the records around it are complete",
            ) from error
        if all(name in record for name in key):
            kept[tuple(_hashable(record[name]) for name in key)] = record
    return list(kept.values())


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary name in the same folder, fsync, rename, fsync of the folder."""
    # Random, because on a shared folder two machines may have processes of one number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _hashable(value: Any) -> Hashable:
    return value if isinstance(value, str | int | float | None) else json.dumps(value, sort_keys=True)
