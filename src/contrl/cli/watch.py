"""``contrl watch``: curves of runs in the terminal, while they train and after."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from contrl.report.follow import Followed

DESCRIPTION = """Draw the curves of runs in the terminal, and draw them again while a run trains; Ctrl-C ends it.
Only the run folders are read: it works over ssh, for runs of other processes, and after the fact."""
EPILOG = """examples:
  contrl watch runs/demo
  contrl watch runs/demo runs/demo-replay           several runs on one scale
  contrl watch runs/demo --metrics reward entropy   other curves; the method's own by default
  contrl watch runs/demo --once --ascii
  contrl watch runs/demo --json | grep '"reward"'   every record, one a line

Where there is no terminal it writes a line every 30 seconds, and ends with a frame.
"""
LINES_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="curves to draw, by their logged names"
    )
    parser.add_argument("--once", action="store_true", help="print what there is now and end")
    parser.add_argument("--json", action="store_true", help="stream the records of the runs, one JSON object a line")
    parser.add_argument("--ascii", action="store_true", help="no braille characters")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks, default 2")


def command(options: argparse.Namespace) -> int:
    """Watch until no run is running any more, or Ctrl-C."""
    from contrl.report.follow import Followed

    runs = [Followed.of(Path(run)) for run in options.runs]
    try:
        if options.json:
            _stream(runs, options)
        elif options.once or not any(run.is_running for run in runs):
            _look(runs)
            _print(runs, options, sys.stdout)
        elif sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            _draw(runs, options)
        else:
            _tell(runs, options)
    except KeyboardInterrupt:
        pass  # how one stops watching
    return 0


def _look(runs: Sequence[Followed]) -> None:
    for run in runs:
        run.look()


def _print(runs: Sequence[Followed], options: argparse.Namespace, stream: TextIO) -> None:
    from contrl.report.terminal import say

    say(_frame(runs, options, stream), stream)


def _frame(runs: Sequence[Followed], options: argparse.Namespace, stream: TextIO) -> str:
    from contrl.report.terminal import can_write
    from contrl.report.watch import Screen, frame

    width = shutil.get_terminal_size((100, 24)).columns
    return frame(runs, options.metrics, Screen(width, options.ascii or not can_write("⣿→", stream.encoding)))


def _draw(runs: Sequence[Followed], options: argparse.Namespace) -> None:
    """Frames over each other on a screen of their own; the last one stays when it ends."""
    from contrl.report.terminal import encodable

    out = sys.stdout
    out.write("\x1b[?1049h")
    try:
        while True:
            _look(runs)
            lines = _frame(runs, options, out).splitlines()[: shutil.get_terminal_size((100, 24)).lines - 1]
            # Line by line over the old frame: nothing flickers, also on a slow line.
            text = "".join(f"{encodable(line, out.encoding)}\x1b[K\n" for line in lines)
            out.write(f"\x1b[H{text}\x1b[J")
            out.flush()
            if not any(run.is_running for run in runs):
                break
            time.sleep(options.interval)
    finally:
        out.write("\x1b[?1049l")
        _print(runs, options, out)


def _tell(runs: Sequence[Followed], options: argparse.Namespace) -> None:
    """A line for each run that went on, every half minute; a frame in the end."""
    from contrl.report.terminal import say
    from contrl.report.watch import line

    told: dict[Path, str] = {}
    last = -LINES_EVERY
    while True:
        _look(runs)
        running = any(run.is_running for run in runs)
        if not running or time.monotonic() - last >= LINES_EVERY:
            last = time.monotonic()
            for run in runs:
                if told.get(run.folder) != line(run):
                    told[run.folder] = line(run)
                    say(line(run), sys.stdout)
        if not running:
            break
        time.sleep(options.interval)
    say("", sys.stdout)
    _print(runs, options, sys.stdout)


def _stream(runs: Sequence[Followed], options: argparse.Namespace) -> None:
    """Every record as it comes; at first all there are, and each run's status whenever it changes."""
    from contrl.report.terminal import say
    from contrl.report.watch import record_of

    told: dict[Path, str] = {}
    while True:
        for run in runs:
            found = run.look()
            if told.get(run.folder) != run.overview.status:
                told[run.folder] = run.overview.status
                found.append({"kind": "status", "status": run.overview.status})
            for record in found:
                say(json.dumps(record_of(run, record)), sys.stdout)
        if options.once or not any(run.is_running for run in runs):
            return
        time.sleep(options.interval)
