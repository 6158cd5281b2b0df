"""What a pipeline has done: a record for each step in pipeline.json, and what follows from it for the next start.

A record is written before its step begins and again when it is finished, whole or not at all; so wherever a pipeline
is killed, the next start knows whether a folder belongs to this step, to a changed one, or to nobody it knows.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from contrl.continual.records import write_atomic
from contrl.errors import UserError
from contrl.pipeline.steps import Step

FILE, VERSION = "pipeline.json", 1
_JUDGED = re.compile(r"\.?(\d+|start|probe)-.+")
"""What a run keeps under ``eval/``, where a step of that name may lie, too: answers and the scores it started with."""

Action = Literal["skip", "continue", "run", "anew"]


@dataclass(frozen=True)
class Record:
    """What is known of a step that was begun.

    Attributes:
        digest: of the step as it was when it was begun.
        finished: whether it came to its end.
        seconds: spent on it, over all starts that ended by themselves.
        command, folder, model: for a reader.
        numbers: what it came to: name -> value.
    """

    digest: str
    finished: bool = False
    seconds: float = 0.0
    command: str = ""
    folder: str = ""
    model: str = ""
    numbers: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What the next start does with a step, and why."""

    step: Step
    action: Action
    why: str


class State:
    """The records of a pipeline, kept in its folder.

    Raises:
        UserError: the file there is none that this version can read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.records: dict[str, Record] = {}
        if not self.path.exists():
            return
        try:
            given = json.loads(self.path.read_text(encoding="utf-8"))
            if given["schema_version"] > VERSION:
                raise ValueError(f"schema_version {given['schema_version']}; this contrl reads {VERSION}")
            for entry in given["steps"]:
                name = entry.pop("name")
                self.records[name] = Record(**entry)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            fix = "move it away; folders of steps are then unknown, and kept unless --overwrite_output_dir is given"
            raise UserError("this file cannot be read", where=str(self.path), why=str(error), fix=fix) from None

    def keep(self, name: str, record: Record) -> None:
        """Set a step's record and write the file."""
        self.records[name] = record
        entries: list[dict[str, Any]] = [{"name": name} | asdict(record) for name, record in self.records.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema_version": VERSION, "steps": entries}, indent=1, ensure_ascii=False)
        write_atomic(self.path, text.encode())

    def begin(self, step: Step, model: str) -> Record:
        """Note that a step is begun or continued."""
        known = self.records.get(step.name)
        seconds = known.seconds if known is not None and known.digest == step.digest else 0.0
        record = Record(step.digest, False, seconds, step.command, str(step.folder), model)
        self.keep(step.name, record)
        return record

    def end(self, step: Step, seconds: float, numbers: Mapping[str, float | None] | None) -> None:
        """Note how long a step took; ``numbers`` when it is finished, None when it is not."""
        record = replace(self.records[step.name], seconds=round(self.records[step.name].seconds + seconds, 3))
        self.keep(step.name, record if numbers is None else replace(record, finished=True, numbers=dict(numbers)))

    def order(self, names: Sequence[str]) -> None:
        """Put the records of these steps first, in this order."""
        self.records = {name: self.records[name] for name in [*names, *self.records] if name in self.records}


def decide(steps: Sequence[Step], state: State) -> list[Plan]:
    """What is to be done with each step; only reads."""
    plans: dict[str, Plan] = {}
    for step in steps:
        record, lies_there = state.records.get(step.name), bool(own_items(step.folder))
        action: Action
        around = [plan.step.name for plan in plans.values() if plan.action == "anew" and _lies_in(step, plan.step)]
        if around and lies_there:
            action, why = "anew", f"it lies in the folder of {around[0]}"
        elif record is None:
            action, why = ("anew", "its folder holds something else") if lies_there else ("run", "")
        elif record.digest != step.digest:
            changed = [name for name in step.uses if plans[name].action == "anew" or _differs(plans[name].step, state)]
            why = f"{' and '.join(changed)} changed" if changed else "its settings changed"
            action = "anew" if lies_there else "run"
        elif record.finished and _is_whole(step):
            action, why = "skip", "finished"
        elif record.finished:
            action, why = ("anew", "its model is gone") if lies_there else ("run", "its folder is gone")
        else:
            action, why = "continue", "it was begun"
        plans[step.name] = Plan(step, action, why)
    return list(plans.values())


def refuse_to_delete(plans: Sequence[Plan]) -> None:
    """Raise UserError for steps that would replace what lies in their folders."""
    lost = [plan for plan in plans if plan.action == "anew"]
    if not lost:
        return
    raise UserError(
        f"{len(lost)} of the steps must run anew, and their folders are not empty",
        why="\n  ".join(f"{plan.step.name}: {plan.why} ({plan.step.folder})" for plan in lost),
        fix="--overwrite_output_dir deletes these folders and runs them; or give another output_dir",
    )


def clear(folder: Path) -> None:
    """Delete what a step left, but not what the run around it keeps there."""
    for item in own_items(folder):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def own_items(folder: Path) -> list[Path]:
    """What lies in a step's folder and is its own."""
    if not folder.is_dir():
        return [folder] if folder.exists() else []
    shared = folder.name == "eval" and (folder.parent / "run.json").exists()
    return [item for item in sorted(folder.iterdir()) if not (shared and _JUDGED.fullmatch(item.name))]


def _lies_in(step: Step, other: Step) -> bool:
    return other.folder in step.folder.parents


def _differs(step: Step, state: State) -> bool:
    record = state.records.get(step.name)
    return record is None or record.digest != step.digest


def _is_whole(step: Step) -> bool:
    """Whether what a finished step made is still there."""
    if step.output is None:
        return bool(own_items(step.folder))
    return any((step.output / name).exists() for name in ("config.json", "adapter_config.json"))
