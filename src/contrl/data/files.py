"""One file to its rows: jsonl, json, csv, parquet or arrow, each also compressed with gzip.

What cannot be read is named with its file and, in text, its line. Text is decoded as UTF-8 and nothing else:
guessing an encoding would train on wrong letters without a word.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contrl.errors import UserError
from contrl.interfaces import Row

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
GZIP = ".gz"
MARK = b"\xef\xbb\xbf"
"""What spreadsheets put before UTF-8 text."""


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, without that of the compression: ``rows.jsonl.gz`` gives ``.jsonl``."""
    name = path.name.lower().removesuffix(GZIP)
    return Path(name).suffix


def read_file(path: Path, split: str = "train") -> list[Row]:
    """Every row of one file, with ids.

    Args:
        split: which list to take of a JSON object of splits; any other file has only one.

    Raises:
        UserError: as ``read_raw`` and ``with_ids``.
    """
    return with_ids(read_raw(path, split), str(path))


def read_raw(path: Path, split: str = "train") -> list[Any]:
    """The rows of one file as they stand there.

    Raises:
        UserError: a suffix that is no data, a broken file, a line that cannot be read, a split that is not there.
    """
    readers: dict[str, Callable[[Path], list[Any]]] = {
        ".jsonl": _jsonl,
        ".csv": _csv,
        ".parquet": _parquet,
        ".arrow": _arrow,
    }
    suffix = suffix_of(path)
    if suffix == ".json":
        return _one_split(read_json(path), split, path)
    if suffix not in readers:
        what = "a Python program" if suffix == ".py" else f"a {suffix} file" if suffix else "a file without suffix"
        raise UserError(
            f"cannot read {suffix or what}: {what} is no data set",
            where=str(path),
            fix=f"give {', '.join(SUFFIXES)}, each also with {GZIP}",
        )
    return readers[suffix](path)


def splits_of_file(path: Path) -> tuple[str, ...]:
    """The names of a JSON object's splits; none for every other file, which is one split under any name."""
    if suffix_of(path) != ".json":
        return ()
    value = read_json(path)
    return tuple(value) if _has_splits(value) else ()


def with_ids(rows: Sequence[Any], where: str) -> list[Row]:
    """The rows as mappings with a unique string ``id``: their own, or their position.

    Raises:
        UserError: for a row that is no mapping, or an id that occurs twice.
    """
    seen: dict[str, int] = {}
    result: list[Row] = []
    for index, row in enumerate(_mappings(rows, where)):
        identity = str(index if row.get("id") is None else row["id"])
        if identity in seen:
            raise UserError(f"rows {seen[identity]} and {index} have the same id {identity!r}", where=where)
        seen[identity] = index
        result.append({**row, "id": identity})
    return result


def with_unique_ids(rows: Sequence[Any], where: str) -> list[Row]:
    """As ``with_ids``, for rows put together from several files or by others, where ids may occur twice.

    Then every id gets the row's position before it, which is unique and the same at every reading.
    """
    given = [str(index if row.get("id") is None else row["id"]) for index, row in enumerate(_mappings(rows, where))]
    if len(set(given)) < len(given):
        return [{**row, "id": f"{index}:{given[index]}"} for index, row in enumerate(rows)]
    return [{**row, "id": identity} for row, identity in zip(rows, given, strict=True)]


def _mappings(rows: Sequence[Any], where: str) -> Sequence[Any]:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"row {index} is a {type(row).__name__}, not a mapping of columns", where=where)
    return rows


# --- bytes and text -------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    """The content of a file, uncompressed."""
    try:
        if path.suffix.lower() != GZIP:
            return path.read_bytes()
        with gzip.open(path, "rb") as file:
            return file.read()
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"not a gzip file: {error}", where=str(path), fix="name it without .gz, or fetch it anew"
        ) from None
    except EOFError:
        raise UserError("the gzip file ends too early", where=str(path), fix="fetch it anew") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _text(path: Path) -> str:
    content = _bytes(path).removeprefix(MARK)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"not UTF-8 text ({error.reason})", where=f"{path}:{line}", fix="save it as UTF-8") from None


def _loads(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fix = ""
        if line is None and error.msg == "Extra data":
            fix = "a file with one object a line is called .jsonl"
        raise UserError(f"not JSON: {error.msg}", where=f"{path}:{line or error.lineno}", fix=fix) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise UserError(f"JSON that cannot be read: {error}", where=f"{path}:{line or 1}") from None


# --- one reader each ------------------------------------------------------------------------------------


def _jsonl(path: Path) -> list[Any]:
    rows = []
    # Not splitlines(): JSON strings may hold other line separators than the newline.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            row = _loads(line, path, number)
            if not isinstance(row, dict):
                raise UserError(f"a {type(row).__name__}, not a mapping of columns", where=f"{path}:{number}")
            rows.append(row)
    return rows


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises UserError, naming the line, for what is no JSON."""
    return _loads(_text(path), path)


def _has_splits(value: Any) -> bool:
    """Whether a JSON value is an object of lists of rows, and not a single row."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in value.values())
    )


def _one_split(value: Any, split: str, path: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and isinstance(value.get("datasets"), list):
        raise UserError(
            f"holds a sequence of {len(value['datasets'])} tasks, not one data set",
            where=str(path),
            fix="give it as the path of the sequence `dataset`, with dataset_index to pick one task",
        )
    if not _has_splits(value):
        raise UserError(
            f"holds a {type(value).__name__}, not a list of rows",
            where=str(path),
            fix='give [{...}, ...], or {"train": [{...}, ...], "test": [...]}',
        )
    if split not in value:
        raise missing_split(split, tuple(value), str(path))
    return value[split]


def missing_split(split: str, found: Sequence[str], where: str) -> UserError:
    """The error for a split that is not there, with those that are."""
    return UserError(f"has no split {split!r}", where=where, why=f"it has {', '.join(found) or 'none'}")


def _csv(path: Path) -> list[Any]:
    rows = []
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
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
    import pyarrow
    import pyarrow.parquet

    source = pyarrow.BufferReader(_bytes(path)) if path.suffix.lower() == GZIP else path
    try:
        return pyarrow.parquet.read_table(source).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is no UTF-8
        raise _not("a parquet file", path, error) from None


def _arrow(path: Path) -> list[Any]:
    """Both of Arrow's layouts: the file with its footer, and the stream that ``datasets`` writes."""
    import pyarrow

    content = pyarrow.BufferReader(_bytes(path))
    try:
        try:
            table = pyarrow.ipc.open_file(content).read_all()
        except pyarrow.ArrowInvalid:
            content.seek(0)
            table = pyarrow.ipc.open_stream(content).read_all()
        # Arrow trusts what it reads: without this, damaged offsets would be followed out of the file.
        table.validate(full=True)
        return table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _not("an arrow file", path, error) from None


def _not(kind: str, path: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"not {kind}: {reason}", where=str(path), fix="it may be cut off or misnamed: fetch or write it anew"
    )
