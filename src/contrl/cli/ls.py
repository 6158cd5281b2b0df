"""``contrl ls``: the runs below a folder, one line each."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

DESCRIPTION = """List the runs below a folder: method, strategies, status, stages done, average, forgetting,
and how long ago each last wrote."""
EPILOG = """examples:
  contrl ls
  contrl ls runs/study
  contrl ls --json | python -m json.tool
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="where to look; runs by default")
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def command(options: argparse.Namespace) -> int:
    """Print the list."""
    from contrl.report.listing import list_runs, run_table
    from contrl.report.terminal import say

    folder = Path(options.folder)
    runs = list_runs(folder)
    if options.json:
        say(json.dumps(runs), sys.stdout)
    else:
        say(run_table(runs, folder) if runs else f"there is no run below {folder}", sys.stdout)
    return 0
