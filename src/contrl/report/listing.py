"""Many runs as a table: those below a folder (``contrl ls``) and those of a study (``contrl show STUDY``).

A folder that cannot be read is a line with its reason, never the end of the list; a run that a study has planned and
not begun is a line, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contrl.errors import UserError
from contrl.report.numbers import number
from contrl.report.overview import HEADLINES, headlines, read_overview, summary
from contrl.report.terminal import age, columns

MANIFEST, STUDY = "run.json", "study.json"
INSIDE = ("stages", "eval", "samples", "figures", "base", "final", "wandb")
"""Folders of a run in which no other run lies."""


def find_runs(folder: Path) -> Iterator[Path]:
    """Run folders at or below a folder, in order of their names; hidden folders are left out."""
    for place, names, found in os.walk(folder):
        is_run = MANIFEST in found
        if is_run:
            yield Path(place)
        names[:] = sorted(n for n in names if not n.startswith(".") and not (is_run and n in INSIDE))


def entry(folder: Path) -> dict[str, Any]:
    """What ``contrl ls`` says of a run; ``error`` in place of numbers where it cannot be read."""
    try:
        overview = read_overview(folder)
        return summary(overview) | headlines(overview)
    except UserError as error:
        return {"folder": str(folder), "name": folder.resolve().name, "status": "unreadable", "error": str(error)}


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below a folder.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", fix="name the folder that your runs lie in: contrl ls FOLDER")
    return [entry(run) for run in find_runs(folder)]


# --- studies ---------------------------------------------------------------------------------------------


def is_study(folder: Path) -> bool:
    """Whether the folder holds a study and is no run itself."""
    return (folder / STUDY).is_file() and not (folder / MANIFEST).exists()


def read_study(folder: Path) -> dict[str, Any]:
    """study.json with what is known of each of its runs.

    Returns:
        The manifest; its ``runs`` keep what they have (id, arm, seed, order, ...) and gain what ``entry`` says; a run
        that was not begun has status "planned".

    Raises:
        UserError: study.json cannot be read.
    """
    path = folder / STUDY
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        runs = study["runs"]
        planned = [dict(run) for run in runs]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("study.json cannot be read", where=str(path), why=repr(error)) from error
    return study | {"runs": [planned_run | _of_study(folder, planned_run) for planned_run in planned]}


def _of_study(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    place = folder / str(run.get("folder") or Path("runs") / str(run.get("id", "")))
    if not (place / MANIFEST).exists():
        return {"folder": str(place), "status": "planned"}
    return entry(place)


# --- as text -----------------------------------------------------------------------------------------------


def run_table(entries: Sequence[Mapping[str, Any]], below: Path) -> str:
    """The runs as a table, named by their path below a folder; reasons of unreadable ones under it."""
    head = ("run", "method", "strategies", "status", "stages", "average", "forgetting", "age")
    lines = [
        (_path(run, below), str(run.get("method") or "-"), _strategies(run), *_progress(run), *_numbers(run), _age(run))
        for run in entries
    ]
    return "\n".join([columns(head, lines), *_reasons(entries, below)])


def study_table(study: Mapping[str, Any], folder: Path) -> str:
    """The runs of a study as a table: arm, seed and order first."""
    head = ("run", "arm", "seed", "order", "status", "stages", "average", "forgetting", "age")
    runs = study["runs"]
    lines = [
        (
            *(str(run.get("id") or _path(run, folder)), *(_word(run.get(name)) for name in ("arm", "seed", "order"))),
            *(*_progress(run), *_numbers(run), _age(run)),
        )
        for run in runs
    ]
    done = sum(run.get("status") == "finished" for run in runs)
    title = f"{folder.resolve().name}: {done} of {len(runs)} runs finished"
    return "\n".join([title, "", columns(head, lines), *_reasons(runs, folder)])


def _path(run: Mapping[str, Any], below: Path) -> str:
    place = Path(run["folder"])
    return str(place.relative_to(below)) if place.is_relative_to(below) and place != below else str(place)


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "-" if value is None else str(value)


def _strategies(run: Mapping[str, Any]) -> str:
    names = [str(s.get("name", "?")) if isinstance(s, Mapping) else str(s) for s in run.get("strategies") or []]
    return "+".join(names) or "-"


def _progress(run: Mapping[str, Any]) -> tuple[str, str]:
    stages = f"{run['num_done']}/{run['num_stages']}" if "num_stages" in run else "-"
    return str(run.get("status")), stages


def _numbers(run: Mapping[str, Any]) -> list[str]:
    return [scored(run.get(name)) for name in HEADLINES]


def scored(metric: Mapping[str, Any] | None) -> str:
    """``0.31 [0.29, 0.33]``; a dash where it is not known."""
    if not metric or metric.get("value") is None:
        return "-"
    low, high = metric.get("low"), metric.get("high")
    return number(metric["value"]) + ("" if low is None or high is None else f" [{number(low)}, {number(high)}]")


def _age(run: Mapping[str, Any]) -> str:
    return age(run.get("idle_seconds"))


def _reasons(entries: Sequence[Mapping[str, Any]], below: Path) -> list[str]:
    lines = [f"{_path(run, below)}: {run['error']}" for run in entries if run.get("error")]
    return ["", *lines] if lines else []
