"""Rows from where the user has them: jsonl, json, csv or parquet files, folders with one file per split, a hub.

A row that cannot be read is named with its file and line. Every row gets a stable ``id`` (its own, or its
position), because replay, resume and per-item scores refer to rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contrl.errors import EnvironmentFault, UserError
from contrl.interfaces import Row

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

ENCODING = "utf-8-sig"
"""UTF-8, with or without the mark that spreadsheets put before it."""


def read_rows(source: str, split: str = "train") -> list[Row]:
    """The rows of one split.

    Args:
        source: a file; a folder holding ``<split>.jsonl|json|csv|parquet``; or a hub dataset id.
        split: which split of a folder or hub dataset; a single file has only one.

    Raises:
        UserError: missing file or split, unreadable line, or a row that is not a mapping.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").exists()]
        if not found:
            raise UserError(f"the folder {source} has no split {split!r}", fix=f"put {split}.jsonl or .parquet in it")
        return read_file(found[0])
    if path.exists():
        return read_file(path)
    if path.suffix in SUFFIXES or source.startswith((".", "/", "~")):
        raise UserError(f"there is no file {source}")
    return _from_hub(source, split)


def read_file(path: Path) -> list[Row]:
    """Every row of one file, with ids."""
    readers: dict[str, Callable[[Path], list[Any]]] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        raise UserError(
            f"cannot read {path.suffix or 'a file without suffix'}", where=str(path), fix=", ".join(SUFFIXES)
        )
    try:
        rows = readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error.reason})", where=str(path), fix="save it as UTF-8") from None
    return with_ids(rows, str(path))


def with_ids(rows: Sequence[Any], where: str) -> list[Row]:
    """The rows as mappings with a unique string ``id``: their own, or their position.

    Raises:
        UserError: for a row that is no mapping, or an id that occurs twice.
    """
    seen: dict[str, int] = {}
    result: list[Row] = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"row {index} is a {type(row).__name__}, not a mapping of columns", where=where)
        identity = str(index if row.get("id") is None else row["id"])
        if identity in seen:
            raise UserError(f"rows {seen[identity]} and {index} have the same id {identity!r}", where=where)
        seen[identity] = index
        result.append({**row, "id": identity})
    return result


def _jsonl(path: Path) -> list[Any]:
    rows = []
    with open(path, encoding=ENCODING) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"not JSON: {error.msg}", where=f"{path}:{number}") from None
                if not isinstance(row, dict):
                    raise UserError(f"a {type(row).__name__}, not a mapping of columns", where=f"{path}:{number}")
                rows.append(row)
    return rows


def _json(path: Path) -> list[Any]:
    with open(path, encoding=ENCODING) as file:
        try:
            value = json.load(file)
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    if not isinstance(value, list):
        raise UserError(f"holds a {type(value).__name__}, not a list of rows", where=str(path))
    return value


def _csv(path: Path) -> list[Any]:
    rows = []
    with open(path, encoding=ENCODING, newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                # DictReader puts surplus values under None and fills missing ones with None.
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise UserError(f"not {columns} values, one for each column", where=f"{path}:{reader.line_num}")
                rows.append(row)
        except csv.Error as error:
            raise UserError(f"not CSV: {error}", where=f"{path}:{reader.line_num + 1}", fix="use jsonl") from None
    return rows


def _parquet(path: Path) -> list[Any]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"not a parquet file: {str(error).splitlines()[0]}", where=str(path)) from None


def _from_hub(source: str, split: str) -> list[Row]:
    import datasets

    try:
        dataset = datasets.load_dataset(source, split=split)
    except Exception as error:  # datasets raises many kinds, all of which mean "not to be had"
        raise EnvironmentFault(
            f"the dataset {source!r} is no local file and could not be had from the hub",
            why=(str(error).strip().splitlines() or [""])[0],
            fix="give a local file or folder",
        ) from error
    return with_ids([dict(row) for row in dataset], source)


def hold_out(rows: Sequence[Row], size: int | float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into train and eval: a fraction below 1, or a number of rows; a function of the seed alone."""
    number = round(len(rows) * size) if isinstance(size, float) and size < 1 else int(size)
    if not 0 < number < len(rows):
        raise UserError(f"cannot hold out {size} of {len(rows)} rows")
    chosen = set(np.random.default_rng(seed).permutation(len(rows))[:number].tolist())
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]


def fingerprint(rows: Sequence[Row]) -> str:
    """A hash of the rows' content, for the manifest."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def overlap(train: Sequence[Row], held_out: Sequence[Row]) -> int:
    """How many evaluation rows also stand in the training rows, by content without the id."""

    def content(row: Row) -> str:
        return json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True, default=str)

    known = {content(row) for row in train}
    return sum(content(row) in known for row in held_out)
