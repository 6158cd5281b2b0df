"""Prepared rows on disk, found by the content of everything they follow from; parquet, never pickle.

The key covers the rows, the method and its fields, the tokenizer itself and the code that encodes, so a file is
never stale. A file that is broken or of other rows is ignored and written anew; a folder that cannot be written
only costs time. The whole folder may be deleted at any moment.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

import contrl
from contrl.errors import UserError
from contrl.interfaces import Completion, Group, Method, Row

_ERROR = ("what", "where", "why", "fix")


def cache_folder() -> Path:
    """What is kept between runs (tokens, reference rows, base stages): ``CONTRL_CACHE``, or ``~/.cache/contrl``."""
    return Path(os.environ.get("CONTRL_CACHE") or Path.home() / ".cache" / "contrl")


class TokenCache:
    """One file: the groups of certain rows, made by a certain method with a certain tokenizer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, rows: Sequence[Row], method: Method, tokenizer: PreTrainedTokenizerBase) -> TokenCache | None:
        """The file of these rows; None where equal inputs need not give equal groups.

        That is: for a method outside the package, whose code may change under the same name; a tokenizer written in
        Python; and a chat template that writes today's date.
        """
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not type(method).__module__.startswith("contrl.") or not isinstance(backend, tokenizers.Tokenizer):
            return None
        template = json.dumps(tokenizer.chat_template)
        if not hasattr(type(method), "__dataclass_fields__") or "strftime_now" in template:
            return None
        digest = hashlib.sha256()
        for part in itertools.chain(_code(method), _settings(method, tokenizer, backend, template), map(_text, rows)):
            digest.update(part.encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
        return cls(cache_folder() / "tokens" / f"{digest.hexdigest()[:32]}.parquet")

    def read(self, rows: Sequence[Row]) -> list[Group | UserError] | None:
        """What was written for these rows; None when there is nothing, or nothing that can be used."""
        try:
            table = pyarrow.parquet.read_table(self.path)
            return _unpacked(table, rows)
        except (OSError, pyarrow.ArrowException, KeyError, ValueError, TypeError):
            return None

    def write(self, made: Sequence[Group | UserError], rows: Sequence[Row]) -> None:
        """Keep the groups, whole or not at all; what the columns cannot hold exactly is not kept."""
        partial = None
        try:
            table = _packed(made)
            if not _same(_unpacked(table, rows), made):
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own for each writer; the rename puts a whole file in the place of another whole file.
            with tempfile.NamedTemporaryFile(dir=self.path.parent, suffix=".part", delete=False) as file:
                partial = Path(file.name)
                pyarrow.parquet.write_table(table, file, compression="zstd")
            partial.replace(self.path)
        except (OSError, pyarrow.ArrowException):
            if partial is not None:
                partial.unlink(missing_ok=True)


# --- the key ---------------------------------------------------------------------------------------------


def _code(method: Method) -> Iterable[str]:
    """The source files that decide how a row is encoded, and the versions of what they call."""
    yield f"{contrl.__version__} {transformers.__version__} {tokenizers.__version__}"
    # Every module beside this one and beside the method, because they call each other.
    for folder in sorted({Path(__file__).parent, *(Path(inspect.getfile(kind)).parent for kind in _own(method))}):
        for path in sorted(folder.glob("*.py")):
            yield path.read_text(encoding="utf-8")


def _own(method: Method) -> list[type]:
    return [kind for kind in type(method).__mro__ if kind.__module__.startswith("contrl.")]


def _settings(
    method: Method, tokenizer: PreTrainedTokenizerBase, backend: tokenizers.Tokenizer, template: str
) -> Iterable[str]:
    yield f"{type(method).__module__}:{type(method).__qualname__} {method!r}"
    # Padding and truncation stand before the added tokens; they change with every call and say nothing.
    start, mark, rest = backend.to_str().partition('"added_tokens"')
    yield rest if mark else start
    yield f"{template} {tokenizer.special_tokens_map} {getattr(tokenizer, 'split_special_tokens', None)}"


def _text(row: Row) -> str:
    # In the row's own order, because a template writes a tool's description in that order.
    return json.dumps(row, default=repr)


# --- the columns -----------------------------------------------------------------------------------------


def _packed(made: Sequence[Group | UserError]) -> pyarrow.Table:
    """One row a group; the completions of all groups are flat lists beside their number."""
    columns: dict[str, list[Any]] = {name: [] for name in _schema().names}
    for item in made:
        error = isinstance(item, UserError)
        group = Group("", "", [], []) if isinstance(item, UserError) else item
        columns["error"].append([getattr(item, name) for name in _ERROR] if error else None)
        columns["row_id"].append(group.row_id)
        columns["task"].append(group.task)
        columns["label"].append(group.label)
        columns["margin"].append(group.margin)
        columns["prompt_ids"].append(group.prompt_ids)
        columns["completion_ids"].append([i for completion in group.completions for i in completion.ids])
        columns["lengths"].append([len(completion.ids) for completion in group.completions])
        columns["runs"].append([_runs(completion.trained) for completion in group.completions])
        columns["ended"].append([completion.ended for completion in group.completions])
        columns["weights"].append([completion.weight for completion in group.completions])
    return pyarrow.table(columns, schema=_schema())


def _schema() -> pyarrow.Schema:
    ids, text = pyarrow.list_(pyarrow.int32()), pyarrow.string()
    return pyarrow.schema(
        {
            "error": pyarrow.list_(text),
            "row_id": text,
            "task": text,
            "label": pyarrow.bool_(),
            "margin": pyarrow.float64(),
            "prompt_ids": ids,
            "completion_ids": ids,
            "lengths": ids,
            "runs": pyarrow.list_(ids),
            "ended": pyarrow.list_(pyarrow.bool_()),
            "weights": pyarrow.list_(pyarrow.float64()),
        }
    )


def _runs(trained: list[bool] | None) -> list[int] | None:
    """Lengths of the runs of equal flags, the first one untrained: [T, T, F] is [0, 2, 1]."""
    if trained is None:
        return None
    runs = [(flag, len(list(run))) for flag, run in itertools.groupby(trained)]
    return [0] * bool(runs and runs[0][0]) + [length for _, length in runs]


def _flags(runs: list[int] | None) -> list[bool] | None:
    if runs is None:
        return None
    return [bool(number % 2) for number, length in enumerate(runs) for _ in range(length)]


def _unpacked(table: pyarrow.Table, rows: Sequence[Row]) -> list[Group | UserError]:
    """Inverse of ``_packed``. Raises ValueError when the table is not of these rows."""
    if table.schema != _schema() or len(table) != len(rows):
        raise ValueError("not the table of these rows")
    columns = [_lists(table[name]) if name.endswith("_ids") else table[name].to_pylist() for name in table.column_names]
    result: list[Group | UserError] = []
    for row, (error, row_id, task, label, margin, prompt, ids, lengths, runs, ended, weights) in zip(
        rows, zip(*columns, strict=True), strict=True
    ):
        if error is not None:
            what, where, why, fix = error
            result.append(UserError(what, where=where, why=why, fix=fix))
            continue
        ends = list(itertools.accumulate(lengths, initial=0))
        completions = [
            Completion(ids[start:end], _flags(run), weight, bool(stopped))
            for start, end, run, weight, stopped in zip(ends, ends[1:], runs, weights, ended, strict=False)
        ]
        result.append(Group(row_id, task, prompt, completions, row, label=label, margin=margin))
    return result


def _lists(column: pyarrow.ChunkedArray) -> list[list[int]]:
    """Lists of ids, far faster than item by item."""
    array = column.combine_chunks()
    flat, ends = array.flatten().to_numpy().tolist(), array.value_lengths().to_pylist()
    cuts = list(itertools.accumulate(ends, initial=0))
    return [flat[start:end] for start, end in itertools.pairwise(cuts)]


def _same(read: Sequence[Group | UserError], made: Sequence[Group | UserError]) -> bool:
    return all(
        str(a) == str(b) and type(a) is type(b) if isinstance(a, UserError) or isinstance(b, UserError) else a == b
        for a, b in zip(read, made, strict=True)
    )
