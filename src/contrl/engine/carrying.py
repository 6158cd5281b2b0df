"""What an optimizer and a schedule take over from the stage before, where the user wants them to.

By default both start anew; see ``BetweenTasksConfig`` for why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from contrl.errors import UserError


@dataclass(frozen=True)
class Carried:
    """What a stage begins with besides the weights.

    Attributes:
        optimizer: per-parameter state by position, as ``optimizer.state_dict()["state"]``; None starts anew.
        schedule: (steps before this stage, steps of all stages) of one schedule over the sequence; None starts anew.
    """

    optimizer: dict[int, Any] | None = None
    schedule: tuple[int, int] | None = None


class CarryingTrainer(Trainer):
    """Trainer whose optimizer and schedule may go on where an earlier stage's ended."""

    carried: Carried = Carried()

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's, with the moments of the stage before."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.carried.optimizer is not None:
            state = optimizer.state_dict()
            number = sum(len(group["params"]) for group in state["param_groups"])
            if self.carried.optimizer and max(self.carried.optimizer) >= number:
                raise UserError(
                    "the optimizer of the stage before had other parameters",
                    fix="between_tasks.optimizer: reset",
                )
            optimizer.load_state_dict({**state, "state": self.carried.optimizer})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's, or this stage's part of one schedule over all stages."""
        if self.carried.schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        before, total = self.carried.schedule
        schedule = super().create_scheduler(total, optimizer)
        if not isinstance(schedule, LambdaLR):
            raise UserError(
                f"the schedule {self.args.lr_scheduler_type} cannot go on from stage to stage",
                fix="between_tasks.schedule: restart, or lr_scheduler_type linear, cosine, constant",
            )
        schedule.lr_lambdas = [_shifted(part, before) for part in schedule.lr_lambdas]
        for group, start, part in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = start * part(0)
        schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
        return schedule


def _shifted(part: Any, steps: int) -> Any:
    return lambda step: part(step + steps)
