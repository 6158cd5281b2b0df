"""TrainingArguments of one stage: what the user set, what contrl decides, and what follows from the device.

Built last, from typed values, because importing transformers takes seconds. Choices that the user left open are
made here and told in words.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from contrl.errors import UserError
from contrl.interfaces import Method, OnlineMethod

DEFAULTS: dict[str, Any] = {
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_steps": 500,
    "report_to": "none",
    "weight_decay": 0.0,
}


@dataclass(frozen=True)
class StageSettings:
    """What of a stage's arguments contrl computes.

    ``rows`` is of one rank and accumulation step; ``evaluates`` says whether there are rows for ``eval_strategy``.
    """

    folder: Path
    seed: int
    num_steps: int
    steps_per_epoch: int
    rows: int
    evaluates: bool = False


def steps_per_epoch(num_rows: int, prompts_per_step: int, method: Method) -> int:
    """Optimizer steps in which every row is visited once (or once per epoch of its rollout window)."""
    if isinstance(method, OnlineMethod):
        block = prompts_per_step * method.num_minibatches
        return math.ceil(num_rows / block) * method.num_minibatches * method.num_epochs
    return math.ceil(num_rows / prompts_per_step)


def count_steps(training: Mapping[str, Any], num_rows: int, prompts_per_step: int, method: Method) -> int:
    """Optimizer steps of a stage: ``max_steps`` if given, else ``num_train_epochs`` (default 1) over the rows."""
    if training.get("max_steps", -1) > 0:
        return int(training["max_steps"])
    epochs = float(training.get("num_train_epochs", 1.0))
    return max(1, math.ceil(epochs * steps_per_epoch(num_rows, prompts_per_step, method)))


def micro_batch(prompts_per_step: int, training: Mapping[str, Any], world_size: int) -> int:
    """Rows of one rank and accumulation step.

    Raises:
        UserError: when prompts_per_step does not divide, with the nearest numbers that do.
    """
    parts = world_size * int(training.get("gradient_accumulation_steps", 1))
    if prompts_per_step % parts:
        below, above = prompts_per_step // parts * parts, -(-prompts_per_step // parts) * parts
        raise UserError(
            f"prompts_per_step {prompts_per_step} cannot be shared out",
            why=f"{world_size} processes x {parts // world_size} accumulation steps make {parts} equal parts",
            fix=f"use {above}" + (f" or {below}" if below else ""),
        )
    return prompts_per_step // parts


def build_arguments(training: Mapping[str, Any], settings: StageSettings) -> TrainingArguments:
    """The arguments of a stage.

    Args:
        training: typed values under Hugging Face's names, without those contrl owns.
        settings: what contrl computes.

    Raises:
        UserError: when transformers refuses a combination.
    """
    # Told explicitly: without a GPU and without it, each process of a run on CPUs would train by itself.
    device = {"use_cpu": not torch.accelerator.is_available()}
    values = {**DEFAULTS, **device, **precision(training), **training}
    for name in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        if name in values:
            # transformers renamed it and warns about the name that everybody knows.
            values[name.replace("gradient", "activation")] = values.pop(name)
    for event in ("save", "logging", "eval"):
        if values.get(f"{event}_strategy") == "epoch":
            # A stage is one long epoch to Trainer; ours are counted in steps.
            values |= {f"{event}_strategy": "steps", f"{event}_steps": settings.steps_per_epoch}
    values |= {
        "output_dir": str(settings.folder),
        "seed": settings.seed,
        "max_steps": settings.num_steps,
        "num_train_epochs": 1,
        "per_device_train_batch_size": settings.rows,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "average_tokens_across_devices": False,
        "disable_tqdm": True,
        "eval_strategy": values.get("eval_strategy", "no") if settings.evaluates else "no",
        "dataloader_pin_memory": False,
        # Which checkpoints stay is decided per stage when the stage is complete.
        "save_total_limit": None,
    }
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"transformers refuses these training arguments: {error}") from error


def default_pass(training: Mapping[str, Any]) -> int:
    """Padded tokens of one forward and backward where nobody said: what fills the device without filling its memory.

    A CPU gains nothing from more than its caches hold, and the activations of a pass are most of a step's memory.
    """
    return 16_384 if torch.accelerator.is_available() and not training.get("use_cpu") else 2048


def precision(training: Mapping[str, Any]) -> dict[str, Any]:
    """bf16 autocast where the device has it and the user did not choose; float32 elsewhere."""
    if {"bf16", "fp16"} & set(training) or not torch.cuda.is_available() or training.get("use_cpu"):
        return {}
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":  # chosen at `accelerate launch`
        return {"fp16": True}
    return {"bf16": torch.cuda.is_bf16_supported()}


def describe_device(arguments: TrainingArguments, *, checkpointing: bool) -> str:
    """Device and precision in words, as printed at the start."""
    kind = {"bf16": "bf16 autocast", "fp16": "fp16 autocast"}.get(arguments.mixed_precision, "float32")
    ranks = f", {arguments.world_size} processes" if arguments.world_size > 1 else ""
    return f"{arguments.device.type}{ranks}, {kind}, gradient checkpointing {'on' if checkpointing else 'off'}"
