"""The artefacts of the continual Countdown experiment, made from a run folder: models, logs, metrics as JSON.

Everything comes from the run's records, nothing from console text. What was not recorded at a step is null there: it is
never 0 and never another step's value. Artefacts say which run and size they are of; another run's are not replaced.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from contrl.continual.movement import weight_change
from contrl.continual.records import read_manifest, read_records, write_atomic
from contrl.continual.results import read
from contrl.engine.checkpoint import whole_folder
from contrl.errors import UserError
from contrl.models.folders import weights_folder

DEFINITIONS = {
    "success_rate": "share of the sampled completions that are solved (reward 1.0): verifier/success",
    "avg_loss": "loss/policy_avg where the method records it (ppo: the policy's clipped loss), else loss",
    "avg_grad_norm": "grad_norm: norm of the gradient before clipping",
    "avg_response_length": "completions/mean_length: tokens of a completion",
    "weight_change": "sum over tensors of |final - initial| / sum of |initial|, initial and final of this stage",
    "step": "optimizer steps of the stage",
}
"""What each key of the JSON files means."""
RECORDED = {
    "success_rate": ("verifier/success",),
    "avg_loss": ("loss/policy_avg", "loss"),
    "avg_grad_norm": ("grad_norm",),
    "avg_response_length": ("completions/mean_length",),
}
"""Key -> names in metrics.jsonl; the first one that the run has recorded at all is taken for all of its steps."""
PRINTED = {
    "success_rate": "success_rate",
    "loss": "avg_loss",
    "grad_norm": "avg_grad_norm",
    "response_length": "avg_response_length",
}
"""Name in a log line -> key."""
PLAIN_SIZE = "0.5b"
"""The size whose logs and model folders carry no size in their names."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where artefacts go."""

    metrics: Path
    logs: Path
    size: str = PLAIN_SIZE

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.size):
            raise UserError(f"--size {self.size!r} cannot be part of a file name", fix="write it like 0.5b or 1.5b")

    def model(self, state: str, visit: Visit) -> Path:
        """``initial_1_plus``; other sizes than the plain one have theirs appended."""
        own = "" if self.size == PLAIN_SIZE else f"_{self.size}"
        return self.metrics / f"{state}_{visit.round}_{visit.group}{own}"

    def log(self, visit: Visit) -> Path:
        """``ContinualCountdown_R1_plus.log``, ``ContinualCountdown1.5B_R1_plus.log``."""
        own = "" if self.size == PLAIN_SIZE else self.size.upper()
        return self.logs / f"ContinualCountdown{own}_R{visit.round}_{visit.group}.log"

    def steps(self, visit: Visit) -> Path:
        """The steps of one stage."""
        return self.metrics / f"metrics_{visit.round}_{visit.group}_{self.size}.json"

    @property
    def consolidated(self) -> Path:
        """The steps of all stages."""
        return self.metrics / f"consolidated_metrics_{self.size}.json"

    @property
    def origin(self) -> Path:
        """Which run the artefacts of this size are of."""
        return self.metrics / f"export_{self.size}.json"


@dataclass(frozen=True)
class Visit:
    """A stage: one visit to an operator group. ``initial`` or ``final`` is None where the weights are not there."""

    stage: int
    round: int
    group: str
    initial: Path | None
    final: Path | None


class Run:
    """The records of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)

    @cached_property
    def visits(self) -> list[Visit]:
        """The stages that were begun, in order."""
        begun = {line["stage"] for line in read_records(self.folder / "journal.jsonl", ("stage", "event"))}
        found, before = [], self._base()
        for stage in self.manifest["stages"]:
            final = self.folder / stage["folder"] / "final"
            after = final if final.is_dir() else None
            if stage["stage"] in begun:
                found.append(Visit(stage["stage"], stage["round"], stage["task"], before, after))
            before = after
        return found

    def _base(self) -> Path | None:
        """The weights before the first stage: the run's own copy, or the folder it was started from."""
        for place in (str(self.folder / "base"), str(self.manifest.get("model"))):
            if Path(place).is_dir():
                return weights_folder(place)
        return None

    @cached_property
    def _values(self) -> dict[int, dict[int, dict[str, float | None]]]:
        """Stage -> step -> name -> value."""
        found: dict[int, dict[int, dict[str, float | None]]] = {}
        for record in read_records(self.folder / "metrics.jsonl", ("stage", "step", "task", "name")):
            if record["step"]:
                found.setdefault(record["stage"], {}).setdefault(record["step"], {})[record["name"]] = record["value"]
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        """Key -> the name it is recorded under in this run."""
        known = {name for steps in self._values.values() for values in steps.values() for name in values}
        return {key: next((n for n in names if n in known), names[0]) for key, names in RECORDED.items()}

    def steps(self, visit: Visit) -> list[Row]:
        """One object for each logged step of a stage."""
        change = self.weight_change(visit)
        place = {"round": visit.round, "group": visit.group, "weight_change": change}
        place["weight_change_definition"] = DEFINITIONS["weight_change"]
        return [
            {"step": step, **{key: values.get(name) for key, name in self._names.items()}, **place}
            for step, values in sorted(self._values.get(visit.stage, {}).items())
            if values.keys() & set(self._names.values())
        ]

    def weight_change(self, visit: Visit) -> float | None:
        """As results.json tells it; None before the stage is complete."""
        return self._changes.get(visit.stage)

    @cached_property
    def _changes(self) -> dict[int, float | None]:
        """Stage -> weight change by the definition above."""
        return {told["stage"]: told["start"]["sum_of_norms"] for told in weight_change(read(self.folder))["stages"]}


def export(
    run: Path, places: Places, *, overwrite: bool = False, say: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """Write models, logs and metrics of a run, finished or not; what is there already of the same run is renewed.

    Args:
        run: its folder; only read.
        places: where to write.
        overwrite: replace artefacts of another run.
        say: told what is missing.

    Returns:
        The steps of all stages, as in the consolidated file.

    Raises:
        UserError: the folder is no run, has no stage yet, or the places hold another run's artefacts.
    """
    source = Run(run)
    if not source.visits:
        raise UserError(f"{run} has begun no stage yet", fix="export it once training has started")
    for folder in (places.metrics, places.logs):
        folder.mkdir(parents=True, exist_ok=True)
    _claim(places, source, overwrite)
    everything: list[Row] = []
    for visit in source.visits:
        steps = source.steps(visit)
        everything += steps
        _write(places.steps(visit), steps)
        write_atomic(places.log(visit), "".join(f"{line(step)}\n" for step in steps).encode())
        for state, weights in (("initial", visit.initial), ("final", visit.final)):
            if weights is None:
                say(f"round {visit.round}, {visit.group}: the {state} weights are not there (yet)")
            else:
                link_model(weights, places.model(state, visit))
    _write(places.consolidated, everything)
    return everything


def line(step: Mapping[str, Any]) -> str:
    """``step:16 - success_rate:0.31 - loss:0.012 - ...``; a value that is missing is left out."""
    values = [(name, step[key]) for name, key in PRINTED.items() if step[key] is not None]
    return " - ".join([f"step:{step['step']}", *(f"{name}:{value:.6g}" for name, value in values)])


def link_model(source: Path, target: Path) -> None:
    """Hard-link the files of a model folder; where hard links cannot reach, symbolic ones relative to the target."""
    files = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith("strategy")]
    if _is_linked(files, target):
        return
    with whole_folder(target) as staging:
        for file in files:
            try:
                os.link(file.resolve(), staging / file.name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise
                os.symlink(os.path.relpath(file.resolve(), target.parent.resolve() / target.name), staging / file.name)


def _is_linked(files: Sequence[Path], target: Path) -> bool:
    there = {path.name for path in target.iterdir()} if target.is_dir() else set()
    return there == {file.name for file in files} and all(os.path.samefile(f, target / f.name) for f in files)


def _claim(places: Places, source: Run, overwrite: bool) -> None:
    """Note whose artefacts these are; those of another run stay, unless they are asked to go."""
    mine = {key: source.manifest.get(key) for key in ("digest", "created", "seed", "method", "model")}
    if places.origin.is_file():
        other = json.loads(places.origin.read_text(encoding="utf-8"))
        if other["run"] != mine and not overwrite:
            raise UserError(
                f"{places.metrics} holds the artefacts of another run of size {places.size}",
                where=str(places.origin),
                fix="give another --output_dir or --size, or --overwrite to replace them",
            )
        for path in [Path(name) for name in other["artefacts"]] if other["run"] != mine else []:
            if (places.metrics / path).is_dir():
                shutil.rmtree(places.metrics / path)
            else:
                (places.metrics / path).unlink(missing_ok=True)
    made = [p for v in source.visits for p in (places.model("initial", v), places.model("final", v), places.steps(v))]
    logs = [os.path.relpath(places.log(visit), places.metrics) for visit in source.visits]
    facts = {"run": mine, "size": places.size, "definitions": DEFINITIONS}
    _write(places.origin, facts | {"artefacts": [*(path.name for path in made), *logs]})


def _write(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())
