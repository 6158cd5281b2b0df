"""``contrl resume``: continue a run from wherever it stopped."""

from __future__ import annotations

import argparse
import sys
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
    from contrl.cli.console import ProgressLine, quiet_libraries, say
    from contrl.cli.run import show_results
    from contrl.continual.processes import Ranks
    from contrl.launch import Options, resume

    quiet_libraries()
    folder = resume(
        Path(options.run),
        Options(
            command=["contrl", *sys.argv[1:]],
            say=say,
            callbacks=lambda stage, stages, steps: [ProgressLine(stage, stages, steps)],
        ),
    )
    if Ranks().rank == 0:
        show_results(folder)
    return 0
