"""``contrl evaluate-checkpoints``: from flags to the configuration by which saved weights are judged.

A run of contrl brings its own configuration, which the flags may change; for weights from elsewhere the flags make one.
``contrl.checkpoints`` carries it out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrl.cli import checkpoint_flags
from contrl.cli.checkpoint_flags import NAME, Wanted
from contrl.cli.flags import without_secrets
from contrl.errors import UserError

if TYPE_CHECKING:
    from contrl.checkpoints import Asked, SavedRun
    from contrl.config import Resolved


def run(argv: Sequence[str], defaults: Sequence[str] = ()) -> int:
    """Evaluate checkpoints.

    Args:
        argv: the words after the command.
        defaults: flags that hold for weights from elsewhere where nothing else is given.

    Raises:
        UserError: every mistake of the flags at once, or what cannot be judged.
    """
    if {"--help", "-h", "--help-all", "--help_all"} & set(argv):
        print(checkpoint_flags.help_text(everything="--help-all" in argv or "--help_all" in argv))
        raise SystemExit(0)
    method = checkpoint_flags.chosen_method(argv)
    wanted = checkpoint_flags.read_flags(argv, method or "dpo")
    # Only now, because these load everything: a mistake in the flags is told before that.
    from contrl.checkpoints import find_saved, judge
    from contrl.cli.console import quiet_libraries, say
    from contrl.cli.run import is_first_process, show_results

    quiet_libraries()
    saved = find_saved(wanted.checkpoint_dir)
    if saved.kind != "run":
        if method is None:
            method = _method_of(saved, wanted)
        wanted = checkpoint_flags.read_flags(argv, method, defaults)
    os.environ.update(wanted.request.environment)
    recorded = without_secrets(["contrl", NAME, *argv], checkpoint_flags.flags(method or "dpo"))
    sys.argv[:] = without_secrets(sys.argv, checkpoint_flags.flags(method or "dpo"))
    asked = _of_run(wanted, saved) if saved.kind == "run" else _from_elsewhere(wanted, saved, method or "dpo")
    if is_first_process():
        for line in (*wanted.request.notes, *_idle(wanted, asked)):
            say(f"note     {line}")
    folder = judge(replace(asked, command=recorded, say=say))
    if not asked.dry_run and is_first_process():
        _show_within(folder)
        show_results(folder)
    return 0


def _idle(wanted: Wanted, asked: Asked) -> list[str]:
    """The flags without effect, in one line."""
    names, given = list(wanted.idle), wanted.request.given
    if asked.is_run:
        names += [name for name, value in given.items() if value.flag.path.startswith("method.")]
    if asked.fills:
        names += [name for name in ("report_to", "run_name") if name in given]
    if not names:
        return []
    return [f"without effect, since nothing is trained here: {', '.join(f'--{name}' for name in sorted(names))}"]


# --- a run of contrl -----------------------------------------------------------------------------------------


def _of_run(wanted: Wanted, saved: SavedRun) -> Asked:
    """By the run's own configuration, changed by the flags; without a change the run itself is filled in."""
    import yaml

    from contrl.cli.training.command import resolved_of
    from contrl.config import difference, load
    from contrl.experiment import find

    folder, request = saved.folder, wanted.request
    own = load(folder / "config.yaml", [f"output_dir={folder}"], resolve=find)
    given: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    _refuse_another_model(wanted, own)
    overrides = [
        text for text in request.overrides if not text.startswith(("method.", "model.name_or_path=", "output_dir="))
    ]
    if "dataset_name" in request.given:
        given["tasks"] = {"name": "dataset"}
        overrides.append(_data(request.text("dataset_name")))
    resolved = resolved_of(request, [*overrides, f"output_dir={folder}"], given, str(folder / "config.yaml"))
    fills, output = resolved.digest == own.digest, wanted.output_dir
    if output is None:
        output = folder if fills else folder.with_name(f"{folder.name}-eval")
    elif output.absolute() == folder.absolute() and not fills:
        raise UserError(
            f"--output_dir {output} is the run, which was not judged so",
            why="\n  ".join(difference(own.config, resolved.config)),
            fix="give another --output_dir, or leave these flags out",
        )
    fills = fills and output.absolute() == folder.absolute()
    return _asked(wanted, saved, resolved, output, fills=fills)


def _refuse_another_model(wanted: Wanted, own: Resolved) -> None:
    """A run knows what it started from; another name would be row 0 of another run."""
    name, known = wanted.request.text("model_name_or_path"), own.config.model.name_or_path
    if name and name != known and Path(name).absolute() != Path(known).absolute():
        raise UserError(
            f"--model_name_or_path {name}: the run in {wanted.checkpoint_dir} was trained from {known}",
            fix="leave it out: the run says what it started from",
        )


# --- from elsewhere -----------------------------------------------------------------------------------------------


def _from_elsewhere(wanted: Wanted, saved: SavedRun, method: str) -> Asked:
    request, folder = wanted.request, saved.folder
    output = wanted.output_dir or folder.with_name(f"{folder.name}-eval")
    given = {
        "method": {"name": method},
        "tasks": {"name": "dataset"},
        "model": {"name_or_path": _started_from(wanted, saved)},
        "training": {},
    }
    overrides = [text for text in request.overrides if not text.startswith(("model.name_or_path=", "output_dir="))]
    overrides += [_data(_dataset(wanted)), f"output_dir={_quoted(str(output))}"]
    from contrl.cli.training.command import resolved_of

    return _asked(wanted, saved, resolved_of(request, overrides, given, f"contrl {NAME}"), output, fills=False)


def _dataset(wanted: Wanted) -> str:
    name = wanted.request.text("dataset_name")
    if not name:
        why = f"{wanted.checkpoint_dir} is no run of contrl, which would name its own"
        raise UserError(
            f"contrl {NAME} needs --dataset_name", why=why, fix="the rows to judge by: a file, a name, a hub id"
        )
    return name


def _started_from(wanted: Wanted, saved: SavedRun) -> str:
    """The model before training: as given, else the base that the adapters name."""
    from contrl.models.folders import base_of, weights_folder

    name = wanted.request.text("model_name_or_path")
    if not name and not saved.has_adapters:
        raise UserError(
            f"contrl {NAME} needs --model_name_or_path",
            why=f"{saved.folder} does not say which model training started from, and that is row 0",
            fix="name that model, a folder or a hub id",
        )
    if not name:
        return base_of(next(path for row in saved.rows for path in row.folders))
    place = weights_folder(name)
    return str(place.absolute()) if place is not None else name


def _method_of(saved: SavedRun, wanted: Wanted) -> str:
    """How rows are judged where no method is named: as their columns (or the kind of model) suggest."""
    from contrl.models.folders import is_classifier

    if any(is_classifier(path) for row in saved.rows for path in row.folders):
        return "reward"
    row: Mapping[str, Any] = _first_row(wanted)
    if {"chosen", "rejected"} <= row.keys():
        return "dpo"
    return "kto" if "label" in row else "sft"


def _first_row(wanted: Wanted) -> Mapping[str, Any]:
    """Of the rows to judge by."""
    from contrl.cli.training.command import resolved_of
    from contrl.config import SequenceConfig
    from contrl.experiment import find

    overrides = [text for text in wanted.request.overrides if text.startswith("tasks.")]
    given = {"method": {"name": "sft"}, "tasks": {"name": "dataset"}, "model": "tiny", "output_dir": "unused"}
    config = resolved_of(wanted.request, [*overrides, _data(_dataset(wanted))], given, f"contrl {NAME}").config
    assert isinstance(config.tasks, SequenceConfig)
    tasks = find("sequence", config.tasks.name)(**config.tasks.fields).tasks()
    return next((row for task in tasks for row in (*task.eval, *task.train)), {})


# --- both -----------------------------------------------------------------------------------------------------------


def _data(name: str) -> str:
    from contrl.cli.training.command import absolute
    from contrl.data.folders import local
    from contrl.data.named import NAMED

    if name in NAMED and local(name) is None:
        return f"tasks.name={name}"
    return f"tasks.path={_quoted(absolute(name))}"


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


def _asked(wanted: Wanted, saved: SavedRun, resolved: Resolved, output: Path, *, fills: bool) -> Asked:
    from contrl.checkpoints import Asked

    return Asked(
        saved,
        resolved,
        output,
        fills,
        wanted.ends_only,
        wanted.request.text("report_to", "none"),
        wanted.request.text("run_name") or None,
        overwrite=wanted.request.is_on("overwrite_output_dir"),
        dry_run=wanted.request.is_on("dry_run"),
    )


def _show_within(folder: Path) -> None:
    """Scores of checkpoints from within a stage, which the matrix does not hold."""
    from contrl.checkpoints.rows import WITHIN
    from contrl.cli.console import say
    from contrl.continual.records import read_records

    rows: dict[tuple[int, int], list[str]] = {}
    for record in sorted(read_records(folder / WITHIN, ("stage", "step", "task", "metric")), key=_place):
        value = "-" if record["value"] is None else f"{record['value']:.2f}"
        rows.setdefault(_place(record), []).append(f"{record['task']} {value}")
    for (stage, step), scores in rows.items():
        say(f"stage {stage}, checkpoint-{step}: {'  '.join(scores)}")


def _place(record: Mapping[str, Any]) -> tuple[int, int]:
    return int(record["stage"]), int(record["step"])
