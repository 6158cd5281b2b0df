"""The tables of ``online.py``: whole steps, phases, updates, and where two loss curves part.

A run is what its process told: steps, phases and lengths in order. The first set of rollouts is left out everywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from side_by_side import table

SAMPLER = "sampler"
"""contrl's decode loop beside ``generate``; made on an accelerator, or when asked for."""
PHASES = ("generate", "reward", "log-probs", "update")
AIMS = {"whole step": 3.0, "generate": 2.5, "update": 2.5}
"""Times as fast as TRL."""
MEMORY_AIM = 0.6
CURVES = ("loss", "grad_norm")
"""A loss at ratio 1 is nearly 0 whatever is learnt (RLOO's exactly), so the gradient's norm is compared too."""

Found = dict[str, list[dict[str, Any]]]
"""Side -> its runs."""


def windows(values: Sequence[Any], length: int) -> list[Sequence[Any]]:
    """What belongs to each set of rollouts, which serves ``length`` steps; without the first, which is not timed."""
    return [values[start : start + length] for start in range(length, len(values), length)]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians over sets of rollouts, per optimizer step: seconds, CPU seconds, phases; tokens, lengths; peak memory."""
    seconds: dict[str, list[float]] = {name: [] for name in ("whole step", "CPU", *runs[0]["phases"][0], "update")}
    for one in runs:
        epochs = one["epochs"]
        pairs = zip(windows(one["steps"], epochs), windows(one["phases"], epochs), strict=True)
        for steps, phases in pairs:
            parts = {name: sum(step[name] for step in phases) / epochs for name in phases[0]}
            whole, cpu = (sum(step[place] for step in steps) / epochs for place in (0, 1))
            told = {"whole step": whole, "CPU": cpu, **parts, "update": whole - sum(parts.values())}
            for name, value in told.items():
                seconds[name].append(value)
    lengths = [length for one in runs for length in one["lengths"][1:]]
    return {name: statistics.median(values) for name, values in seconds.items()} | {
        "length": statistics.mean(lengths),
        "sampled": statistics.mean(lengths) * runs[0]["rows"] / runs[0]["epochs"],
        "trained": statistics.mean(lengths) * runs[0]["rows"],
        "peak": max(one["peak"] for one in runs),
    }


def online_report(numbers: dict[str, Found]) -> list[str]:
    """The tables: whole steps and phases beside TRL, contrl's methods beside its GRPO, sampler beside ``generate``."""
    sides = {
        name: {side: summary(runs) for side, runs in found.items()}
        for name, found in numbers.items()
        if name != SAMPLER
    }
    compared = {name: (of["contrl"], of["TRL"]) for name, of in sides.items() if "TRL" in of}
    blocks = []
    if compared:
        header = ["step", "contrl s", "TRL s", "ratio", "ratio (CPU s)", "ratio per token", "aim"]
        header += ["contrl GiB", "TRL GiB", "memory", "aim", "mean length", "TRL's"]
        blocks.append(table(header, [_step_row(name, *both) for name, both in compared.items()]))
        header = ["phase", "contrl s", "TRL s", "ratio", "aim", "tokens/s", "TRL's"]
        rows = [_phase_row(name, phase, *both) for name, both in compared.items() for phase in PHASES]
        blocks.append(table(header, rows))
    if sides:
        costs = ["ms a trained token", "of GRPO's", "update ms", "of GRPO's"]
        header = ["contrl", "step s", *PHASES, *costs, "GiB", "mean length"]
        grpo = sides["grpo"]["contrl"] if "grpo" in sides else None
        blocks.append(table(header, [_own_row(name, of["contrl"], grpo) for name, of in sides.items()]))
    if SAMPLER in numbers:
        runs = numbers[SAMPLER]["contrl"]
        rows = [_sampler_row(runs, name) for name in ("contrl", "generate")]
        blocks.append(table(["sampler", "tokens/s", "mean length"], rows))
    return blocks


def _step_row(name: str, ours: dict[str, float], peer: dict[str, float]) -> list[object]:
    ratios = [peer[key] / ours[key] for key in ("whole step", "CPU")]
    per_token = ratios[0] * ours["sampled"] / peer["sampled"]
    memory = [ours["peak"], peer["peak"], ours["peak"] / peer["peak"], MEMORY_AIM]
    walls = [ours["whole step"], peer["whole step"]]
    return [name, *walls, *ratios, per_token, AIMS["whole step"], *memory, ours["length"], peer["length"]]


def _phase_row(name: str, phase: str, ours: dict[str, float], peer: dict[str, float]) -> list[object]:
    speeds = [_over(side["sampled"], side[phase]) for side in (ours, peer)]
    return [f"{name}: {phase}", ours[phase], peer[phase], _over(peer[phase], ours[phase]), AIMS.get(phase), *speeds]


def _over(a: float, b: float) -> float | None:
    """None where a side has no such phase."""
    return a / b if a and b else None


def _own_row(name: str, ours: dict[str, float], grpo: dict[str, float] | None) -> list[object]:
    row: list[object] = [name, ours["whole step"], *(ours[phase] for phase in PHASES)]
    for key in ("whole step", "update"):
        cost = ours[key] / ours["trained"]
        row += [1000 * cost, None if grpo is None else cost / (grpo[key] / grpo["trained"])]
    return [*row, ours["peak"], ours["length"]]


def _sampler_row(runs: Sequence[dict[str, Any]], name: str) -> list[object]:
    speeds = [speed for one in runs for speed in one[name]]
    return [name, statistics.median(speeds), statistics.mean(n for one in runs for n in one[f"{name} lengths"])]


def given_report(numbers: dict[str, Found]) -> list[str]:
    """The table of updates, and both curves of every case."""
    rows, curves = [], []
    width = max(len(f"{name}, grad_norm, contrl  ") for name in numbers)
    for name, found in numbers.items():
        for curve in CURVES:
            for side, runs in found.items():
                values = "  ".join(f"{value:.5f}" for value in runs[0][curve])
                curves.append(f"{name}, {curve}, {side}".ljust(width) + values)
        if "TRL" in found:
            ours, peer = (summary(found[side]) for side in ("contrl", "TRL"))
            (loss, _), (_, norm) = (differences(*(found[side][0][curve] for side in found)) for curve in CURVES)
            numbers_of = [ours["update"], peer["update"], peer["update"] / ours["update"], AIMS["update"]]
            memory = [ours["peak"], peer["peak"], ours["peak"] / peer["peak"]]
            rows.append([name, *numbers_of, *memory, f"{loss:.1e}", f"{norm:.1e}"])
    header = ["update", "contrl s", "TRL s", "ratio", "aim", "contrl GiB", "TRL GiB", "memory"]
    header += ["losses differ", "gradient norms differ (relative)"]
    return [*([table(header, rows)] if rows else []), "\n".join(["```", *curves, "```"])]


def differences(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float]:
    """The largest difference of two curves, and the largest relative to the peer's value."""
    gaps = [abs(a - b) for a, b in zip(ours, peer, strict=True)]
    return max(gaps), max(gap / abs(b) if b else gap for gap, b in zip(gaps, peer, strict=True))
