"""Elastic weight consolidation: what mattered to earlier tasks moves less (Kirkpatrick et al. 2017, arXiv:1612.00796).

The Fisher information is exact and per sample, of the method's own log-likelihood, scaled to mean 1, and of all
earlier tasks. With ``decay`` below 1 it is online EWC (Schwarz et al. 2018, arXiv:1805.06370): earlier tasks fade and
the anchor is where the last one ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from contrl.errors import UserError
from contrl.interfaces import Context
from contrl.strategies.anchored import Anchored


@dataclass
class EWC(Anchored):
    """Penalty (coef / 2) sum over earlier tasks t of F_t (w - w*_t)^2.

    Attributes:
        num_samples: rows of a task that its Fisher information is measured on.
        online: one running Fisher information and one anchor, w* of the latest task, instead of one of each task.
        decay: of the running one, F <- decay F + F_t.
    """

    name = "ewc"

    num_samples: int = 200
    online: bool = False
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise UserError(f"ewc: num_samples is {self.num_samples}, it must be at least 1")
        if not 0 <= self.decay <= 1:
            raise UserError(f"ewc: decay is {self.decay}, it must be in [0, 1]")
        if self.decay < 1 and not self.online:
            raise UserError("ewc: decay fades earlier tasks, which is for online: true", fix="set online, or no decay")

    def after_task(self, ctx: Context) -> None:
        """Measure the Fisher information of the task just learnt, at the weights it ended with."""
        place = self.weights_now(ctx)
        self.add(ctx.services.importance("fisher", self.num_samples, self.space), place, self.decay)
        if self.online:
            self.anchor = place
