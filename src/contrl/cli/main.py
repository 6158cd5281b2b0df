"""Entry point: find the command, run it, and turn what went wrong into words and an exit code.

Help is built without importing torch: each command's module only describes its arguments until it is run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from contrl import __version__
from contrl.errors import BUG, INTERRUPTED, UserError

COMMANDS = {
    "demo": "learn and forget Countdown in minutes, on any machine",
    "run": "run an experiment from a YAML file",
    "resume": "continue a run that was stopped",
    "data": "make data sets",
    "report": "build the page of a run and print its table",
}

DESCRIPTION = "Post-training of language models on a sequence of tasks: what was learnt, and what was forgotten."
EPILOG = """examples:
  contrl demo                                  learn four tasks in order, see the first ones forgotten
  contrl demo --strategies replay              the same with a cure
  contrl run my.yaml training.learning_rate=1e-5
  contrl resume runs/demo
  contrl report runs/demo

Each command has its own examples: contrl COMMAND --help
"""


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the module of the command in ``argv`` is imported."""
    parser = argparse.ArgumentParser(
        prog="contrl",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"contrl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, help_text in COMMANDS.items():
        module = importlib.import_module(f"contrl.cli.{name}") if name in argv[:1] else None
        command = commands.add_parser(
            name,
            help=help_text,
            description=module.DESCRIPTION if module else None,
            epilog=module.EPILOG if module else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if module:
            module.arguments(command)
            command.set_defaults(action=module.command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see ``contrl.errors``)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(arguments)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return int(options.action(options) or 0)
    except UserError as error:
        if options.debug:
            raise
        if int(os.environ.get("RANK", "0")) == 0 or os.environ.get("LOCAL_RANK") is None:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BUG
