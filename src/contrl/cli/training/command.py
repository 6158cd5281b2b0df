"""``contrl sft|reward|dpo|...|grpo``: from flags to a run of the same engine as any experiment.

The flags become a configuration that ``contrl.config.load`` checks, so a plain dataset is a sequence of one task and
a file of tasks trains them in order. Of reward models there may be one for each task, each a run of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrl.cli.flags import Flag, Given, without_secrets
from contrl.cli.training import help
from contrl.cli.training.online import METHOD_DEFAULTS
from contrl.cli.training.request import READER, Request, read, sequence_of
from contrl.cli.training.reward_first import make_room, names_a_reward, policy_overrides, report, reward_run
from contrl.cli.training.table import COMMANDS, NUM_EPOCHS, flags_of
from contrl.config.tree import COMMAND_LINE
from contrl.errors import ConfigErrors, UserError

if TYPE_CHECKING:
    from contrl.config import Resolved


def run(
    command: str,
    argv: Sequence[str],
    *,
    defaults: Sequence[str] = (),
    extra: Mapping[str, Flag] | None = None,
    notes: Sequence[str] = (),
    reward_first: bool = False,
) -> int:
    """Run a training command.

    Args:
        command: sft, reward, dpo, ...
        argv: the words after it.
        defaults: flags that hold where nothing else is given.
        extra: further spellings -> their flags.
        notes: said at the start; a flag's name in braces stands for its value.
        reward_first: where no reward is named, pairs of the data set teach a reward model before.

    Raises:
        UserError: every mistake of the flags at once, or what the run itself refuses.
    """
    if {"--help", "-h", "--help-all", "--help_all"} & set(argv):
        print(help.text(command, everything="--help-all" in argv or "--help_all" in argv))
        raise SystemExit(0)
    request = read(command, argv, defaults, extra, needs_reward=not reward_first)
    forget_secrets(request)
    request.notes += [note.format_map({name: value.text for name, value in request.given.items()}) for note in notes]
    # Only now, because these load everything: a mistake in the flags is told before that.
    from contrl.cli.console import say
    from contrl.cli.run import is_first_process, run_resolved

    recorded = without_secrets(["contrl", command, *argv] if extra is None else sys.argv, flags_of(command))
    parts = parts_of(request)
    for index, (folder, overrides) in enumerate(parts):
        if len(parts) > 1 and is_first_process():
            say(f"task {index} of 0 to {len(parts) - 1}: {folder}")
        if reward_first and not names_a_reward(request):
            overrides += policy_overrides(folder)
            if not _reward_model(request, folder, overrides, recorded):
                return 0
        run_resolved(
            resolved_of(request, [*request.overrides, *overrides]),
            overwrite=request.is_on("overwrite_output_dir"),
            dry_run=request.is_on("dry_run"),
            command=recorded,
        )
    return 0


def _reward_model(request: Request, folder: str, overrides: Sequence[str], recorded: Sequence[str]) -> bool:
    """Train the policy's reward model; whether the policy can follow, which it cannot in a dry run."""
    from contrl.cli.console import say
    from contrl.cli.run import is_first_process, run_resolved

    overwrite, dry_run = request.is_on("overwrite_output_dir"), request.is_on("dry_run")
    shared = [text for text in overrides if text.startswith("tasks.") and "part" not in text]
    taught = reward_run(request, folder, shared)
    if not dry_run:
        make_room(resolved_of(request, [*request.overrides, *overrides]), overwrite=overwrite)
    if is_first_process():
        say(
            f"{request.command} names no reward: pairs of the data teach a reward model first, at {folder}/reward_model"
        )
    run_resolved(taught, overwrite=overwrite, dry_run=dry_run, command=recorded)
    if is_first_process():
        say("then the policy is trained" if dry_run else report(folder))
    return not dry_run


def forget_secrets(request: Request) -> None:
    """Put what the flags say of the environment there, and take what is secret out of the process's own words.

    Trackers record ``sys.argv``, so it must hold no key once anything else is loaded.
    """
    os.environ.update(request.environment)
    sys.argv[:] = without_secrets(sys.argv, flags_of(request.command))
    for name in [name for name, value in request.given.items() if value.flag.secret]:
        del request.given[name]


def parts_of(request: Request) -> list[tuple[str, list[str]]]:
    """The runs a command consists of: (folder, overrides). More than one only for a reward model of each task."""
    source = absolute(request.text("dataset_name"))
    overrides = [f"tasks.path={_quoted(source)}"] if sequence_of(request) == READER else []
    folder = next(text.partition("=")[2].strip('"') for text in request.overrides if text.startswith("output_dir="))
    chosen = request.text("dataset_index")
    if request.command != "reward" or not (chosen or request.is_on("all_datasets")):
        return [(folder, overrides)]
    from contrl.data.continual import is_continual, read_tasks

    if not is_continual(source):
        return [(folder, overrides)]
    indices: list[Any] = [chosen]
    if request.is_on("all_datasets"):
        indices = list(range(len(read_tasks(source))))
    return [
        (place := f"{folder}/{index}", [*overrides, f"tasks.dataset_index={index}", f"output_dir={_quoted(place)}"])
        for index in indices
    ]


def absolute(names: str) -> str:
    """Paths made absolute, so that the run can be continued from anywhere; names of data sets stay names."""
    from contrl.data.recipes import RECIPES

    if Path(names).exists() and names not in RECIPES:
        return os.path.abspath(names)
    if "," not in names:
        return names
    return ",".join(absolute(name.strip()) for name in names.split(","))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def resolved_of(
    request: Request, overrides: Sequence[str], given: dict[str, Any] | None = None, source: str = ""
) -> Resolved:
    """The checked configuration; mistakes and origins name flags and lines instead of paths.

    Args:
        request: the flags.
        overrides: paths and their values.
        given: what they override; by default what a training command starts from.
        source: what messages call that.
    """
    from contrl.config import load
    from contrl.experiment import find

    command = COMMANDS[request.command]
    given = given or {
        "method": {"name": request.command, **METHOD_DEFAULTS.get(request.command, {})},
        "tasks": {"name": READER},
        "training": {"learning_rate": command.learning_rate, "num_train_epochs": NUM_EPOCHS},
    }
    by_path = {value.flag.path: value for value in request.given.values() if value.flag.path}
    try:
        resolved = load(given, overrides, resolve=find, source=source or f"contrl {request.command}")
    except ConfigErrors as found:
        raise ConfigErrors([_in_flags(error, by_path) for error in found.errors]) from None
    origins = dict(resolved.origins)
    for path, value in by_path.items():
        origins |= {name: str(value.place) for name in origins if name == path or name.startswith(f"{path}.")}
    return replace(resolved, origins=origins, notes=(*resolved.notes, *request.notes))


def _in_flags(error: UserError, given: Mapping[str, Given]) -> UserError:
    """``command line: training.max_steps: ...`` as ``my.yaml:3: --max_steps: ...``."""
    if error.where != str(COMMAND_LINE):
        return error
    named = error.what.partition(":")[0]
    path = max((path for path in given if named == path or named.startswith(f"{path}.")), key=len, default=None)
    if path is None:
        return error
    value = given[path]
    what = f"--{value.flag.name}{error.what.removeprefix(path)}"
    return UserError(what, where=str(value.place), why=error.why, fix=error.fix)
