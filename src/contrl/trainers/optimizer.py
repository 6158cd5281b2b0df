"""An optimizer of the caller's own: checked against the model it shall train."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from contrl.errors import UserError
from contrl.trainers.configs import TrainerConfig
from contrl.trainers.given import Arguments

_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""transformers' own list: biases and norms are not pulled towards zero."""


def optimizers_of(given: Arguments, model: Any, args: TrainerConfig, *, is_sequence: bool) -> tuple[Any, Any]:
    """The optimizer and the schedule, None where transformers makes them.

    Raises:
        UserError: for several tasks, for two optimizers, or for one that holds none of the model's parameters.
    """
    optimizer, schedule = given.optimizers
    made = given.optimizer_cls_and_kwargs
    if optimizer is None and schedule is None and made is None:
        return None, None
    if is_sequence:
        raise UserError(
            "an optimizer was given for a sequence of tasks",
            why="every task starts with a new one",
            fix="name it in the configuration: optim, optim_args",
        )
    if made is not None:
        if optimizer is not None:
            raise UserError("both optimizers and optimizer_cls_and_kwargs are given", fix="give one of them")
        optimizer_class, options = made
        optimizer = optimizer_class(_groups(model, args.weight_decay), **{"lr": args.learning_rate, **options})
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise UserError(
                "the optimizer holds no parameter of the model",
                why="the model was moved or wrapped after it was made, or it is another model's",
                fix="put the model on its device, and the adapter on the model, before making the optimizer",
            )
    return optimizer, schedule


def _groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    decayed = set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
