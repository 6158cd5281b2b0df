"""``contrl resume``: continue a run from wherever it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = "Continue a run that was stopped or killed, with the configuration it was started with."
EPILOG = """examples:
  contrl resume runs/demo
  torchrun --nproc_per_node 8 -m contrl resume runs/big

Repeating the command that started the run does the same.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")


def command(options: argparse.Namespace) -> int:
    """Continue the run."""
    from contrl.cli.console import quiet_libraries, run_options
    from contrl.cli.run import is_first_process, show_results
    from contrl.launch import resume

    quiet_libraries()
    folder = resume(Path(options.run), run_options())
    if is_first_process():
        show_results(folder)
    return 0
