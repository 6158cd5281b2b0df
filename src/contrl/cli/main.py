"""Entry point: find the command, run it, and turn what went wrong into words and an exit code.

Help is built without importing torch: each command's module only describes its arguments until it is run.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence

from contrl import __version__
from contrl.errors import BUG, INTERRUPTED, Interrupted, UserError

COMMANDS = {
    "demo": "learn and forget Countdown in minutes, on any machine",
    "run": "run an experiment from a YAML file",
    "resume": "continue a run that was stopped",
    "sft": "supervised fine-tuning",
    "reward": "train a reward model from pairs",
    "dpo": "direct preference optimisation",
    "kto": "from single answers marked good or bad",
    "cpo": "contrastive preference optimisation, SimPO, AlphaPO",
    "orpo": "odds-ratio preference optimisation",
    "ppo": "proximal policy optimisation, any reward",
    "rloo": "REINFORCE leave-one-out, any reward",
    "grpo": "group-relative policy optimisation, any reward",
    "data": "make data sets",
    "datasets": "list the named data sets",
    "preview": "show rows as the model will see them",
    "evaluate": "win rate of models against a reference, by a judge",
    "evaluate-checkpoints": "judge saved weights on every task: the results matrix, afterwards",
    "report": "build the page of a run and print its table",
    "compare": "runs or a study side by side, with intervals",
    "export-countdown": "models, logs, metrics and plot of a continual Countdown run",
    "show": "a run or a study at a glance",
    "watch": "curves of runs in the terminal, while they train or after",
    "ls": "list the runs below a folder",
    "chat": "talk to a model",
    "merge": "add an adapter to its base and write the whole model",
}

GROUPS = {
    "start": ("demo", "run", "resume"),
    "train": ("sft", "reward", "dpo", "ppo", "rloo", "grpo"),
    "look": ("preview", "watch", "show", "report", "compare"),
}
"""What ``contrl --help`` shows, at most 14; ``--help-all`` lists the rest of COMMANDS too."""
TRAINING = ("sft", "reward", "dpo", "kto", "cpo", "orpo", "ppo", "rloo", "grpo")
"""Commands with Hugging Face's flags, which one module reads."""
CHECKPOINTS = ("evaluate-checkpoints",)
"""Has these flags, too."""

DESCRIPTION = "Post-training of language models on a sequence of tasks: what was learnt, and what was forgotten."
EXAMPLES = """examples:
  contrl demo                                  learn four tasks in order, see the first ones forgotten
  contrl demo --strategies replay              the same with a cure
  contrl sft --model_name_or_path tiny --dataset_name my.jsonl
  contrl dpo --model_name_or_path gpt2 --dataset_name tasks.json --strategies replay
  contrl grpo --model_name_or_path gpt2 --dataset_name prompts.jsonl --reward_funcs my_module.my_fn
  contrl run my.yaml training.learning_rate=1e-5
  contrl report runs/demo

Each command has its own examples: contrl COMMAND --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see ``contrl.errors``)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(arguments), debug="--debug" in arguments, as_json="--json" in arguments)


def guarded(action: Callable[[], int | None], *, debug: bool = False, as_json: bool = False) -> int:
    """The exit code of an action; what a user can mend is told in words, unless ``debug`` keeps the traceback.

    Args:
        as_json: tell it as ``{"error": {...}}`` on standard output, where a program waits for JSON.
    """
    try:
        try:
            return _told(action, debug, as_json)
        finally:
            # What a pipe did not take must show here; at exit Python would complain about it in its own words.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BUG


def _told(action: Callable[[], int | None], debug: bool, as_json: bool) -> int:
    # It warns, once imported, of kernels that nobody asked for; a user of contrl can do nothing about them.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return int(action() or 0)
    except UserError as error:
        if debug:
            raise
        # Every process of a run meets the same error; one of each machine tells it.
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return error.exit_code
        if as_json:
            parts = {name: getattr(error, name, "") for name in ("what", "where", "why", "fix")}
            print(json.dumps({"error": {"code": error.exit_code, **parts}}))
        else:
            print(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(arguments: list[str]) -> int | None:
    """Find the command and carry it out."""
    if arguments and arguments[0] in TRAINING:
        from contrl.cli.training.command import run

        return run(arguments[0], arguments[1:])
    if arguments and arguments[0] in CHECKPOINTS:
        from contrl.cli.evaluate_checkpoints import run as evaluate_checkpoints

        return evaluate_checkpoints(arguments[1:])
    options = parse(arguments)
    if options.command is None:
        print(overview(everything=options.help_all))
        return 0
    result: int | None = options.action(options)
    return result


def overview(*, everything: bool = False) -> str:
    """The help of ``contrl`` itself.

    Args:
        everything: the commands outside of GROUPS, too.
    """
    shown = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "more": tuple(name for name in COMMANDS if name not in shown)}
    lines = ["usage: contrl [--help] [--help-all] [--version] COMMAND ...", "", DESCRIPTION]
    for title, names in groups.items():
        known = [name for name in names if name in COMMANDS]
        if known and (everything or title in GROUPS):
            lines += ["", f"{title}:", *(f"    {name:9} {COMMANDS[name]}" for name in known)]
    if groups["more"] and not everything:
        also = f"contrl --help-all also shows {', '.join(groups['more'])}."
        lines += ["", *textwrap.wrap(also, 100, subsequent_indent="  ", break_on_hyphens=False)]
    return "\n".join([*lines, "", EXAMPLES.rstrip()])


class _Parser(argparse.ArgumentParser):
    """The parser of ``contrl`` itself, whose help has groups."""

    def format_help(self) -> str:
        """The overview."""
        return overview() + "\n"


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
    parser = _Parser(prog="contrl", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"contrl {__version__}")
    parser.add_argument("--help-all", action="store_true")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=argparse.ArgumentParser)
    chosen = None
    for name, help_text in COMMANDS.items():
        chosen_here = name in arguments[:1] and name not in (*TRAINING, *CHECKPOINTS)
        module = importlib.import_module(f"contrl.cli.{name.replace('-', '_')}") if chosen_here else None
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
