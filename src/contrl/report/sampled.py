"""A few answers to read in a terminal: the newest table of rollouts; where nothing is sampled, the last evaluation's.

Text of a model is data: shown in one line, cut, without control characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contrl.errors import UserError
from contrl.report.overview import SAMPLES, read_overview
from contrl.report.terminal import clean, one_line

PROMPT, COMPLETION = 160, 240
"""Characters shown of each."""
_TABLE = re.compile(r"(\d+)-(.+)\.parquet")


def newest(folder: Path, count: int) -> dict[str, Any]:
    """The answers of the newest table of a run.

    Returns:
        ``{"file", "stage", "step", "total", "answers"}``: the first ``count`` rows of ``total``; no step for
        those of an evaluation.

    Raises:
        UserError: the folder is no run, it holds no answers, or the table cannot be read.
    """
    overview = read_overview(folder)
    tables = [(int(m[1]), int(m[2]), path) for path, m in _named(folder / SAMPLES) if m[2].isdigit()]
    if tables:
        stage, step, path = max(tables)
        return {"file": str(path), "stage": stage, "step": step, **_read(path, count)}
    for stage, path in sorted(((int(m[1]), path) for path, m in _named(folder / "eval")), reverse=True):
        found = _read(path, count)
        if any(answer.get("completion") for answer in found["answers"]):
            return {"file": str(path), "stage": stage, "step": None, **found}
    raise UserError(
        f"{folder} holds no sampled answers",
        why=f"{overview.run.get('method')} learns from given answers, and its tasks are judged without sampling any"
        if overview.stages and overview.num_done
        else "nothing was sampled yet",
        fix="online methods write some every log_samples_every steps (0 writes none)",
    )


def text(found: Mapping[str, Any]) -> str:
    """The answers as lines, those of one prompt under it."""
    step = f"step {found['step']}" if found["step"] is not None else "the evaluation"
    lines = [f"stage {found['stage']}, {step}: {len(found['answers'])} of {found['total']} answers of {found['file']}"]
    asked = None
    for answer in found["answers"]:
        key = (answer.get("task"), answer.get("id"))
        if key != asked:
            asked = key
            task = f"{clean(str(answer['task']))} · " if answer.get("task") else ""
            lines += ["", f"{task}{one_line(str(answer.get('prompt') or ''), PROMPT)}"]
        lines.append(f"  {_marks(answer)}  {one_line(str(answer.get('completion') or ''), COMPLETION)}")
    return "\n".join(lines)


def _marks(answer: Mapping[str, Any]) -> str:
    """``reward 0.50  advantage -0.10  cut``, or ``right`` and ``wrong`` of judged ones."""
    parts = [_number(name, answer[name]) for name in ("reward", "advantage") if name in answer]
    if not parts:
        parts = [_number("score", answer.get("score")), "right" if answer.get("correct") else "wrong"]
    return "  ".join(parts + (["cut"] if answer.get("ended") is False else []))


def _number(name: str, value: Any) -> str:
    return f"{name} {value:.2f}" if isinstance(value, int | float) else f"{name} -"


def _named(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    found = ((path, _TABLE.fullmatch(path.name)) for path in sorted(folder.glob("*.parquet")))
    return [(path, match) for path, match in found if match]


def _read(path: Path, count: int) -> dict[str, Any]:
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these two
        raise UserError("the table cannot be read", where=str(path), why=str(error).splitlines()[0]) from error
    answers: Sequence[dict[str, Any]] = table.slice(0, count).to_pylist()
    return {"total": table.num_rows, "answers": list(answers)}
