"""TRL's batch sizes as contrl's: TRL counts completions in micro-batches, contrl prompts in optimizer steps.

What cannot be shared out in whole prompts is refused with the nearest numbers that can: a remainder would be dropped,
or would change what a step means. Micro-batches themselves mean nothing here, since passes are counted in tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from contrl.errors import UserError


@dataclass(frozen=True)
class Counts:
    """TRL's numbers.

    Attributes:
        per_device: completions of one rank and micro-batch.
        accumulation: micro-batches of an optimizer step (of PPO: of a rollout).
        num_generations: completions of a prompt.
        world_size: ranks.
        num_iterations: times that sampled completions are trained on.
    """

    per_device: int
    accumulation: int
    num_generations: int
    world_size: int
    num_iterations: int = 1

    @property
    def of_rank(self) -> int:
        """Completions of one rank and optimizer step (of PPO: rollout)."""
        return self.per_device * self.accumulation


@dataclass(frozen=True)
class Batches:
    """contrl's numbers: a window of ``num_minibatches`` x ``prompts_per_step`` prompts serves ``length`` steps."""

    prompts_per_step: int
    num_minibatches: int
    num_epochs: int

    @property
    def prompts(self) -> int:
        """Prompts that are sampled at once."""
        return self.prompts_per_step * self.num_minibatches

    @property
    def length(self) -> int:
        """Optimizer steps of a window."""
        return self.num_minibatches * self.num_epochs

    def rows(self, num_steps: int) -> int:
        """Rows that so many optimizer steps visit."""
        return -(-num_steps // self.length) * self.prompts


def of_generations(counts: Counts, steps_per_generation: int | None, generation_batch_size: int | None) -> Batches:
    """What TRL's RLOO and GRPO mean: a generation batch serves ``steps_per_generation`` micro-batches.

    Raises:
        UserError: with the nearest valid numbers.
    """
    if counts.of_rank % counts.num_generations:
        raise _incomplete(counts, counts.num_generations, f"prompts of {counts.num_generations} completions")
    accumulation, micro = counts.accumulation, counts.per_device * counts.world_size
    if generation_batch_size is not None:
        if steps_per_generation is not None:
            raise UserError("generation_batch_size and steps_per_generation are both given", fix="give one of them")
        if generation_batch_size % micro:
            raise UserError(
                f"generation_batch_size is {generation_batch_size}",
                why=f"per_device_train_batch_size {counts.per_device} x {counts.world_size} ranks is {micro}",
                fix=f"use {_nearest(generation_batch_size, micro)}",
            )
        steps_per_generation = generation_batch_size // micro
    steps = accumulation if steps_per_generation is None else steps_per_generation
    if steps % accumulation and (accumulation % steps or counts.num_iterations > 1):
        given, unit = ("steps_per_generation", 1) if generation_batch_size is None else ("generation_batch_size", micro)
        raise UserError(
            f"{given} is {steps * unit}",
            why=f"completions serve whole optimizer steps, and one is {accumulation} micro-batches"
            + (f" of {micro} completions" if unit > 1 else ""),
            fix=f"use {_nearest(steps * unit, accumulation * unit)}",
        )
    prompts = counts.of_rank * counts.world_size // counts.num_generations
    # Less than a step's completions at a time are sampled from the same weights as all of them at once.
    return Batches(prompts, max(1, steps // accumulation), counts.num_iterations)


def of_rollouts(counts: Counts, num_minibatches: int) -> Batches:
    """What TRL's PPO means: a batch is sampled at once and split into mini-batches, each an optimizer step.

    Raises:
        UserError: with the nearest valid numbers.
    """
    part = counts.num_generations * num_minibatches
    if counts.of_rank % part:
        raise _incomplete(counts, part, f"{num_minibatches} mini-batches")
    return Batches(counts.of_rank * counts.world_size // part, num_minibatches, counts.num_iterations)


def _incomplete(counts: Counts, part: int, parts: str) -> UserError:
    """One rank's completions do not make whole parts."""
    unit = part // math.gcd(part, counts.accumulation)
    total = f"per_device_train_batch_size {counts.per_device} x gradient_accumulation_steps {counts.accumulation}"
    others = _divisors(counts.of_rank, counts.num_generations) if part == counts.num_generations else ""
    return UserError(
        f"{counts.of_rank} completions a step do not make whole {parts}",
        why=f"{total}{' of each rank' if counts.world_size > 1 else ''}, counted in completions as in TRL",
        fix=f"use per_device_train_batch_size {_nearest(counts.per_device, unit)}"
        + (f", or num_generations {others}" if others else ""),
    )


def _nearest(number: int, unit: int) -> str:
    """The multiples of ``unit`` around ``number``."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def _divisors(number: int, near: int) -> str:
    """The divisors of ``number``, at least 2, around ``near``."""
    found = [divisor for divisor in range(2, number + 1) if number % divisor == 0]
    below, above = [d for d in found if d < near][-1:], [d for d in found if d > near][:1]
    return " or ".join(map(str, below + above))
