"""From a configuration to the plan of the stage loop, and what it will cost, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrl.config import RunConfig
from contrl.continual.estimate import Load, Size, describe, disk_bytes, require_disk
from contrl.continual.runner import Plan
from contrl.engine.arguments import count_steps, micro_batch
from contrl.experiment import build_method
from contrl.interfaces import Method, OnlineMethod, Stage, TaskSequence
from contrl.models.load import count_parameters


def build_plan(config: RunConfig, sequence: TaskSequence, world_size: int) -> Plan:
    """What the stage loop needs to know, and the batch arithmetic checked."""
    training = config.training
    parts = int(training.get("per_device_train_batch_size", 8)) * int(training.get("gradient_accumulation_steps", 1))
    prompts_per_step = config.prompts_per_step or parts * world_size
    micro_batch(prompts_per_step, training, world_size)
    method_for = build_method(config, sequence)
    first = method_for(sequence.stages[0])

    def training_for(stage: Stage) -> dict[str, Any]:
        merged = dict(training)
        for name in stage.tasks:
            merged |= sequence.task(name).training
        return merged

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


def announce(config: RunConfig, plan: Plan) -> list[str]:
    """Batch arithmetic, steps, time, memory, disk; refuses a run whose files cannot fit."""
    found = count_parameters(config.model)
    stages = plan.sequence.stages
    method = plan.method_for(stages[0])
    load = _load_of(plan, method)
    if found is None:
        return [
            f"model    {config.model.name_or_path}, to be fetched",
            f"steps    {sum(load.steps)} in {len(stages)} stages",
        ]
    size = Size(*found)
    training = plan.training_for(stages[0])
    require_disk(Path(config.output_dir).absolute(), disk_bytes(size, len(stages), training, max(load.steps)))
    return describe(size, load, method, len(stages), training)


def _load_of(plan: Plan, method: Method) -> Load:
    steps = []
    for stage in plan.sequence.stages:
        rows = sum(len(plan.sequence.task(name).train) for name in stage.tasks)
        steps.append(count_steps(plan.training_for(stage), rows, plan.prompts_per_step, plan.method_for(stage)))
    sample = [row for task in plan.sequence.tasks for row in list(task.train)[:16]]
    prompt = sum(len(str(row.get("prompt", row.get("text", "")))) for row in sample) / max(len(sample), 1)
    answer = sum(len(str(row.get("completion", ""))) for row in sample) / max(len(sample), 1)
    # About three characters a token, or one for character models: the estimate is rough either way.
    items = sum(len(task.eval) for task in plan.sequence.tasks)
    return Load(steps, plan.prompts_per_step, prompt, answer, items)
