"""``contrl evaluate``: is a model better than the one it started from? Answers, a judge, win rate with intervals.

This module reads and checks what was asked; ``contrl.cli.evaluating`` carries it out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrl.cli import judges
from contrl.errors import ConfigErrors, UserError

DESCRIPTION = """Compare models with a reference on the same prompts: win rate, rewards and lengths, with intervals.

Both sides answer with one seed; a judge decides. What was answered or scored is kept: a command that was killed is
continued by repeating it, and another judge finds the answers there.
"""
EPILOG = """examples:
  contrl evaluate --model_path outputs/dpo/final --nemotron_api_key KEY --num_prompts 100 --output_dir outputs/dpo/eval
  contrl evaluate --model_path runs/dpo runs/rloo --reward_model runs/reward --output_dir runs/compared
  contrl evaluate --model_path runs/rloo --dataset_name test.parquet --metric countdown --temperature 0 --output_dir e
  contrl evaluate --model_path runs/dpo --judge http://127.0.0.1:8000/v1 --judge_model my-chat --pairwise --dry_run

The judge is exactly one of --nemotron_api_key, --judge, --reward_model, --metric.
Without --reference_model it is the model that the run started from (its run.json), else Qwen/Qwen2.5-0.5B-Instruct.
"""
REFERENCE = "Qwen/Qwen2.5-0.5B-Instruct"
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none")


@dataclass(frozen=True)
class Request:
    """What is asked for, checked.

    Attributes:
        models: what is evaluated; ``reference`` None is chosen for each.
        options: the flags as they were given, with numbers read.
        key: of a remote judge; in no field of ``options``.
    """

    models: tuple[str, ...]
    reference: str | None
    output_dir: Path
    options: argparse.Namespace
    key: str | None


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; values are read in ``check``, so that all mistakes are told at once."""
    add = parser.add_argument
    add(
        "--model_path", "--model_name_or_path", nargs="+", metavar="M", help="a name, or a model, adapter or run folder"
    )
    add("--reference_model", metavar="R", help="what it is compared with (default: what its run started from)")
    add("--dataset_name", default="ultrafeedback", metavar="DATA", help="a file, a name or a hub id (ultrafeedback)")
    add("--split", "--dataset_test_split", metavar="NAME", help="of a data set with several (test)")
    add("--dataset_index", metavar="I", help="of a file of tasks, only this one, from 0")
    add("--num_prompts", default="100", metavar="N", help="the first N questions (100)")
    add("--output_dir", metavar="FOLDER", help="for metrics, answers and scores")
    judges.judge_flags(parser.add_argument_group("the judge, exactly one"))
    more = parser.add_argument_group("answers").add_argument
    more("--max_new_tokens", default="512", metavar="N", help="length limit of an answer (512)")
    more("--temperature", default="0.7", metavar="X", help="0 takes the likeliest answer (0.7)")
    more("--top_p", default="0.9", metavar="P", help="draw from this share of likelihood (0.9)")
    more("--seed", default="0", metavar="N", help="of the answers, the same for both sides, and the intervals (0)")
    more("--tokens_per_chunk", default=str(2**15), metavar="N", help="tokens that decode side by side (32768)")
    more("--dtype", default="auto", metavar="NAME", help="auto, float32, bfloat16, float16")
    more("--device", metavar="DEVICE", help="cpu, cuda ... (default: a GPU where there is one)")
    more("--answers_dir", metavar="FOLDER", help="where answers and scores are kept (OUTPUT_DIR/answers)")
    more("--trust_remote_code", action="store_true", help="run Python code that comes with a model")
    last = parser.add_argument_group("the rest").add_argument
    last("--report_to", nargs="+", metavar="NAME", help="trackers: wandb, tensorboard ... or none")
    last("--use_wandb", nargs="?", const="true", metavar="BOOL", help="the same as --report_to wandb")
    last("--wandb_project", metavar="NAME", help="the same as the variable WANDB_PROJECT")
    last("--run_name", metavar="NAME", help="of the tracker run (eval_<parent folder of the model>)")
    last("--detailed_logging", nargs="?", const="true", metavar="BOOL", help="no effect: every prompt is always kept")
    last("--dry_run", action="store_true", help="print generations, judge calls and tokens; then stop")


def command(options: argparse.Namespace) -> int:
    """Evaluate."""
    key = judges.forget_key(options) if options.nemotron_api_key is not None else None
    request = check(options, key)
    if os.environ.get("RANK", "0") != "0":  # of several processes one evaluates
        return 0
    # Only now, because it loads everything: a mistake in the flags is told before that.
    from contrl.cli.evaluating import carry_out

    carry_out(request)
    return 0


def check(options: argparse.Namespace, key: str | None = None) -> Request:
    """The request, its numbers read.

    Args:
        options: as argparse gives them.
        key: of the judge, where it was taken out of the options already.

    Raises:
        ConfigErrors: every mistake at once.
    """
    errors: list[UserError] = []

    def number(name: str, kind: Callable[[str], Any], least: float, most: float | None = None) -> Any:
        text = getattr(options, name)
        if text is None:
            return None
        try:
            value = kind(str(text))
        except ValueError:
            value = None
        if value is None or not least <= value <= (value if most is None else most):
            wanted = "a whole number" if kind is int else "a number"
            bounds = f"{least:g} or more" if most is None else f"{least:g} to {most:g}"
            errors.append(UserError(f"--{name} is {text!r}", fix=f"give {wanted}, {bounds}"))
            value = None
        setattr(options, name, value)
        return value

    def switch(name: str) -> bool:
        text = str(getattr(options, name) or "false").lower()
        if text not in (*_YES, *_NO):
            errors.append(UserError(f"--{name} is {text!r}", fix="write it alone, or with true or false"))
        return text in _YES

    for name, least in (("num_prompts", 1), ("max_new_tokens", 1), ("seed", 0), ("tokens_per_chunk", 1)):
        number(name, int, least)
    number("dataset_index", int, 0)
    number("max_judge_calls", int, 0)
    number("judge_retries", int, 0)
    number("temperature", float, 0.0)
    number("top_p", float, 1e-9, 1.0)
    margin = number("tie_margin", float, 0.0) if options.tie_margin is not None else 0.0
    options.tie_margin = margin or 0.0
    for name in ("pairwise", "use_wandb", "detailed_logging"):
        setattr(options, name, switch(name))
    errors += [
        UserError(f"evaluate needs --{name}") for name in ("model_path", "output_dir") if not getattr(options, name)
    ]
    if options.dtype not in ("auto", "float32", "bfloat16", "float16"):
        errors.append(UserError(f"--dtype is {options.dtype!r}", fix="write auto, float32, bfloat16 or float16"))
    errors += judges.problems(options, key)
    if options.output_dir and Path(options.output_dir).is_file():
        errors.append(UserError(f"--output_dir {options.output_dir} is a file", fix="name a folder"))
    names = list(options.model_path or ())
    errors += [UserError(f"--model_path names {name} twice") for name in dict.fromkeys(names) if names.count(name) > 1]
    if errors:
        raise ConfigErrors(errors)
    return Request(tuple(names), options.reference_model, Path(options.output_dir), options, key)
