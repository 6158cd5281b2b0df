"""``contrl run``: an experiment from a YAML file, or several (``kind: pipeline``, ``kind: study``), with overrides."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contrl.config import Resolved

DESCRIPTION = """Run an experiment described in a YAML file: model, method, strategies, tasks.
A file with `kind: pipeline` is several steps in order, each a run, a merge or an evaluation (docs/pipelines.md).
A file with `kind: study` is many runs to compare: arms x seeds x orders (docs/studies.md).

Any value can be overridden by its dotted path. A run that was killed is continued by repeating the command.
"""
EPILOG = """examples:
  contrl run my.yaml
  contrl run my.yaml --dry_run                        print the plan and stop
  contrl run my.yaml training.learning_rate=1e-5 tasks.1.max_steps=200
  contrl run my.yaml strategies=[replay] output_dir=runs/replay
  torchrun --nproc_per_node 8 -m contrl run my.yaml
  contrl run recipes/studies/forgetting.yaml --num_workers 2    every strategy, 3 seeds, 2 orders
  contrl run pipeline.yaml steps.dpo.learning_rate=1e-5 defaults.max_steps=100

The shipped example to start from: contrl demo --print_config > my.yaml
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", metavar="FILE.yaml", help="the experiment")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted path and value, e.g. seed=1")
    parser.add_argument("--num_workers", type=int, metavar="N", help="runs at once, of a study; default: one per core")
    run_flags(parser)


def run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that runs something."""
    parser.add_argument("--dry_run", action="store_true", help="print configuration, steps, time and disk; then stop")
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="delete a different run in output_dir first"
    )
    parser.add_argument("--save_total_limit", type=int, metavar="N", help="checkpoints kept in each stage")
    parser.add_argument(
        "--model_name_or_path", metavar="MODEL", help="a name, or a model, run, stage or checkpoint folder"
    )
    parser.add_argument(
        "--log_model", metavar="WHEN", help="W&B artifacts: end (the final model), checkpoint (each one)"
    )
    parser.add_argument("--use_peft", action="store_true", help="train a LoRA adapter, the same one through all stages")


def command(options: argparse.Namespace) -> int:
    """Run the file."""
    if options.log_model is not None:
        os.environ["WANDB_LOG_MODEL"] = options.log_model
    from contrl.errors import UserError
    from contrl.pipeline.reading import KIND, kind_of
    from contrl.study.reading import KIND as STUDY

    if not Path(options.file).exists():
        raise UserError(f"there is no file {options.file}", fix="contrl demo --print_config > my.yaml makes one")
    kind = kind_of(Path(options.file))
    if kind == KIND:
        from contrl.cli.pipeline import run_pipeline

        run_pipeline(Path(options.file), [*options.overrides, *_flags(options, pipeline=True)], options)
    elif kind == STUDY:
        from contrl.cli.study import run_study

        run_study(Path(options.file), [*options.overrides, *_flags(options, prefix="run.")], options)
    elif kind:
        fix = f"write kind: {KIND} or kind: {STUDY}, or leave it out"
        raise UserError(f"kind: {kind!r} is nothing that can be run", fix=fix)
    else:
        execute(Path(options.file), list(options.overrides), options)
    return 0


def execute(file: Path, overrides: list[str], options: argparse.Namespace, source: str | None = None) -> None:
    """Load a configuration, run it and print the results; shared by ``run`` and ``demo``.

    Args:
        file: the YAML.
        overrides: ``path=value``; those of flags join them.
        options: the flags.
        source: what messages call the file; its path when None.
    """
    from contrl.config import load
    from contrl.experiment import find

    resolved = load(file, [*overrides, *_flags(options)], resolve=find, source=source)
    run_resolved(resolved, overwrite=options.overwrite_output_dir, dry_run=options.dry_run)


def run_resolved(
    resolved: Resolved, *, overwrite: bool = False, dry_run: bool = False, command: Sequence[str] = ()
) -> None:
    """Run a checked configuration and print its results; what every command that trains ends in.

    Args:
        resolved: the configuration.
        overwrite: delete a different run in its folder first.
        dry_run: only tell what would be done.
        command: for the manifest; the process's own command line when empty.
    """
    # Only now, because these load everything: a mistake in the configuration is told before that.
    from contrl.cli.console import quiet_libraries, run_options
    from contrl.launch import start

    quiet_libraries()
    options = run_options(overwrite=overwrite, dry_run=dry_run)
    folder = start(resolved, replace(options, command=list(command) or options.command))
    if not dry_run and is_first_process():
        show_results(folder)


def _flags(options: argparse.Namespace, *, pipeline: bool = False, prefix: str = "") -> list[str]:
    """What Hugging Face's flags mean as overrides; in a pipeline defaults of its steps, in a study of `run`."""
    paths = tuple(f"{prefix}{path}" for path in ("training.save_total_limit", "model.name_or_path", "model.use_peft"))
    if pipeline:
        paths = ("defaults.save_total_limit", "defaults.model_name_or_path", "defaults.use_peft")
    found = []
    if options.save_total_limit is not None:
        found.append(f"{paths[0]}={options.save_total_limit}")
    if options.model_name_or_path is not None:
        found.append(f"{paths[1]}={options.model_name_or_path}")
    if options.log_model is not None and pipeline:
        found.append(f"defaults.log_model={options.log_model}")
    return found + ([f"{paths[2]}=true"] if options.use_peft else [])


def is_first_process() -> bool:
    """Whether this process prints the results: the only one, or rank 0."""
    return os.environ.get("RANK", "0") == "0"


def show_results(folder: Path) -> None:
    """The matrix, its metrics and where the report lies."""
    from contrl.continual import results
    from contrl.report import table

    table.print_results(results.read(folder))
    print(f"\nreport: {folder / 'report.html'}")
