"""What a run will cost, told before it starts: steps, time, memory and disk.

Time is arithmetic over a speed measured here in a tenth of a second, so it is rough and says so (the demo comes out
within a factor of two); disk is exact enough to refuse a run that cannot fit.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from contrl.continual.rotation import Rotation
from contrl.engine.online import describe_batch
from contrl.errors import EnvironmentFault
from contrl.interfaces import Method, OnlineMethod

BYTES = 4
"""Of a float32 weight."""

EFFICIENCY = 0.5
"""Share of a bare matrix product's speed that training reaches; 0.4 to 0.6 was measured on the demo."""

PROBE_TOKENS = 64
"""Longest answer on which the drift is measured: the KL of longer ones is that of their first so many tokens."""

CALL = 0.005
"""Seconds that one call of a model costs besides its arithmetic: a decode loop of a small model consists of them."""


@dataclass(frozen=True)
class Size:
    """Parameters of a model: all of them, and those that are trained."""

    total: int
    trained: int


@dataclass(frozen=True)
class Judged:
    """What all evaluations of a run come to, counted before it starts.

    Attributes:
        cells: cells of the results matrix that are filled.
        sampled: answers that are sampled, ``max_new_tokens`` their length limit.
        calls: cells with sampled answers: each decodes token after token.
        forced: items of rows' own answers, run once.
        probed: times a probe answer is sampled or run, for the drift.
    """

    cells: int = 0
    sampled: int = 0
    calls: int = 0
    forced: int = 0
    probed: int = 0
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Load:
    """The work of a sequence of stages.

    Attributes:
        method: of the first stage, for the number of samples.
        steps: optimizer steps of each stage.
        rotations: which checkpoints of each stage stay.
        prompt_tokens, completion_tokens: mean lengths in the rows.
        judged: what is evaluated between the stages.
    """

    method: Method
    steps: list[int]
    rotations: list[Rotation]
    prompts_per_step: int
    prompt_tokens: float
    completion_tokens: float
    judged: Judged = Judged()


def speed() -> float:
    """Floating-point operations a second of this device: the fastest of some matrix products.

    The fastest, because other programs come and go. On a CPU one thread is measured and the others are taken to add
    less each, because several threads on a busy machine wait for each other and measure nothing but that.
    """
    device, size = ("cuda", 4096) if torch.cuda.is_available() else ("cpu", 512)
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    a = torch.randn(size, size, device=device)
    fastest, start = math.inf, time.perf_counter()
    while time.perf_counter() - start < 0.1:
        began = time.perf_counter()
        float((a @ a)[0, 0])
        fastest = min(fastest, time.perf_counter() - began)
    torch.set_num_threads(threads)
    return 2 * size**3 / fastest * (math.sqrt(threads) if device == "cpu" else 1.0)


def seconds(size: Size, load: Load, operations_per_second: float) -> float:
    """Rough duration: the arithmetic of training, sampling and evaluating, and a cost per model call.

    A trained token costs 2 operations per weight forward, 2 backward, and 2 more per trained weight; a sampled or
    judged one costs 2. Prompts are run once, whatever the number of their completions.
    """
    per_second, method = EFFICIENCY * operations_per_second, load.method
    new, samples = load.completion_tokens, 1
    if isinstance(method, OnlineMethod):
        # Answers grow as long as the rows' own, or if there are none to go by, half of what they may.
        new, samples = min(new or method.max_new_tokens / 2, method.max_new_tokens), method.samples_per_prompt
    tokens = load.prompts_per_step * (load.prompt_tokens + samples * new)
    step = tokens * (4 * size.total + 2 * size.trained) / per_second + 3 * CALL
    if isinstance(method, OnlineMethod):
        step += (tokens * 2 * size.total / per_second + method.max_new_tokens * CALL) / method.num_epochs
    return sum(load.steps) * step + judging_seconds(size, load, operations_per_second)


def judging_tokens(load: Load) -> float:
    """Tokens that all evaluations run: answers as long as the rows' own, or half of what they may be."""
    limit = load.judged.max_new_tokens
    sampled = load.judged.sampled * (load.prompt_tokens + min(load.completion_tokens or limit / 2, limit))
    sampled += load.judged.probed * (load.prompt_tokens + min(limit, PROBE_TOKENS))
    return sampled + load.judged.forced * (load.prompt_tokens + load.completion_tokens)


def judging_seconds(size: Size, load: Load, operations_per_second: float) -> float:
    """Rough duration of all evaluations: two operations a weight and token, and the calls of the decode loops."""
    arithmetic = judging_tokens(load) * 2 * size.total / (EFFICIENCY * operations_per_second)
    return arithmetic + load.judged.calls * load.judged.max_new_tokens * CALL


def disk_bytes(size: Size, load: Load) -> int:
    """Peak bytes on disk: base, weights of every stage, the checkpoints that stay, one more, and one being written."""
    weights = size.trained * BYTES if size.trained < size.total else size.total * BYTES
    checkpoint = weights + 2 * size.trained * BYTES
    stages = zip(load.rotations, load.steps, strict=True)
    kept = sum(len(rotation.kept(range(1, steps + 1))) for rotation, steps in stages)
    return size.total * BYTES + len(load.steps) * weights + (kept + 2) * checkpoint


def describe(size: Size | None, load: Load, base: Load | None) -> list[str]:
    """The arithmetic of the run in words, one fact a line; ``size`` is None for a model still to be fetched."""
    if isinstance(load.method, OnlineMethod):
        batch = describe_batch(load.method, load.prompts_per_step)
    else:
        batch = f"{load.prompts_per_step} rows a step"
    steps = f"{sum(load.steps):,} in {len(load.steps)} stages ({', '.join(map(str, load.steps))})"
    lines = [f"batch    {batch}", f"steps    {steps}" + (f", after {sum(base.steps):,} of the base" if base else "")]
    if size is None:
        return [*lines, f"judged   {_describe_judged(load)}"]
    rate = speed()
    total = seconds(size, load, rate) + (seconds(Size(size.total, size.total), base, rate) if base else 0.0)
    minutes, share = total / 60, judging_seconds(size, load, rate) / total if total else 0.0
    part = (
        f", {'less than 1' if share < 0.01 else f'about {100 * share:.0f}'} % of the time" if load.judged.cells else ""
    )
    lines.append(f"judged   {_describe_judged(load)}{part}")
    memory = (size.total + 3 * max(size.trained, size.total if base else 0)) * BYTES
    return [
        f"model    {size.total:,} parameters, {size.trained:,} trained",
        *lines,
        f"time     about {minutes:.0f} min (rough)" if minutes >= 1.5 else "time     about a minute or less (rough)",
        f"memory   {readable(memory)} for weights, gradients and optimizer, besides activations",
        f"disk     at most {readable(disk_bytes(size, load))} for checkpoints and the weights of every stage",
    ]


def _describe_judged(load: Load) -> str:
    """What is evaluated, in words."""
    judged = load.judged
    if not judged.cells:
        return "nothing while training; contrl evaluate-checkpoints fills the results afterwards"
    parts = [f"{judged.sampled:,} sampled answers of at most {judged.max_new_tokens} tokens"] if judged.sampled else []
    parts += [f"{judged.forced:,} rows with their own answers"] if judged.forced else []
    parts += [f"{judged.probed:,} times a probe of drift"] if judged.probed else []
    tokens = judging_tokens(load)
    return f"{' and '.join(parts)} in {judged.cells} evaluations of a task: about {tokens:,.0f} tokens"


def require_disk(folder: Path, needed: int) -> None:
    """Refuse a run that cannot fit; what an interrupted run already wrote into the folder is not needed again.

    Raises:
        EnvironmentFault: naming what is needed and what is free.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    written = {file.stat().st_ino: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    needed, free = needed - sum(written.values()), shutil.disk_usage(place).free
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
