"""``contrl report``: the page and the table of a run, from its folder alone."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = "Build report.html and figures of a run, finished or not, and print its results matrix."
EPILOG = """examples:
  contrl report runs/demo
  contrl report runs/demo runs/demo-replay
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")


def command(options: argparse.Namespace) -> int:
    """Build each page."""
    from contrl.cli.run import show_results
    from contrl.report import page

    for run in options.runs:
        page.build(Path(run))
        show_results(Path(run))
    return 0
