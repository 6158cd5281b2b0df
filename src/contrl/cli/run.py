"""``contrl run``: an experiment from a YAML file, with overrides."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DESCRIPTION = """Run an experiment described in a YAML file: model, method, strategies, tasks.

Any value can be overridden by its dotted path. A run that was killed is continued by repeating the command.
"""
EPILOG = """examples:
  contrl run my.yaml
  contrl run my.yaml --dry_run                        print the plan and stop
  contrl run my.yaml training.learning_rate=1e-5 tasks.1.max_steps=200
  contrl run my.yaml strategies=[replay] output_dir=runs/replay
  torchrun --nproc_per_node 8 -m contrl run my.yaml

The shipped example to start from: contrl demo --print_config > my.yaml
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", metavar="FILE.yaml", help="the experiment")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted path and value, e.g. seed=1")
    run_flags(parser)


def run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that runs something."""
    parser.add_argument("--dry_run", action="store_true", help="print configuration, steps, time and disk; then stop")
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="delete a different run in output_dir first"
    )
    parser.add_argument("--save_total_limit", type=int, metavar="N", help="checkpoints kept in each stage")


def command(options: argparse.Namespace) -> int:
    """Run the file."""
    if not Path(options.file).exists():
        from contrl.errors import UserError

        raise UserError(f"there is no file {options.file}", fix="contrl demo --print_config > my.yaml makes one")
    execute(Path(options.file), list(options.overrides), options)
    return 0


def execute(given: Path | Mapping[str, Any], overrides: list[str], options: argparse.Namespace) -> Path:
    """Load a configuration, run it and print the results; shared by ``run`` and ``demo``."""
    from contrl.cli.console import ProgressLine, quiet_libraries, say
    from contrl.config import load
    from contrl.continual.processes import Ranks
    from contrl.experiment import find
    from contrl.launch import Options, start

    quiet_libraries()
    if options.save_total_limit is not None:
        overrides.append(f"training.save_total_limit={options.save_total_limit}")
    resolved = load(given, overrides, resolve=find)
    for note in resolved.notes:
        say(f"note: {note}")
    settings = Options(
        command=["contrl", *sys.argv[1:]],
        overwrite=options.overwrite_output_dir,
        dry_run=options.dry_run,
        say=say,
        callbacks=lambda stage, stages, steps: [ProgressLine(stage, stages, steps)],
    )
    folder = start(resolved, settings)
    if not options.dry_run and Ranks().rank == 0:
        show_results(folder)
    return folder


def show_results(folder: Path) -> None:
    """The matrix, its metrics and where the report lies."""
    from contrl.continual import results
    from contrl.report import table

    table.print_results(results.read(folder))
    print(f"\nreport: {folder / 'report.html'}")
