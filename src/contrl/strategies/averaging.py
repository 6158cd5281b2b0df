"""Averaging of weights: a stage ends with a mixture of where it began and where it went (WiSE-FT, arXiv:2109.01903).

What is mixed in may be the stage's last weights or their moving average (EMA). LoRA layers are averaged as what they
add to the frozen weights: the best factors of the adapter's rank for the mixture of the products B A. A and B alone
are defined only up to a matrix between them, so their own averages mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from contrl.errors import UserError
from contrl.interfaces import Context, Strategy
from contrl.models.lowrank import average
from contrl.models.trained import copied, put, trained

EMA_RANKS = 2
"""The moving average of an adapter of rank r has this many times r, so that little is cut off at every step."""


@dataclass
class Averaging(Strategy):
    """At the end of a stage w <- (1 - alpha) w_before + alpha w_after.

    Attributes:
        alpha: share of what the stage learnt; 1 changes nothing, to the bit, 0 puts the weights before it back.
        first: average in the first stage too, with the run's first weights.
        ema: with a decay, w_after is the moving average m <- ema m + (1 - ema) w, which begins where the stage begins.
        every: optimizer steps from one update of the moving average to the next.
    """

    name = "averaging"

    alpha: float = 0.5
    first: bool = False
    ema: float | None = None
    every: int = 1
    average: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _before: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"averaging: alpha is {self.alpha}, it must be in [0, 1]")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"averaging: ema is {self.ema}, it must lie between 0 and 1", fix="leave it out for none")
        if self.every < 1:
            raise UserError(f"averaging: every is {self.every}, it must be at least 1")

    def before_task(self, ctx: Context) -> None:
        """Keep the weights that the stage begins with; the moving average begins there."""
        now = trained(ctx.params())
        self._before = copied(now, "cpu") if self.alpha < 1 and (self.first or ctx.stage.index > 1) else {}
        self.average = {} if self.ema is None else copied(now)

    def after_step(self, ctx: Context) -> None:
        """Move the average."""
        if self.ema is None or (ctx.step + 1) % self.every:
            return
        parts = [(self.ema, self.average), (1 - self.ema, copied(trained(ctx.params())))]
        self.average, cut = average(ctx.model, parts, EMA_RANKS)
        ctx.report({"averaging/ema_cut": (cut, 1.0)})

    def after_task(self, ctx: Context) -> None:
        """The weights become the mixture; what is averaged next begins anew."""
        parameters = trained(ctx.params())
        after = self.average or copied(parameters)
        parts = [(1 - self.alpha, self._before), (self.alpha, after)] if self._before else [(1.0, after)]
        if self.average or self._before:
            mixed, cut = average(ctx.model, parts)
            put(parameters, mixed)
            ctx.report({"averaging/cut": (cut, 1.0)})
        self._before, self.average = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The moving average of the stage; where the stage began is found again when it is resumed."""
        return {"average": dict(self.average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = dict(state.get("average", {}))
