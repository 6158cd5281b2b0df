"""Which checkpoints of a stage stay: what the user asked for, and always the newest until the stage is complete.

``save_total_limit`` counts within a stage, and holds while the stage is trained, not only afterwards: it is what
keeps a long run on the disk.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from contrl.engine.arguments import DEFAULTS


@dataclass(frozen=True)
class Rotation:
    """The user's wish in steps.

    Attributes:
        every: checkpoints at multiples of it stay; None keeps none.
        limit: of these, at most so many, the newest ones; None is no limit.
    """

    every: int | None
    limit: int | None

    @classmethod
    def of(cls, training: Mapping[str, Any], num_steps: int, steps_per_epoch: int) -> Rotation:
        """From ``save_strategy``, ``save_steps`` (below 1 a share of the stage) and ``save_total_limit``."""
        strategy, steps = training.get("save_strategy", "steps"), training.get("save_steps", DEFAULTS["save_steps"])
        every: int | None = math.ceil(num_steps * steps) if steps < 1 else int(steps)
        if strategy == "epoch":
            every = steps_per_epoch
        elif strategy == "no":
            every = None
        return cls(every, training.get("save_total_limit"))

    def kept(self, steps: Sequence[int]) -> list[int]:
        """Those of the checkpoints at ``steps`` that stay when the stage is complete, newest first."""
        wanted = [step for step in sorted(steps, reverse=True) if self.every and step % self.every == 0]
        return wanted if self.limit is None else wanted[: self.limit]


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint folder."""
    found = (path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit())
    return {int(path.name.rpartition("-")[2]): path for path in found}


def remove_checkpoints(folder: Path, keep: Sequence[int]) -> None:
    """Delete every checkpoint of a stage but those at the steps ``keep``."""
    for step, path in checkpoints(folder).items():
        if step not in keep:
            shutil.rmtree(path)


class Rotate(TrainerCallback):
    """After each save deletes what is no longer wanted; the newest stays, because a resume starts from it."""

    def __init__(self, folder: Path, rotation: Rotation) -> None:
        self.folder, self.rotation = folder, rotation

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            steps = list(checkpoints(self.folder))
            remove_checkpoints(self.folder, [max(steps), *self.rotation.kept(steps)])
