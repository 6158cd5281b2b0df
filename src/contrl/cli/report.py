"""``contrl report``: the page and the table of a run, or the page that compares several, from their folders alone."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Build report.html and figures/ (every chart as SVG, PNG and CSV) of a run, finished or not, and print
its results matrix. Of several runs, or a study, also the page that compares them (docs/report.md).
"""
EPILOG = """examples:
  contrl report runs/demo
  contrl report runs/demo runs/demo-replay     a page of each, and runs/compare/report.html
  contrl report runs/forgetting                a study: its page, without those of its runs
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or a study's folder")


def command(options: argparse.Namespace) -> int:
    """Build each page."""
    from contrl.cli.run import show_results
    from contrl.continual.study_manifest import is_study
    from contrl.report import compare, page

    folders = [Path(run) for run in options.runs]
    for folder in folders:
        if is_study(folder):
            print(f"report: {compare.build([folder])}")
        else:
            page.build(folder)
            show_results(folder)
    if len(folders) > 1:
        print(f"comparison: {compare.build(folders)}")
    return 0
