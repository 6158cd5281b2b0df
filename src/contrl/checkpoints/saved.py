"""Saved weights in the order they were trained: the stages of a run, AIF-Gen's dataset folders, or plain checkpoints.

A row of the results matrix is the end of a stage. Checkpoints from within a stage are listed with their row: they are
judged too, but compared with nothing, because what a task lost or gained is counted between ends of stages. Steps are
ordered as numbers. Nothing is loaded here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contrl.continual.records import read_manifest
from contrl.errors import ConfigErrors, UserError
from contrl.models.folders import is_adapter

Kind = Literal["run", "datasets", "checkpoints"]
_ENDS = ("final", "last")
_DATASET = re.compile(r"dataset-(\d+)")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Saved:
    """One row: a stage's weights.

    Attributes:
        index: of the row; 1 is the first after the start.
        name: what it is called where no task is known.
        end: the weights at the end of the stage; None while it is still being trained.
        between: earlier checkpoints of the stage, by step.
        tasks: what the stage trained, by the manifest of its run; None where nothing says so.
        dataset: the number of the task in the file it was trained from (AIF-Gen), or None.
    """

    index: int
    name: str
    end: Path | None
    between: tuple[Path, ...] = ()
    tasks: tuple[str, ...] | None = None
    dataset: int | None = None
    round: int = 1

    @property
    def folders(self) -> tuple[Path, ...]:
        """Everything saved of the stage, the end last."""
        return (*self.between, *((self.end,) if self.end is not None else ()))


@dataclass(frozen=True)
class SavedRun:
    """What lies in a folder, and of which kind it is; ``tasks`` are all those of a run of ours, trained or not."""

    folder: Path
    kind: Kind
    rows: tuple[Saved, ...]
    tasks: tuple[str, ...] = ()

    @property
    def has_adapters(self) -> bool:
        """Whether the weights are adapters' and not whole models'."""
        return any(is_adapter(folder) for row in self.rows for folder in row.folders)


def step_of(folder: Path) -> int | None:
    """The step of ``checkpoint-<step>``; None for another folder."""
    match = _CHECKPOINT.fullmatch(folder.name)
    return int(match[1]) if match else None


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run of stages, with its configuration."""
    return (folder / "run.json").is_file() and (folder / "config.yaml").is_file()


def find_saved(folder: Path) -> SavedRun:
    """The weights that a folder holds.

    Raises:
        UserError: there are none, they are of several kinds, or a checkpoint holds no weights.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", fix="--checkpoint_dir names the folder that holds checkpoints")
    datasets = _numbered(folder, _DATASET)
    plain = [*_numbered(folder, _CHECKPOINT), *(folder / name for name in _ENDS if (folder / name).is_dir())]
    if is_run(folder):
        found = SavedRun(folder, "run", _stages(folder), tuple(read_manifest(folder)["sequence"]))
    elif datasets:
        if plain:
            names = f"{datasets[0].name} and {plain[0].name}"
            why = "of two layouts it is not clear which came first"
            raise UserError(f"{folder} holds {names}", why=why, fix="move one of them to a folder of its own")
        found = SavedRun(folder, "datasets", _datasets(datasets))
    else:
        found = SavedRun(folder, "checkpoints", _plain(folder, plain))
    if not any(row.folders for row in found.rows):
        raise UserError(
            f"no checkpoints found in {folder}",
            why="looked for stages/*/final, dataset-<i>/checkpoint-<step> and last, checkpoint-<step>, final",
            fix="name the folder above them, the output_dir of the training",
        )
    _check(found)
    return found


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The folders of a numbered name, by number and not by text: checkpoint-50 comes before checkpoint-1000."""
    matches = [(match, path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches)]


def _end(folder: Path) -> Path | None:
    return next((folder / name for name in _ENDS if (folder / name).is_dir()), None)


def _stages(folder: Path) -> tuple[Saved, ...]:
    """The stages of a run of ours; one without its final weights is not finished."""
    rows = []
    for stage in read_manifest(folder).get("stages", ()):
        place = folder / str(stage["folder"])
        steps = _numbered(place, _CHECKPOINT) if place.is_dir() else []
        end, name = _end(place), str(stage["task"])
        tasks = tuple(stage.get("tasks") or (name,))
        rows.append(Saved(int(stage["stage"]), name, end, tuple(steps), tasks, round=int(stage.get("round", 1))))
    return tuple(rows)


def _datasets(folders: list[Path]) -> tuple[Saved, ...]:
    """AIF-Gen's: the row of a task is ``last``, or, where that was not saved, its highest checkpoint."""
    rows = []
    for index, folder in enumerate(folders, start=1):
        steps, end = _numbered(folder, _CHECKPOINT), _end(folder)
        if end is None and steps:
            end = steps.pop()
        number = int(folder.name.rpartition("-")[2])
        rows.append(Saved(index, folder.name, end, tuple(steps), dataset=number))
    return tuple(rows)


def _plain(folder: Path, folders: list[Path]) -> tuple[Saved, ...]:
    """Each checkpoint is a row, for nothing says where a task ends; a folder that is a model is the only one."""
    if not folders and _has_weights(folder):
        folders = [folder]
    return tuple(Saved(index, path.name, path) for index, path in enumerate(folders, start=1))


def _check(found: SavedRun) -> None:
    """Every folder can be loaded, and all as one kind of model."""
    folders = [folder for row in found.rows for folder in row.folders]
    errors = [_empty(folder) for folder in folders if not _has_weights(folder)]
    adapters = [folder for folder in folders if is_adapter(folder)]
    if adapters and len(adapters) < len(folders) and not errors:
        whole = next(folder for folder in folders if folder not in adapters)
        one, other = adapters[0].relative_to(found.folder), whole.relative_to(found.folder)
        fix = "evaluate them apart, each kind in a folder of its own"
        errors.append(UserError(f"{one} holds an adapter, {other} a whole model", where=str(found.folder), fix=fix))
    if errors:
        raise ConfigErrors(errors)


def _empty(folder: Path) -> UserError:
    other = next((path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")), None)
    why = f"{other} is not safetensors, and contrl reads nothing else" if other else "no *.safetensors with a config"
    return UserError(f"{folder} holds no weights", why=why, fix="save it again as safetensors, or move it away")


def _has_weights(folder: Path) -> bool:
    if is_adapter(folder):
        return (folder / "adapter_model.safetensors").is_file()
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
