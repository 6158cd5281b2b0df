"""``contrl chat``: talk to a model, watch the answer grow, keep the conversation as a training row."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contrl.errors import UserError

if TYPE_CHECKING:
    from contrl.models.conversation import Conversation, Sampling

DESCRIPTION = "Talk to a model: a name, or a model, adapter, run, stage or checkpoint folder."
EPILOG = """examples:
  contrl chat --model_name_or_path runs/demo
  contrl chat --model_name_or_path smollm2 --system_prompt "Answer in one sentence." --do_sample False
  echo "What is the capital of France?" | contrl chat --model_name_or_path smollm2

While talking: /help /clear /system TEXT /save [FILE] /set temperature=0.7 /again /exit; Ctrl-C ends an answer.
"""
COMMANDS = {
    "/help": "show these commands",
    "/clear": "forget what was said",
    "/system": "TEXT: the system prompt from now on; without TEXT none",
    "/save": "[FILE]: add the conversation to a file of training rows",
    "/set": "NAME=VALUE: how answers are drawn, e.g. /set temperature=0.7; without it, what is set",
    "/again": "another answer to the last question",
    "/exit": "leave",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--model_name_or_path", required=True, metavar="MODEL", help="a name or a folder")
    parser.add_argument("--system_prompt", default="", metavar="TEXT", help="stands before the conversation")
    parser.add_argument("--user", default="you", metavar="NAME", help="how the prompt calls you")
    parser.add_argument("--max_new_tokens", type=int, default=256, metavar="N", help="length limit of an answer (256)")
    parser.add_argument(
        "--do_sample",
        type=_yes_or_no,
        nargs="?",
        const=True,
        default=True,
        metavar="True|False",
        help="draw answers; False takes the most likely one",
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="below 1 is more certain (1.0)")
    parser.add_argument("--top_k", type=int, default=50, metavar="N", help="draw from the N likeliest tokens (50)")
    parser.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="draw from this share of likelihood (1.0)"
    )
    parser.add_argument("--repetition_penalty", type=float, default=1.0, metavar="X", help="above 1 repeats less (1.0)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="precision")
    parser.add_argument("--save_folder", default="chat_history", metavar="FOLDER", help="where /save writes")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")


def command(options: argparse.Namespace) -> int:
    """Load the model and talk until the end of input."""
    from contrl.cli.console import quiet_libraries, say

    quiet_libraries()
    talk = _open(options)
    say(f"model: {talk.policy.source}   (/help shows the commands)")
    if not talk.has_template:
        say("this model has no chat template: each line is text that it continues")
    for line in _lines(options.user):
        try:
            if line.startswith("/"):
                if not _obey(line, talk, options):
                    break
            elif line.strip():
                talk.say(line, _write)
                _write("\n")
        except UserError as error:
            say(str(error))
    return 0


def _open(options: argparse.Namespace) -> Conversation:
    import torch

    from contrl.config import ModelConfig
    from contrl.models.conversation import Conversation, Sampling
    from contrl.models.load import load_policy

    sampling = Sampling(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sampling)})
    sampling.check()
    config = ModelConfig(options.model_name_or_path, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"there is no device {options.device!r}", fix="cpu, cuda, cuda:1, mps ...") from error
    policy = load_policy(config, 0, device=device)
    policy.model.eval()
    return Conversation(policy, options.system_prompt, sampling)


def _lines(user: str) -> Iterator[str]:
    """What the user types; from a pipe, its lines."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() a history and arrow keys

    while True:
        try:
            yield input(f"{user}> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            # Meant for an answer that had just ended, more often than for the conversation.
            print("\n(/exit or Ctrl-D leaves)")


def _write(text: str) -> None:
    print(text, end="", flush=True)


# --- slash commands -------------------------------------------------------------------------------------


def _obey(line: str, talk: Conversation, options: argparse.Namespace) -> bool:
    """Carry out a command; False ends the conversation."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    match "/exit" if name == "/quit" else name:
        case "/exit":
            return False
        case "/help":
            _write("".join(f"{known:9}{meaning}\n" for known, meaning in COMMANDS.items()))
        case "/clear":
            talk.turns.clear()
            _write("forgotten\n")
        case "/system":
            talk.system = rest
            _write(f"system prompt: {rest or 'none'}\n")
        case "/save":
            _write(f"{_save(talk, rest, options)}\n")
        case "/set":
            _write(f"{_set(talk.sampling, rest)}\n")
        case "/again":
            if talk.again(_write) is None:
                raise UserError("nothing was said yet")
            _write("\n")
        case _:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            raise UserError(
                f"there is no command {name}", fix=f"did you mean {near[0]}?" if near else "/help lists them"
            )
    return True


def _save(talk: Conversation, file: str, options: argparse.Namespace) -> str:
    """Append the conversation as one row of JSON lines."""
    row = talk.row()
    if row is None:
        raise UserError("nothing was said yet", fix="a row ends with an answer")
    model = Path(options.model_name_or_path).name or "model"
    path = Path(file) if file else Path(options.save_folder) / f"{model}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}", fix="/save FILE") from error
    return f"saved to {path}"


def _set(sampling: Sampling, text: str) -> str:
    """Change how answers are drawn; returns what is set."""
    names = [field.name for field in dataclasses.fields(sampling)]
    for part in text.replace(",", " ").split():
        name, equals, value = part.partition("=")
        if name not in names or not equals:
            near = difflib.get_close_matches(name, names, 1)
            raise UserError(
                f"cannot set {part!r}",
                fix=f"NAME=VALUE, NAME one of {', '.join(names)}" + (f": {near[0]}?" if near else ""),
            )
        before = getattr(sampling, name)
        try:
            setattr(sampling, name, _yes_or_no(value) if isinstance(before, bool) else type(before)(value))
            sampling.check()
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"{name}: {value!r} is not a {type(before).__name__}") from error
        except UserError:
            setattr(sampling, name, before)
            raise
    return "  ".join(f"{name}={getattr(sampling, name)}" for name in names)


def _yes_or_no(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]
