"""``contrl compare``: several runs, or a study, side by side, from their folders alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """Compare runs, or the arms of a study: means over seeds and orders, paired differences from a baseline
with the smallest difference that so many runs can show, a trade-off curve for each swept field (docs/studies.md).
The same as a page: report.html in the study's folder, or in compare/ beside the runs.
"""
EPILOG = """examples:
  contrl compare runs/forgetting                              a study
  contrl compare runs/demo runs/demo-replay                   runs of equal seed and order are paired
  contrl compare runs/forgetting --baseline replay --metric forgetting
  contrl compare runs/forgetting --json > table.json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or a study's folder")
    parser.add_argument("--metric", metavar="NAME", help="the only metric to show: average, forgetting, retention, ...")
    parser.add_argument(
        "--baseline", metavar="ARM", help="an arm, or a strategy (of each method); default: naive of the same method"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, and nothing else")


def command(options: argparse.Namespace) -> int:
    """Print the comparison and draw its page."""
    folders = [Path(folder) for folder in options.folders]
    if options.json:
        from contrl.continual.comparison import as_json, compare

        found = compare(folders, metric=options.metric, baseline=options.baseline)
        print(json.dumps(as_json(found), ensure_ascii=False, allow_nan=False, indent=1))
    else:
        show(folders, options.metric, options.baseline)
    return 0


def show(folders: Sequence[Path], metric: str | None = None, baseline: str | None = None) -> None:
    """The tables, and the page."""
    from contrl.continual.comparison import compare
    from contrl.report.compare import build
    from contrl.report.comparison_table import print_comparison

    print_comparison(compare(folders, metric=metric, baseline=baseline))
    print(f"\nreport: {build(folders, metric=metric, baseline=baseline)}")
