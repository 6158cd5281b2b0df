"""What cannot work together is refused before a model is loaded, with the reason and what works instead.

Methods, strategies and training arguments each know their own limits; here they meet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from contrl.config import RunConfig
from contrl.errors import Refused, UserError
from contrl.experiment import build_strategy, find, make_strategies
from contrl.interfaces import OnlineMethod, Setting, Strategy, Task


def check_pairs(config: RunConfig, tasks: Sequence[Task]) -> None:
    """Refuse what cannot work before a model is loaded.

    Raises:
        UserError: naming the pair, the reason and what works.
    """
    method = find("method", config.method.name)
    if issubclass(method, OnlineMethod):
        without = [task.name for task in tasks if task.reward is None]
        if without:
            raise UserError(
                f"{config.method.name} needs a reward, and {', '.join(without)} has none",
                fix="give each task `reward: NAME` or `reward: module:function`, or all of them rewards.functions",
            )
    empty = [task.name for task in tasks if not task.eval]
    if empty and len(tasks) > 1:
        raise UserError(
            f"nothing to evaluate {', '.join(empty)} on",
            why="what is forgotten shows only on rows that are held out",
            fix="give eval_data, or eval_size to hold rows out, or a folder with a test split",
        )
    if config.base is not None and issubclass(find("method", config.base.method.name), OnlineMethod):
        raise UserError(
            f"a base stage cannot learn by {config.base.method.name}",
            why="it mixes the rows of all tasks, and their rewards do not mix",
            fix="use sft",
        )
    trainings = [config.training, *(task.training for task in tasks)]
    if config.between_tasks.optimizer == "keep" and any(
        _launched_by(name.upper()) or any(training.get(name) for training in trainings)
        for name in ("deepspeed", "fsdp")
    ):
        raise UserError(
            "between_tasks.optimizer: keep needs the whole optimizer in each checkpoint",
            why="DeepSpeed and FSDP write it in parts",
            fix="use reset, or train without them",
        )
    if config.between_tasks.adapter == "reset" and not config.model.use_peft:
        raise UserError(
            "between_tasks.adapter: reset, and no adapter is trained",
            fix="model.use_peft: true, or the strategy independent, which resets whole models",
        )
    check_strategies(make_strategies(config.strategies), setting_of(config, tasks))
    build_strategy(config.strategies)  # refuses those that do not go with each other


def setting_of(config: RunConfig, tasks: Sequence[Task]) -> Setting:
    """What strategies may refuse a run for."""
    trainings = [config.training, *(task.training for task in tasks)]
    return Setting(
        find("method", config.method.name)(**config.method.fields),
        config.model.use_peft,
        partial_gradients(trainings),
    )


def partial_gradients(trainings: Sequence[Mapping[str, Any]]) -> str:
    """Why the engine shows no whole gradients under these training arguments; "" when it does."""
    if any(training.get("deepspeed") for training in trainings) or _launched_by("DEEPSPEED"):
        return "DeepSpeed clips and steps inside the last backward"
    if any(training.get("fp16") for training in trainings) or _launched_in_fp16(trainings):
        return "fp16 scales the loss, and with it every gradient"
    return ""


def _launched_in_fp16(trainings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether ``accelerate launch`` asks for fp16, and not every stage is trained in bf16 all the same."""
    if os.environ.get("ACCELERATE_MIXED_PRECISION") != "fp16":
        return False
    return not all({**trainings[0], **training}.get("bf16") for training in trainings)


def _launched_by(name: str) -> bool:
    """Whether ``accelerate launch`` was given a configuration with this engine, which it says in the environment."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")


def check_strategies(strategies: Sequence[Strategy], setting: Setting) -> None:
    """Refuse strategies that cannot work in a setting.

    Raises:
        Refused: naming every one of them, why, and what works.
    """
    refused = [(s.name, refusal) for s in strategies if (refusal := s.refuses(setting)) is not None]
    if not refused:
        return
    method = type(setting.method).__name__.lower()
    raise Refused(
        f"the strategy {', '.join(name for name, _ in refused)} does not go with this run ({method})",
        why="; ".join(f"{name}: {refusal.why}" for name, refusal in refused),
        fix="; ".join(f"{name}: {refusal.fix}" for name, refusal in refused),
    )
