"""A run at a glance: what it is, how far it got, what it scored, where its files lie; for ``contrl show`` and ``ls``.

Everything is read from the run folder, finished or not. ``ls`` looks at many folders, so it takes a finished run's
numbers from results.json and computes them only where that file is missing or older than the scores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from contrl.continual.records import read_manifest, read_records
from contrl.continual.results import as_json, read

SAMPLES = "samples"
HEADLINES = ("average", "forgetting")


@dataclass(frozen=True)
class Visit:
    """One stage: its tasks, how far it got (planned, training, trained, done), steps planned where they are known."""

    stage: int
    task: str
    round: int
    state: str
    steps: int | None
    folder: str


@dataclass(frozen=True)
class Overview:
    """What a run folder says of its run, scores aside.

    Attributes:
        seconds: from its start to the last thing it journalled, stops in between included.
        idle: seconds since it last wrote; None when it never did.
    """

    folder: Path
    run: Mapping[str, Any]
    stages: tuple[Visit, ...]
    seconds: float | None
    idle: float | None

    @property
    def status(self) -> str:
        """running, interrupted or finished."""
        return str(self.run.get("status", "unknown"))

    @property
    def num_done(self) -> int:
        """Stages that are trained and scored."""
        return sum(visit.state == "done" for visit in self.stages)

    @property
    def current(self) -> Visit | None:
        """The stage that was begun and is not complete."""
        return next((visit for visit in self.stages if visit.state in ("training", "trained")), None)

    @property
    def strategies(self) -> str:
        """``replay+ewc``."""
        found = self.run.get("strategies") or []
        return "+".join(str(item.get("name", "?")) if isinstance(item, dict) else str(item) for item in found)


def read_overview(folder: Path, now: float | None = None) -> Overview:
    """Read run.json and the journal.

    Raises:
        UserError: the folder is no run, or its journal is damaged.
    """
    run = read_manifest(folder)
    events = read_records(folder / "journal.jsonl", ("stage", "event"))
    times = [float(e["time"]) for e in events if isinstance(e.get("time"), int | float)]
    begun = _created(run)
    last = max(times, default=begun)
    metrics = folder / "metrics.jsonl"
    if run.get("status") == "running" and metrics.is_file():
        last = max(metrics.stat().st_mtime, last or 0.0)
    now = time.time() if now is None else now
    return Overview(
        folder=folder,
        run=run,
        stages=tuple(_visits(run, events)),
        seconds=None if begun is None or not times else max(0.0, max(times) - begun),
        idle=None if last is None else max(0.0, now - last),
    )


def _visits(run: Mapping[str, Any], events: list[dict[str, Any]]) -> list[Visit]:
    found: dict[Any, dict[str, dict[str, Any]]] = {}
    untold = "done" if run.get("status") == "finished" else "planned"
    for event in events:
        found.setdefault(event["stage"], {})[str(event["event"])] = event
    visits = []
    for number, stage in enumerate(run.get("stages") or [{"task": task} for task in run["sequence"]], start=1):
        seen = found.get(number, {})
        steps = next(
            (seen[name]["steps"] for name in ("trained", "resumed_from", "started") if _steps(seen, name)), None
        )
        state = "done" if "saved" in seen else "trained" if "trained" in seen else "training" if seen else untold
        task = str(stage.get("task", ""))
        visits.append(Visit(number, task, int(stage.get("round", 1)), state, steps, str(stage.get("folder", ""))))
    return visits


def _steps(seen: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return isinstance(seen.get(name, {}).get("steps"), int)


def _created(run: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(str(run["created"])).timestamp()
    except (KeyError, ValueError):
        return None


# --- as objects for programs -----------------------------------------------------------------------------


def describe(folder: Path) -> dict[str, Any]:
    """``contrl show RUN --json``: status, what was run, stages, results as in results.json, and where the files are.

    Raises:
        UserError: the folder is no run, or one of its logs is damaged.
    """
    overview = read_overview(folder)
    return {
        **summary(overview),
        "sequence": list(overview.run["sequence"]),
        "order": overview.run.get("order"),
        "stages": [
            {"stage": v.stage, "task": v.task, "round": v.round, "state": v.state, "steps": v.steps}
            for v in overview.stages
        ],
        "command": overview.run.get("command"),
        "weights": overview.run.get("weights"),
        "files": files(overview),
        "results": as_json(read(folder)),
    }


def summary(overview: Overview) -> dict[str, Any]:
    """One entry of ``contrl ls --json``, without its numbers."""
    run = overview.run
    return {
        "folder": str(overview.folder),
        "name": overview.folder.resolve().name,
        "status": overview.status,
        "model": run.get("model"),
        "method": run.get("method"),
        "strategies": run.get("strategies"),
        "seed": run.get("seed"),
        "created": run.get("created"),
        "seconds": overview.seconds,
        "idle_seconds": overview.idle,
        "num_stages": len(overview.stages),
        "num_done": overview.num_done,
    }


def files(overview: Overview) -> dict[str, Any]:
    """Where things are, of those that exist: paths below the run folder, ``samples`` as a number of tables."""
    folder = overview.folder
    named = {
        "report": "report.html",
        "results": "results.json",
        "config": "config.yaml",
        "model": "final",
        "base": "base",
    }
    found: dict[str, Any] = {name: str(folder / path) for name, path in named.items() if (folder / path).exists()}
    if "model" in found and not any((folder / "final").glob("*config.json")):
        del found["model"]
    models = [folder / visit.folder / "final" for visit in overview.stages if visit.folder]
    found["stage_models"] = [str(path) for path in models if path.is_dir()]
    found["samples"] = len(list((folder / SAMPLES).glob("*.parquet")))
    return found


def headlines(overview: Overview) -> dict[str, Any]:
    """average and forgetting as ``{"value", "low", "high", "n"}``; null where they are not defined yet.

    Raises:
        UserError: one of the logs is damaged.
    """
    metrics = _kept(overview) or as_json(read(overview.folder))["metrics"]
    return {name: {key: metrics.get(name, {}).get(key) for key in ("value", "low", "high", "n")} for name in HEADLINES}


def _kept(overview: Overview) -> dict[str, Any] | None:
    """The metrics of results.json, if the run is finished and nothing was scored after it was written."""
    path, scores = overview.folder / "results.json", overview.folder / "scores.jsonl"
    if overview.status != "finished" or not path.is_file():
        return None
    if scores.is_file() and scores.stat().st_mtime > path.stat().st_mtime:
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    metrics = kept.get("metrics") if isinstance(kept, dict) else None
    return metrics if isinstance(metrics, dict) and all(isinstance(m, dict) for m in metrics.values()) else None
