"""From a configuration to the plan of the stage loop, and what it will cost, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrl.config import RunConfig
from contrl.continual.estimate import Load, Size, describe, disk_bytes, require_disk
from contrl.continual.rotation import Rotation
from contrl.continual.runner import Plan
from contrl.engine.arguments import count_steps, micro_batch, steps_per_epoch
from contrl.experiment import build_method
from contrl.interfaces import OnlineMethod, Row, Stage, TaskSequence
from contrl.models.load import count_parameters

SAMPLE = 16
"""Rows of each task whose lengths are looked at."""


def build_plan(config: RunConfig, sequence: TaskSequence, world_size: int) -> Plan:
    """What the stage loop needs to know, and the batch arithmetic checked."""
    training = config.training
    parts = int(training.get("per_device_train_batch_size", 8)) * int(training.get("gradient_accumulation_steps", 1))
    prompts_per_step = config.prompts_per_step or parts * world_size
    method_for = build_method(config, sequence)
    first = method_for(sequence.stages[0])

    def training_for(stage: Stage) -> dict[str, Any]:
        merged = dict(training)
        for name in stage.tasks:
            merged |= sequence.task(name).training
        return merged

    for stage in sequence.stages:
        micro_batch(prompts_per_step, training_for(stage), world_size)
    limit = config.evaluation.max_new_tokens
    if limit is None:
        limit = first.max_new_tokens if isinstance(first, OnlineMethod) else 256
    return Plan(
        sequence=sequence,
        method_for=method_for,
        training_for=training_for,
        prompts_per_step=prompts_per_step,
        seed=config.seed,
        tokens_per_pass=config.tokens_per_pass,
        tokens_per_chunk=config.evaluation.batch_tokens,
        max_new_tokens=limit,
        at_start=config.evaluation.at_start,
    )


def announce(config: RunConfig, plan: Plan, base: Plan | None) -> list[str]:
    """Batch arithmetic, steps, time, memory, disk; refuses a run whose files cannot fit.

    Args:
        config: the run's.
        plan: of the sequence.
        base: of a base stage that is still to be trained.

    Raises:
        EnvironmentFault: when the disk is too small.
    """
    found = count_parameters(config.model)
    characters = 1.0 if config.model.name_or_path == "tiny" else 3.5
    load = load_of(plan, characters)
    before = None if base is None else load_of(base, characters)
    if found is None:
        return [f"model    {config.model.name_or_path}, to be fetched", *describe(None, load, before)]
    size = Size(*found)
    require_disk(Path(config.output_dir).absolute(), disk_bytes(size, load))
    return describe(size, load, before)


def load_of(plan: Plan, characters: float) -> Load:
    """The work of a plan; ``characters`` of text make about one token."""
    steps, rotations = [], []
    for stage in plan.sequence.stages:
        rows = sum(len(plan.sequence.task(name).train) for name in stage.tasks)
        training, method = plan.training_for(stage), plan.method_for(stage)
        steps.append(count_steps(training, rows, plan.prompts_per_step, method))
        per_epoch = steps_per_epoch(rows, plan.prompts_per_step, method)
        rotations.append(Rotation.of(training, steps[-1], per_epoch))
    sample = [row for task in plan.sequence.tasks for row in list(task.train)[:SAMPLE]]
    return Load(
        method=plan.method_for(plan.sequence.stages[0]),
        steps=steps,
        rotations=rotations,
        prompts_per_step=plan.prompts_per_step,
        prompt_tokens=_mean_length(sample, ("prompt", "text", "messages")) / characters,
        completion_tokens=_mean_length(sample, ("completion",)) / characters,
        eval_items=sum(len(task.eval) for task in plan.sequence.tasks),
        num_evaluations=(len(steps) + plan.at_start) if plan.evaluates else 0,
        max_new_tokens=plan.max_new_tokens,
    )


def _mean_length(rows: Sequence[Row], columns: Sequence[str]) -> float:
    """Characters of the columns, messages without their roles."""
    lengths = [len(_text(row[column])) for row in rows for column in columns if column in row]
    return sum(lengths) / max(len(rows), 1)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "".join(str(item.get("content", "")) if isinstance(item, dict) else str(item) for item in value)
    return str(value)
