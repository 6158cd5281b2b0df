"""``contrl run`` of a file with ``kind: study``: check all of it, carry its runs out, print one table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contrl.errors import PartlyFailed, UserError

if TYPE_CHECKING:
    from contrl.study.checking import Study


def run_study(file: Path, overrides: Sequence[str], options: argparse.Namespace) -> None:
    """Run a study, or continue it where it stopped.

    Args:
        file: the YAML.
        overrides: ``path=value``.
        options: the flags.

    Raises:
        ConfigErrors: every mistake of every arm at once.
        Interrupted, PartlyFailed: as ``carry_out``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a study is started by one process", fix="start it without torchrun; it has processes of its own"
        )
    if options.overwrite_output_dir:
        why = "a changed setting is another run beside the old ones, so there is nothing to overwrite"
        raise UserError("--overwrite_output_dir: a study has no use for it", why=why)
    from contrl.cli.console import quiet_libraries, say
    from contrl.experiment import find
    from contrl.study import reading

    def is_strategy(word: str) -> bool:
        try:
            find("strategy", word)
        except UserError:
            return False
        return True

    outline = reading.read(file, overrides, is_strategy)
    # Only now, because these load everything: a mistake in the file's form is told before that.
    from contrl.study.carry_out import carry_out
    from contrl.study.checking import check
    from contrl.study.pool import default_workers

    quiet_libraries()
    study = check(outline, say)
    workers = min(options.num_workers or default_workers(on_cpu=_on_cpu(study)), max(1, len(study.runs)))
    _announce(study, workers, say_runs=options.dry_run)
    if options.dry_run:
        say("nothing was run")
        return
    try:
        carry_out(study, workers, say, prepare=quiet_libraries)
    except PartlyFailed:
        _show(study.folder)
        raise
    _show(study.folder)


def _announce(study: Study, workers: int, *, say_runs: bool) -> None:
    """What the study consists of and about how long it takes."""
    from contrl.cli.console import say
    from contrl.study.carry_out import clock, is_finished

    manifest = study.manifest
    runnable = [arm for arm in manifest.arms if not arm.refused]
    counts = f"{len(runnable)} arms x {len(manifest.seeds)} seeds x {len(manifest.orders)} orders"
    say(f"study    {study.folder}: {len(study.runs)} runs ({counts}), {workers} at once")
    for arm in manifest.arms:
        if arm.refused:
            say(f"refused  {arm.name}: {arm.refused}")
    done = {run.id for run in manifest.runs if is_finished(study.folder, run)}
    if say_runs:
        width = max((len(run.arm) for run in manifest.runs), default=0)
        for run in manifest.runs:
            state = "finished" if run.id in done else ""
            say(f"{run.id}  {run.arm:{width}}  seed {run.seed}  {run.order}  {state}".rstrip())
    seconds = [study.seconds[run_id] for run_id in study.runs if run_id not in done]
    known = [value for value in seconds if value is not None]
    if known and len(known) == len(seconds):
        say(f"time     about {clock(sum(known) / workers)} for the {len(known)} runs that are left (rough)")


def _on_cpu(study: Study) -> bool:
    import torch

    return not torch.cuda.is_available() or all(run.config.training.get("use_cpu") for run in study.runs.values())


def _show(folder: Path) -> None:
    from contrl.cli.compare import show

    print()
    show([folder])
