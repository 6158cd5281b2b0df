"""What a run will cost, told before it starts: steps, time, memory and disk.

Time is arithmetic over a speed measured here in a twentieth of a second, so it is rough and says so; disk is
exact enough to refuse a run that cannot fit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from contrl.engine.online import describe_batch
from contrl.errors import EnvironmentFault
from contrl.interfaces import Method, OnlineMethod

BYTES = 4
"""Of a float32 weight."""


@dataclass(frozen=True)
class Size:
    """Parameters of a model: all of them, and those that are trained."""

    total: int
    trained: int


@dataclass(frozen=True)
class Load:
    """The work of a run: optimizer steps of each stage and mean tokens of a prompt and of a completion."""

    steps: list[int]
    prompts_per_step: int
    prompt_tokens: float
    completion_tokens: float
    eval_items: int


def speed() -> float:
    """Floating-point operations a second of this device, from one matrix product."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(512, 512, device=device)
    a @ a
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < 0.05:
        float((a @ a)[0, 0])
        products += 1
    return products * 2 * 512**3 / (time.perf_counter() - start)


def seconds(size: Size, load: Load, method: Method, num_evaluations: int) -> float:
    """Rough duration: 6 operations per weight and trained token, 2 per sampled one, and a cost per model call."""
    samples = method.samples_per_prompt if isinstance(method, OnlineMethod) else 1
    new = float(method.max_new_tokens) / 2 if isinstance(method, OnlineMethod) else load.completion_tokens
    tokens = load.prompts_per_step * (load.prompt_tokens + samples * new)
    operations, calls = 6 * size.total * tokens, 2.0
    if isinstance(method, OnlineMethod):
        operations += 2 * size.total * tokens
        calls += method.max_new_tokens
    per_evaluation = load.eval_items * 2 * size.total * (load.prompt_tokens + new)
    total = sum(load.steps) * operations + num_evaluations * per_evaluation
    return total / (0.4 * speed()) + sum(load.steps) * calls * 0.005


def disk_bytes(size: Size, stages: int, training: Mapping[str, Any], steps: int) -> int:
    """Peak bytes on disk: every stage's weights, the base, the checkpoints that stay, and the one being written."""
    weights = size.trained * BYTES if size.trained < size.total else size.total * BYTES
    checkpoint = weights + 2 * size.trained * BYTES
    every = training.get("save_steps", 500)
    kept = int(steps // every) if every >= 1 else int(1 / every)
    if training.get("save_total_limit") is not None:
        kept = min(kept, int(training["save_total_limit"]))
    if training.get("save_strategy", "steps") == "no":
        kept = 0
    return size.total * BYTES + stages * (weights + kept * checkpoint) + 2 * checkpoint


def describe(size: Size, load: Load, method: Method, stages: int, training: Mapping[str, Any]) -> list[str]:
    """The arithmetic of the run in words, one fact a line."""
    if isinstance(method, OnlineMethod):
        batch = describe_batch(method, load.prompts_per_step)
    else:
        batch = f"{load.prompts_per_step} rows a step"
    memory = (size.total + 3 * size.trained) * BYTES
    disk = disk_bytes(size, stages, training, max(load.steps))
    minutes = seconds(size, load, method, stages + 1) / 60
    return [
        f"model    {size.total:,} parameters, {size.trained:,} trained",
        f"batch    {batch}",
        f"steps    {sum(load.steps):,} in {stages} stages ({', '.join(map(str, load.steps))})",
        f"time     about {minutes:.0f} min (rough)" if minutes >= 1 else "time     about a minute or less (rough)",
        f"memory   {readable(memory)} for weights, gradients and optimizer, besides activations",
        f"disk     at most {readable(disk)} for checkpoints and the weights of every stage",
    ]


def require_disk(folder: Path, needed: int) -> None:
    """Refuse a run that cannot fit.

    Raises:
        EnvironmentFault: naming what is needed and what is free.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise EnvironmentFault(
            f"the run needs {readable(needed)} of disk and {readable(free)} are free",
            where=str(place),
            fix="set training.save_total_limit or a larger training.save_steps, or another output_dir",
        )


def readable(size: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
