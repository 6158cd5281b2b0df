"""``contrl data``: make data sets; so far Countdown, in veRL's columns."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = "Make data sets."
EPILOG = """examples:
  contrl data countdown --output_dir data/continual
  contrl data countdown --groups plus plus_minus --train_size 2000 --test_size 200 --num_operands 3 --max_number 20
  contrl data countdown --template compact --seed 7
"""

GROUPS = ("plus", "plus_minus", "plus_minus_mul", "plus_minus_mul_div")
TEMPLATES = ("base", "qwen-instruct", "compact")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    countdown = kinds.add_parser(
        "countdown",
        help="arithmetic puzzles in four operator groups",
        description="Write <group>/train.parquet and <group>/test.parquet. Equal seeds give byte-equal files; no "
        "instance occurs twice in a file, and none is shared between any train and any test file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    countdown.add_argument("--output_dir", default="data/continual", help="folder to write to (default: %(default)s)")
    countdown.add_argument("--groups", nargs="+", default=list(GROUPS), metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    countdown.add_argument("--train_size", type=int, default=100_000, help="rows of each train file (%(default)s)")
    countdown.add_argument("--test_size", type=int, default=1_000, help="rows of each test file (%(default)s)")
    countdown.add_argument("--num_operands", type=int, nargs="+", default=[3, 4], help="numbers of an instance (3 4)")
    countdown.add_argument("--max_number", type=int, default=999, help="largest number (%(default)s)")
    countdown.add_argument(
        "--target_range", type=int, nargs=2, default=[10, 1000], metavar=("LOW", "HIGH"), help="of the target (10 1000)"
    )
    countdown.add_argument("--template", choices=TEMPLATES, default="base", help="how it is put (default: %(default)s)")
    countdown.add_argument("--seed", type=int, default=42, help="equal seeds give equal files (%(default)s)")


def command(options: argparse.Namespace) -> int:
    """Write the files, showing progress."""
    from rich.console import Console

    from contrl.data.countdown import CountdownConfig, write

    config = CountdownConfig(
        groups=tuple(options.groups),
        train_size=options.train_size,
        test_size=options.test_size,
        num_operands=tuple(options.num_operands),
        max_number=options.max_number,
        target_range=tuple(options.target_range),
        template=options.template,
        seed=options.seed,
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        files = write(config, Path(options.output_dir))
    else:
        from rich.progress import Progress, TaskID

        with Progress(console=console, transient=True) as bars:
            tasks: dict[str, TaskID] = {}

            def show(group: str, split: str, done: int, total: int) -> None:
                name = f"{group}/{split}"
                if name not in tasks:
                    tasks[name] = bars.add_task(f"[cyan]{name}", total=total)
                bars.update(tasks[name], completed=done)

            files = write(config, Path(options.output_dir), show)
    for path, rows in files:
        console.print(f"[green]{rows:>9,}[/green] rows  {path}")
    return 0
