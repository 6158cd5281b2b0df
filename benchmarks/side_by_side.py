"""What the benchmarks share: alternating runs, medians and their ratios, one table, the machine in words.

Variants run A B C A B C in one process, so a busy neighbour slows all of them; what is told is a ratio of medians.
CPU seconds stand beside wall seconds: on a shared machine they are the steadier of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PEER = "1.16.0"
"""The TRL release that is compared with."""

SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Options:
    """What every benchmark takes: threads of the measured process, rounds of alternation, a file for the numbers."""

    threads: int
    repeats: int
    json_path: Path | None


@dataclass(frozen=True)
class Run:
    """One timed call: what it returned, and how long it took in seconds on the clock and of all cores together."""

    value: Any
    seconds: float
    cpu_seconds: float


Runs = Mapping[str, Sequence[Run]]
"""Variant -> its runs, in the order they were made."""


def read_options(description: str, arguments: Sequence[str] | None = None) -> Options:
    """Parse the command line, and set the environment before anything heavy is imported."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=2, help="threads of the measured process (default 2)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of alternating runs (default 3)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    given = parser.parse_args(arguments)
    if given.threads < 1 or given.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    os.environ.update(SURROUNDINGS, OMP_NUM_THREADS=str(given.threads))
    warnings.filterwarnings("ignore", category=FutureWarning)  # the peers' own, about their own names
    return Options(given.threads, given.repeats, given.json)


def timed(call: Callable[[], Any]) -> Run:
    """Call once."""
    cpu, start = time.process_time(), time.perf_counter()
    value = call()
    return Run(value, time.perf_counter() - start, time.process_time() - cpu)


def alternate(variants: Mapping[str, Callable[[int], Any]], repeats: int) -> dict[str, list[Run]]:
    """Run every variant in turn, ``repeats`` rounds; each call is given the number of its round, for seeds."""
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for number in range(repeats):
        for name, call in variants.items():
            runs[name].append(timed(partial(call, number)))
            print(f"  round {number + 1}/{repeats}: {name} {runs[name][-1].seconds:.1f} s", file=sys.stderr)
    return runs


def median(runs: Sequence[Run]) -> float:
    """Median seconds on the clock."""
    return statistics.median(run.seconds for run in runs)


def ratio(runs: Sequence[Run], reference: Sequence[Run]) -> float:
    """How many times as fast as the reference: its median seconds divided by those of ``runs``."""
    return median(reference) / median(runs)


def cpu_ratio(runs: Sequence[Run], reference: Sequence[Run]) -> float:
    """``ratio`` in CPU seconds."""
    ours, theirs = (statistics.median(run.cpu_seconds for run in one) for one in (runs, reference))
    return theirs / ours


def spread(runs: Sequence[Run]) -> str:
    """Smallest and largest seconds, as text."""
    seconds = [run.seconds for run in runs]
    return f"{min(seconds):.1f}–{max(seconds):.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that reads well on a terminal and is Markdown: first column left, the others right aligned."""
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    if any(len(row) != len(header) for row in cells):
        raise ValueError(f"every row needs {len(header)} cells")
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("| " + " | ".join([row[0].ljust(len(first)), *others]) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _text(cell: object) -> str:
    """A number with three significant digits or all of its integer ones; None as a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


def version(package: str) -> str | None:
    """The installed version without its local part, or None."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def has_peer() -> bool:
    """Whether the TRL release to compare with is installed; says what to do where it is not."""
    if version("trl") == PEER:
        return True
    print(f"trl {PEER} is not installed ({version('trl') or 'no version'} found): rows against it are left out.")
    print(f"  pip install -c constraints.txt trl=={PEER}   or: make bench")
    return False


def stop(message: str, fix: str) -> None:
    """End with exit code 4: the machine lacks something."""
    print(f"{message}\n  {fix}", file=sys.stderr)
    raise SystemExit(4)


def smollm2(threads: int) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer, torch held to ``threads``; ends with a message without."""
    if find_spec("contrl") is None:
        stop("contrl is not installed", "pip install -c constraints.txt -e .   or: make bench")
    import torch
    from transformers.utils import logging

    from contrl.errors import EnvironmentFault
    from contrl.models import embedded

    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return embedded.smollm2()
    except EnvironmentFault as fault:
        stop(fault.what, fault.fix)
        raise


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on: processor family, cores, threads, versions, and how busy the machine is."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    packages = {name: version(name) for name in ("torch", "transformers", "trl")}
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": threads, "load": load} | packages


def report(title: str, body: str, options: Options, numbers: object) -> None:
    """Print the machine and the table; write the numbers where the user asked for them."""
    state = machine(options.threads)
    shown = ", ".join(f"{name} {_text(value)}" for name, value in state.items())
    print(f"\n{title}\n{shown}\n\n{body}")
    if options.json_path is not None:
        text = json.dumps({"machine": state, "numbers": numbers}, indent=1, ensure_ascii=False)
        options.json_path.write_text(text + "\n", encoding="utf-8")
