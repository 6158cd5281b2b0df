"""``contrl demo``: the main job in minutes; a shipped YAML run by the same code as any experiment."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path

DESCRIPTION = """A small model learns four groups of Countdown puzzles, one after the other, by reinforcement.

Every group is evaluated before the first stage and after every stage, so the first groups are seen to be
forgotten; with --strategies replay they are not. With --method dpo it learns preferences instead, each the opposite
of another. Takes minutes on two cores, dpo less than one; needs no GPU and no network.
"""
FILES = {"rloo": "demo.yaml", "dpo": "demo_dpo.yaml", "sft": "demo.yaml"}
"""The shipped file of each method."""
EPILOG = """examples:
  contrl demo
  contrl demo --strategies replay              the cure, beside the first run
  contrl demo --seed 1 --rounds 2
  contrl demo --method dpo                     opposite preferences, in less than a minute
  contrl demo --method dpo --strategies replay
  contrl demo --method sft                     the puzzles by supervised fine-tuning
  contrl demo --order random --order_seed 1
  contrl demo --print_config > my.yaml         the experiment as a file to change and run
  contrl demo prompts_per_step=16 training.max_steps=40
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    from contrl.cli.run import run_flags

    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted path and value, as in contrl run")
    parser.add_argument("--method", choices=tuple(FILES), default="rloo", help="how to learn (default: %(default)s)")
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=["naive"],
        metavar="NAME",
        help='how not to forget: naive, replay, or with fields: "replay(share=0.25)" (naive)',
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often the sequence is gone through (%(default)s)")
    parser.add_argument(
        "--order", default="given", metavar="ORDER", help="of the tasks: given, reversed, random, or names with commas"
    )
    parser.add_argument("--order_seed", type=int, default=0, help="of --order random, apart from --seed (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling, data order and replay (%(default)s)")
    parser.add_argument(
        "--output_dir", help="run folder (default: runs/demo, with what differs from the defaults appended)"
    )
    parser.add_argument("--print_config", action="store_true", help="print the demo's YAML and stop")
    run_flags(parser)


def config_file(method: str = "rloo") -> Path:
    """The shipped YAML."""
    return Path(str(files("contrl.configs").joinpath(FILES[method])))


def command(options: argparse.Namespace) -> int:
    """Run the demo."""
    if options.print_config:
        print(config_file(options.method).read_text(encoding="utf-8"), end="")
        return 0
    from contrl.cli.run import execute, is_first_process

    options.strategies, later = _strategies(options.strategies)
    folder = options.output_dir or "-".join(["runs/demo", *_differences(options)])
    overrides = [f"output_dir={folder}", f"seed={options.seed}", f"rounds={options.rounds}"]
    overrides += [f"strategies={options.strategies}", f"order={_listed(options.order)}"]
    overrides.append(f"order_seed={options.order_seed}")
    if options.method == "sft":
        overrides.append("method=sft")
    file = config_file(options.method)
    execute(file, [*overrides, *options.overrides, *later], options, source=file.name)
    if not options.dry_run and options.strategies == "naive" and is_first_process():
        method = "" if options.method == "rloo" else f" --method {options.method}"
        seed = f" --seed {options.seed}" if options.seed else ""
        print(f"next:   contrl demo{method} --strategies replay{seed}")
    return 0


def _listed(order: str) -> str:
    """Names with commas between as a list."""
    return f"[{order}]" if "," in order else order


def _strategies(words: list[str]) -> tuple[str, list[str]]:
    """The strategies with commas between, and the overrides that stand behind them: ``--strategies replay seed=1``."""
    overrides = [word for word in words if re.match(r"[\w.]+=", word)]
    return ",".join(word for word in words if word not in overrides), overrides


def _differences(options: argparse.Namespace) -> list[str]:
    """What of the command differs from the defaults, as parts of a folder's name."""
    parts = [] if options.method == "rloo" else [options.method]
    parts += [] if options.strategies == "naive" else [re.sub(r"[^\w.]+", "-", options.strategies).strip("-")]
    parts += [] if options.rounds == 1 else [f"{options.rounds}rounds"]
    if options.order != "given":
        is_random = options.order == "random"
        parts.append(f"random{options.order_seed}" if is_random else options.order.replace(",", "-"))
    return parts + ([] if options.seed == 0 else [f"seed{options.seed}"])
