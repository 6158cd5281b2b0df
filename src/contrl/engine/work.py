"""What an engine is given to train on: one stage's method, strategy, rows and reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from contrl.engine.batching import PADDING, BlockSampler
from contrl.engine.online import RolloutWindow
from contrl.engine.reference_scores import ReferenceScores
from contrl.interfaces import Context, Group, Method, Row, Strategy, Task


@dataclass
class Work:
    """What an engine trains on: one stage's method, strategy and rows.

    Attributes:
        groups: prepared rows of the stage.
        prompts_per_step: groups of one optimizer step over all ranks.
        num_steps: optimizer steps of the stage.
        tokens_per_pass: padded tokens of one forward.
        seed: of the row order; None keeps the rows in order.
        window: rollouts, for online methods.
        prepare: makes a group of a row that a strategy draws.
        find_row: gives back the source row of (task, row id), to revive saved rollouts.
        should_stop: whether this rank was asked to stop.
        say: told in one line what a person should know.
        reference: for methods that need reference_logps.
        eval_groups: prepared rows that the loss is measured on while training, if the arguments ask for it.
        packed: whether groups of one completion stand behind each other in a row.
        optimizers: an optimizer and a schedule made by the caller, or None for Trainer's own.
    """

    method: Method
    strategy: Strategy
    context: Context
    groups: list[Group]
    prompts_per_step: int
    num_steps: int
    tokens_per_pass: int
    seed: int | None
    prepare: Callable[[Task, Row], Group]
    find_row: Callable[[str, str], Row]
    window: RolloutWindow | None = None
    should_stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda text: None
    reference: ReferenceScores | None = None
    eval_groups: list[Group] = field(default_factory=list)
    packed: bool = False
    optimizers: tuple[Any, Any] = (None, None)

    def first_epoch(self, world_size: int) -> list[list[Group]]:
        """The stage's groups as the steps of its first epoch take them; of several processes, all as one."""
        if world_size > 1:
            return [self.groups]
        size = self.prompts_per_step
        order = list(BlockSampler(len(self.groups), size, -(-len(self.groups) // size), 1, self.seed))
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        return [[self.groups[index] for index in step if index != PADDING] for step in steps]


class Rows(Dataset[Group | None]):
    """The groups by index; no group for the padding of an incomplete block."""

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group | None:
        return self.groups[index] if index >= 0 else None
