"""TRL's counts of completions as contrl's counts of prompts, for commands that sample.

A batch size of TRL counts completions on one device; a step of contrl counts prompts over all of them, each with its
samples. What does not come out even is refused with the nearest numbers that do, because a rounded batch is another
experiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from contrl.cli.flags import Given
from contrl.config.scalars import parse_int
from contrl.config.tree import COMMAND_LINE, Node, Scalar
from contrl.errors import UserError

_SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass
class Counts:
    """The numbers of a command line, and what is wrong with them.

    Attributes:
        given: the flags by name.
        defaults: of fields of the method, and of ``per_device_train_batch_size``.
        ranks: number of processes.
        paths: what the numbers set in the configuration; ``dropped`` is what they replace.
    """

    given: Mapping[str, Given]
    defaults: Mapping[str, int]
    ranks: int = 1
    paths: dict[str, Node] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    errors: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def number(self, name: str) -> int:
        """A flag's number, or its default. Raises ValueError for a word that is none, which the schema tells."""
        if name not in self.given:
            return self.defaults.get(name, 1)
        number = parse_int(self.given[name].text)
        if number is None or number < 1:
            raise ValueError(name)
        return number

    def refuse(self, name: str, what: str, *, why: str = "", fix: str = "") -> None:
        """Note a mistake in a flag."""
        place = self.given[name].place if name in self.given else COMMAND_LINE
        self.errors.append(
            UserError(
                f"--{name}{f' {self.number(name)}' if name in self.given else ''}: {what}",
                where=str(place),
                why=why,
                fix=fix,
            )
        )

    def set(self, path: str, number: int) -> None:
        """A number that the flags come to."""
        self.paths[path] = Scalar(COMMAND_LINE, str(number))


def convert(counts: Counts) -> None:
    """Prompts of a step, minibatches of a window and steps in all, from the flags given."""
    try:
        _convert(counts)
    except ValueError:
        # Some flag holds no number of that kind: the configuration's own check says so, with its place.
        return


def _convert(counts: Counts) -> None:
    given = counts.given
    if "prompts_per_step" in given:
        for name in ("per_device_train_batch_size", "batch_size", "mini_batch_size"):
            if name in given:
                counts.refuse(
                    name, "the size of a step is given twice", why="--prompts_per_step is its size in prompts"
                )
        per_window = counts.number("prompts_per_step") * counts.number("samples_per_prompt")
        per_window *= counts.number("num_minibatches")
    else:
        size, accumulation = _batch(counts), counts.number("gradient_accumulation_steps")
        minibatches = _minibatches(counts, size, accumulation)
        _prompts(counts, size, accumulation)
        per_window = size * accumulation * counts.ranks * minibatches
        counts.dropped |= {f"training.{name}" for name in _SIZES}
        if accumulation > 1:
            counts.notes.append(
                "--gradient_accumulation_steps counts in the size of a step; a pass is as large as --tokens_per_pass"
            )
    if "total_episodes" in given:
        _episodes(counts, per_window)


def _batch(counts: Counts) -> int:
    """Completions of a pass on one device, under its new or its old name."""
    given = counts.given
    if "batch_size" not in given and "mini_batch_size" not in given:
        return counts.number("per_device_train_batch_size")
    if "per_device_train_batch_size" in given:
        counts.refuse("per_device_train_batch_size", "the size of a pass is given twice", fix="leave --batch_size out")
    if "mini_batch_size" in given:
        return counts.number("mini_batch_size")
    parts = counts.number("gradient_accumulation_steps") * counts.number("num_minibatches")
    whole = counts.number("batch_size")
    if whole % parts:
        counts.refuse("batch_size", f"cannot be shared out to {parts} passes", fix=f"use {nearest(whole, parts)}")
    return max(1, whole // parts)


def _minibatches(counts: Counts, size: int, accumulation: int) -> int:
    """Optimizer steps that go once through what was sampled together."""
    given = counts.given
    wholes = [name for name in ("steps_per_generation", "generation_batch_size", "batch_size") if name in given]
    if not wholes or (wholes == ["batch_size"] and "mini_batch_size" not in given):
        return counts.number("num_minibatches")
    if "num_minibatches" in given or len(wholes) > 1:
        other = "num_minibatches" if "num_minibatches" in given else wholes[1]
        counts.refuse(wholes[0], f"what is sampled together is given twice, also by --{other}", fix="give one of them")
        return 1
    name, unit = wholes[0], accumulation
    if name == "generation_batch_size":
        unit *= size * counts.ranks
    elif name == "batch_size":
        unit *= size
    whole = counts.number(name)
    if whole % unit:
        why = f"a step takes {unit}" + (
            f" ({size} completions x {accumulation} x {counts.ranks} devices)"
            if name == "generation_batch_size"
            else ""
        )
        counts.refuse(name, "is no whole number of optimizer steps", why=why, fix=f"use {nearest(whole, unit)}")
        return 1
    counts.set("method.num_minibatches", whole // unit)
    return whole // unit


def _prompts(counts: Counts, size: int, accumulation: int) -> None:
    """Prompts of a step over all devices; each device has whole prompts."""
    samples = counts.number("samples_per_prompt")
    own = size * accumulation
    if own % samples == 0:
        counts.set("prompts_per_step", own // samples * counts.ranks)
        return
    unit = samples // math.gcd(samples, accumulation)
    names = [name for name in ("mini_batch_size", "batch_size") if name in counts.given]
    name = next(iter(names), "per_device_train_batch_size")
    scale = counts.number("num_minibatches") * accumulation if name == "batch_size" else 1
    even = [n for n in range(2, own + 1) if own % n == 0]
    below = max((n for n in even if n < samples), default=None)
    above = min((n for n in even if n > samples), default=None)
    others = " or ".join(str(n) for n in (below, above) if n is not None)
    counts.refuse(
        name,
        f"{own} completions of a step on a device are no whole number of prompts",
        why=f"each prompt gets {samples} samples (num_generations)",
        fix=f"use {nearest(size * scale, unit * scale)}" + (f", or --num_generations {others}" if others else ""),
    )


def _episodes(counts: Counts, per_window: int) -> None:
    """``total_episodes`` completions as optimizer steps."""
    if "max_steps" in counts.given:
        counts.refuse("total_episodes", "the length of the run is given twice", why="--max_steps counts steps")
    minibatches = counts.paths.get("method.num_minibatches")
    number = int(minibatches.text) if isinstance(minibatches, Scalar) else counts.number("num_minibatches")
    windows = -(-counts.number("total_episodes") // per_window)
    counts.set("training.max_steps", windows * number * counts.number("num_epochs"))


def nearest(number: int, unit: int) -> str:
    """The nearest multiples of ``unit``, down and up, in words."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)
