"""A preference data set in two parts with different questions: one teaches a reward model, the other is prompts.

A policy that is rewarded on the very questions its reward model was trained on earns what was learnt by heart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from contrl.continual.sequences import Dataset
from contrl.data.prompts import to_prompts
from contrl.data.sources import hold_out
from contrl.interfaces import Row, Task

HELD_OUT = 0.1
"""Share of a reward model's pairs that it is judged by, where the data have no split for that."""


@dataclass(frozen=True)
class Part(Dataset):
    """One part of the train rows of a data set; both are judged on the same rows."""

    part: Literal["reward_model", "policy"] = field(
        default="policy", metadata={"help": "which part: pairs for a reward model, or prompts for the policy"}
    )
    share: float = field(
        default=0.5, metadata={"help": "share of the questions that teach the reward model", "at_least": 0, "below": 1}
    )

    def tasks(self) -> list[Task]:
        """The tasks with their own part of the train rows. Raises as ``Dataset.tasks``."""
        found = []
        for task in super().tasks():
            train, held_out = self._own(task.train), task.eval
            if self.part == "reward_model" and not held_out and len(train) > 1:
                train, held_out = hold_out(train, max(1, round(HELD_OUT * len(train))), 0)
                self.notes.append(f"{task.name}: {len(held_out)} pairs are held out to judge the reward model by")
            self.notes.append(f"{task.name}: {len(train)} of {len(task.train)} rows are the part for the {self._whose}")
            found.append(replace(task, train=train, eval=held_out))
        return found

    @property
    def _whose(self) -> str:
        return self.part.replace("_", " ")

    def _own(self, rows: Sequence[Row]) -> list[Row]:
        """All rows of a question go to one part; which one follows from its text, not from its place."""
        keys = [_key(row) for row in rows]
        ordered = sorted(set(keys))
        taught = set(ordered[: round(self.share * len(ordered))])
        return [row for row, key in zip(rows, keys, strict=True) if (key in taught) == (self.part == "reward_model")]


def _key(row: Row) -> str:
    question = to_prompts([row])[0][0].get("prompt")
    return hashlib.sha256(json.dumps(question, sort_keys=True, default=str).encode()).hexdigest()
