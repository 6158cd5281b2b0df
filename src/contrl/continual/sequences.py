"""Named sequences of tasks, made from code: a sequence is a dataclass of its settings with a method ``tasks``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from contrl.data import countdown
from contrl.interfaces import Metric, Task
from contrl.rewards.countdown import countdown_reward, is_success


def countdown_success(**columns: Any) -> list[float | None]:
    """1 where the Countdown reward is full, else 0: the share solved, without credit for trying."""
    return [float(is_success(score)) for score in countdown_reward(**columns)]


COUNTDOWN_METRIC = Metric("success", countdown_success)


@dataclass(frozen=True)
class Countdown(countdown.CountdownConfig):
    """Countdown's operator groups one after the other; each task's reward and metric are the verifier."""

    def tasks(self) -> list[Task]:
        """One task per operator group."""
        return [
            Task(name, train, held_out, countdown_reward, COUNTDOWN_METRIC)
            for name, train, held_out in countdown.sequence(self)
        ]
