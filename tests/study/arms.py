"""Strategies that refuse, fail and dawdle, for the tests of studies."""

from __future__ import annotations

import time
from dataclasses import dataclass

from contrl.interfaces import Context, Refusal, Setting, Strategy


@dataclass
class Refusing(Strategy):
    """Refuses every run."""

    name = "refusing"

    def refuses(self, setting: Setting) -> Refusal | None:
        """Always."""
        return Refusal("it never does", "leave it out")


@dataclass
class Failing(Strategy):
    """Breaks every run when its second stage begins."""

    name = "failing"

    def before_task(self, ctx: Context) -> None:
        """As a bug would."""
        if ctx.stage.index == 2:
            raise RuntimeError("this arm is broken")


@dataclass
class Slow(Strategy):
    """Changes nothing and takes its time, so that a run can be met in the middle."""

    name = "slow"

    seconds: float = 0.3

    def after_step(self, ctx: Context) -> None:
        """A pause."""
        time.sleep(self.seconds)
