"""``contrl show``: a run or a study at a glance, for people and with ``--json`` for programs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrl.report.overview import Overview

DESCRIPTION = """Show a run, finished or not: results matrix, every metric with its interval, status, where things are.
Of a study's folder: its runs with their status and headline numbers."""
EPILOG = """examples:
  contrl show runs/demo
  contrl show runs/demo --samples 8       the newest answers, too
  contrl show runs/demo --json | python -m json.tool
  contrl show runs/study

`contrl ls` lists runs, `contrl report` builds the page, `contrl watch` draws curves.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run or of a study")
    parser.add_argument(
        "--samples", nargs="?", type=int, const=6, default=0, metavar="N", help="print N sampled answers, 6 by default"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def command(options: argparse.Namespace) -> int:
    """Print what is known of the folder."""
    from contrl.report import listing, sampled
    from contrl.report.terminal import say

    folder = Path(options.run)
    if listing.is_study(folder):
        study = listing.read_study(folder)
        say(json.dumps(study) if options.json else listing.study_table(study, folder), sys.stdout)
        return 0
    _require_run(folder)
    answers = sampled.newest(folder, options.samples) if options.samples > 0 else None
    if options.json:
        from contrl.report.overview import describe

        say(json.dumps(describe(folder) | ({"samples": answers} if answers else {}), default=str), sys.stdout)
        return 0
    _print(folder)
    if answers:
        say("\n" + sampled.text(answers), sys.stdout)
    return 0


def _require_run(folder: Path) -> None:
    """Tell where runs are when the folder only holds some."""
    from contrl.errors import UserError
    from contrl.report.listing import find_runs

    if folder.is_dir() and not (folder / "run.json").exists() and next(find_runs(folder), None) is not None:
        raise UserError(f"{folder} is no run, there are runs in it", fix=f"contrl ls {folder}")


def _print(folder: Path) -> None:
    from contrl.continual import results
    from contrl.continual.metrics import FORMULAS
    from contrl.report import table
    from contrl.report.numbers import interval, number
    from contrl.report.overview import read_overview
    from contrl.report.terminal import columns, say

    overview, found = read_overview(folder), results.read(folder)
    table.print_results(found)
    lines = [
        (FORMULAS[name].title, number(metric.value, "-"), interval(metric), f"n={metric.n}" if metric.n else "")
        for name, metric in found.metrics.items()
    ]
    facts = [(name, str(value)) for name, value in _facts(overview).items()]
    say(f"\n{columns(('metric', 'value', '95% CI', ''), lines)}\n\n{columns(facts[0], facts[1:])}", sys.stdout)


def _facts(overview: Overview) -> dict[str, Any]:
    """What the table does not say, in the order in which it is printed."""
    from contrl.report.overview import files
    from contrl.report.terminal import age
    from contrl.report.watched import clock

    run, where = overview.run, files(overview)
    status = f"{overview.status}, {overview.num_done} of {len(overview.stages)} stages done"
    if overview.current and overview.status != "finished":
        status += f", in stage {overview.current.stage} {overview.current.task}"
    rows: dict[str, Any] = {
        "status": f"{status}, last written {age(overview.idle)} ago",
        "took": clock(overview.seconds) if overview.seconds is not None else None,
        "method": run.get("method"),
        "strategies": overview.strategies,
        "sequence": " > ".join(visit.task for visit in overview.stages),
        "weights": run.get("weights") or run.get("model"),
        "folder": overview.folder,
        **{name: where[name] for name in ("report", "model", "base", "config") if name in where},
        "stages": ", ".join(where["stage_models"]) or None,
        "samples": f"{where['samples']} tables in {overview.folder / 'samples'}" if where["samples"] else None,
    }
    return {name: value for name, value in rows.items() if value not in (None, "")}
