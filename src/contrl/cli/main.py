"""Entry point: find the command, run it, and turn what went wrong into words and an exit code.

Help is built without importing torch: each command's module only describes its arguments until it is run.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from contrl import __version__
from contrl.errors import BUG, INTERRUPTED, Interrupted, UserError

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see ``contrl.errors``)."""
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            # What a pipe did not take must show here; at exit Python would complain about it in its own words.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BUG


def _run(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.command is None:
        build_parser(arguments)[0].print_help()
        return 0
    try:
        return int(options.action(options) or 0)
    except UserError as error:
        if options.debug:
            raise
        # Every process of a run meets the same error; one of each machine tells it.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; exits with code 2 and the nearest valid name for what is unknown."""
    parser, command = build_parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    # argparse gives up on positional arguments that follow a flag, as in `contrl run my.yaml --dry_run seed=1`.
    overrides = [text for text in rest if "=" in text and not text.startswith("-") and hasattr(options, "overrides")]
    unknown = [text for text in rest if text not in overrides]
    if unknown:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], (command or parser)._option_string_actions, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        (command or parser).error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if overrides:
        options.overrides += overrides
    return options


def build_parser(arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """The parser and that of the command in ``arguments``; only that command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="contrl",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"contrl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    chosen = None
    for name, help_text in COMMANDS.items():
        module = importlib.import_module(f"contrl.cli.{name}") if name in arguments[:1] else None
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
            chosen = command
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, chosen
