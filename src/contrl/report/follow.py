"""The logs of a run as they grow: what was appended since the last look, and what is known by now.

Logs are append-only, so a position in the file is all there is to remember; a line that is still being written is left
for the next look. A file that became shorter, or another file, was begun anew, and so is what was known of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from contrl.errors import UserError
from contrl.report.curves import JUDGED
from contrl.report.overview import Overview, read_overview

Place = tuple[int, int]
"""Stage and step."""


class Tail:
    """One log file, read from where it was left."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.lines, self._file = path, 0, 0, 0
        self.restarted = False

    def new(self) -> list[dict[str, Any]]:
        """Complete records since the last call; ``restarted`` says whether they are from the file's beginning again.

        Raises:
            UserError: a complete line is not a JSON object; names file and line.
        """
        try:
            about = self.path.stat()
        except FileNotFoundError:
            return []
        self.restarted = self.offset > 0 and (about.st_ino != self._file or about.st_size < self.offset)
        if self.restarted:
            self.offset = self.lines = 0
        self._file = about.st_ino
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [record for line in whole.split(b"\n")[:-1] if (record := self._record(line)) is not None]

    def _record(self, line: bytes) -> dict[str, Any] | None:
        self.lines += 1
        if not line.strip():
            return None
        try:
            record = json.loads(line.decode("utf-8"))
            if not isinstance(record, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            raise UserError("not a JSON record", where=f"{self.path}:{self.lines}", why=str(error)) from error
        return record


@dataclass
class Followed:
    """A run that is looked at again and again.

    Attributes:
        overview: run.json and journal, as of the last look.
        values: logged name -> (stage, step) -> value, None where it was not a finite number.
        steps: stage -> last step seen.
        scores: (task, metric) -> stage -> value.
    """

    folder: Path
    overview: Overview
    values: dict[str, dict[Place, float | None]] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    scores: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._metrics, self._scores = Tail(self.folder / "metrics.jsonl"), Tail(self.folder / "scores.jsonl")

    @classmethod
    def of(cls, folder: Path) -> Followed:
        """A run folder before the first look. Raises UserError when it is none."""
        return cls(folder, read_overview(folder))

    @property
    def is_running(self) -> bool:
        """Whether more may come."""
        return self.overview.status == "running"

    def look(self) -> list[dict[str, Any]]:
        """Read on; returns the new records, each with its ``kind``: metric, score.

        Raises:
            UserError: a log is damaged.
        """
        self.overview = read_overview(self.folder)
        metrics, scores = self._metrics.new(), self._scores.new()
        if self._metrics.restarted or self._scores.restarted:
            self.values, self.steps, self.scores = {}, {}, {}
        found = [{"kind": "metric", **r} for r in metrics if self._take_metric(r)]
        found += [{"kind": "score", **r} for r in scores if self._take_score(r)]
        # A NaN that an older writer let through would be no JSON.
        return [record | {"value": _finite(record.get("value"))} for record in found]

    def _take_metric(self, record: dict[str, Any]) -> bool:
        stage, step, name, value = (record.get(key) for key in ("stage", "step", "name", "value"))
        if not isinstance(stage, int) or not isinstance(step, int) or not isinstance(name, str):
            return False  # an event, not a number
        if not name.startswith(JUDGED):
            self.values.setdefault(name, {})[stage, step] = _finite(value)
            self.steps[stage] = max(step, self.steps.get(stage, 0))
        return True

    def _take_score(self, record: dict[str, Any]) -> bool:
        task, metric, stage = (record.get(key) for key in ("task", "metric", "stage"))
        value = _finite(record.get("value"))
        if isinstance(stage, int) and value is not None:
            self.scores.setdefault((str(task), str(metric)), {})[stage] = value
        return isinstance(stage, int)

    # --- what is shown ------------------------------------------------------------------------------------

    def last(self) -> dict[str, float]:
        """The newest value of every name in the newest stage that logged it."""
        found = {name: series[max(series)] for name, series in self.values.items()}
        return {name: value for name, value in found.items() if value is not None}

    def starts(self) -> dict[int, int]:
        """Stage -> steps of all stages before it."""
        starts, total = {}, 0
        for stage in sorted(self.steps):
            starts[stage] = total
            total += self.steps[stage]
        return starts

    def curve(self, name: str) -> list[list[tuple[float, float]]]:
        """(step over all stages, value) of every stage, in order; values that are no numbers are left out."""
        starts = self.starts()
        parts: dict[int, list[tuple[float, float]]] = {stage: [] for stage in starts}
        for (stage, step), value in sorted(self.values.get(name, {}).items()):
            if value is not None:
                parts[stage].append((float(starts[stage] + step), value))
        return [part for part in parts.values() if part]


def _finite(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if known else None
