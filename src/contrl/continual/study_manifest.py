"""study.json: what a study consists of, for whoever runs, lists, compares or draws it.

Written once, before the first run: arms, seeds, orders and the runs they make. What became of a run is not repeated
here but told by its folder (run.json), or by ``failed/<id>.json`` beside it. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from contrl.continual.records import write_atomic
from contrl.errors import UserError

FILE, VERSION = "study.json", 1
RUNS, FAILED, CLAIMS, LOGS = "runs", "failed", "claims", "logs"
"""Folders beside study.json: of runs, of why a run failed, of who runs what, of what a run printed."""


@dataclass(frozen=True)
class Point:
    """Where an arm lies on a trade-off curve: the ``value`` of the ``field`` that ``curve`` is about."""

    curve: str
    field: str
    value: float


@dataclass(frozen=True)
class Arm:
    """One thing that is compared with others.

    Attributes:
        name: unique in the study.
        method: of its runs.
        strategies: the names of its strategies; ``("naive",)`` without any.
        fields: what sets it apart, as it is written: dotted path -> text.
        point: its place on a trade-off curve, if it is part of one.
        refused: why it cannot be run; "" when it can.
    """

    name: str
    method: str
    strategies: tuple[str, ...]
    fields: Mapping[str, str] = field(default_factory=dict)
    point: Point | None = None
    refused: str = ""


@dataclass(frozen=True)
class PlannedRun:
    """One run: ``id`` is the digest of its configuration, ``folder`` is relative to the study's."""

    id: str
    arm: str
    seed: int
    order: str
    folder: str


@dataclass(frozen=True)
class Manifest:
    """A whole study. ``command`` repeats or continues it."""

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    orders: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    command: str = ""

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def is_study(folder: Path) -> bool:
    """Whether a folder is a study's."""
    return (folder / FILE).is_file()


def write(folder: Path, manifest: Manifest) -> None:
    """Write study.json, whole or not at all; a run's entry repeats what its arm is, for a reader without code."""
    runs = []
    for run in manifest.runs:
        arm = manifest.arm(run.arm)
        runs.append(asdict(run) | {"method": arm.method, "strategies": arm.strategies, "fields": dict(arm.fields)})
    told = {"schema_version": VERSION, **asdict(manifest), "runs": runs}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, json.dumps(told, ensure_ascii=False, allow_nan=False, indent=1).encode())


def read(folder: Path) -> Manifest:
    """The study in a folder.

    Raises:
        UserError: it holds none, or one that this version cannot read.
    """
    path = folder / FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["schema_version"] > VERSION:
            raise ValueError(f"schema_version {told['schema_version']}; this contrl reads {VERSION}")
        return Manifest(
            told["name"],
            tuple(_arm(given) for given in told["arms"]),
            tuple(told["seeds"]),
            tuple(told["orders"]),
            tuple(PlannedRun(**{key: run[key] for key in PlannedRun.__dataclass_fields__}) for run in told["runs"]),
            told.get("command", ""),
        )
    except FileNotFoundError:
        raise UserError(f"{folder} is no study", why=f"it holds no {FILE}", fix="contrl run STUDY.yaml") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{FILE} cannot be read", where=str(path), why=str(error)) from None


def state(folder: Path, run: PlannedRun) -> str:
    """``planned``, ``running``, ``interrupted``, ``finished`` or ``failed``, as the files say.

    A run that was killed still says running: who holds it stands in ``claims/``.
    """
    try:
        told = json.loads((folder / run.folder / "run.json").read_text(encoding="utf-8"))
        status = str(told.get("status"))
    except (OSError, ValueError):
        status = "planned"
    return "failed" if status != "finished" and failure(folder, run.id) else status


def failure(folder: Path, run_id: str) -> dict[str, Any]:
    """Why a run failed (``what``, ``exit_code``, ``time``, ``host``); empty when it did not, or runs again."""
    try:
        told = json.loads((folder / FAILED / f"{run_id}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _arm(given: Mapping[str, Any]) -> Arm:
    point = given.get("point")
    return Arm(
        given["name"],
        given["method"],
        tuple(given["strategies"]),
        dict(given["fields"]),
        Point(**point) if point else None,
        given["refused"],
    )
