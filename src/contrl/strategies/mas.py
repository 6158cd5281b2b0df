"""Memory aware synapses: weights that the output is sensitive to move less (Aljundi et al. 2018, arXiv:1711.09601).

Importance is the mean absolute gradient of the squared length of the output: of a reward model's score, of the
logits at trained positions otherwise. It needs no labels; like the Fisher information it is exact per sample, scaled
to mean 1 and summed over tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from contrl.errors import UserError
from contrl.interfaces import Context
from contrl.strategies.anchored import Anchored


@dataclass
class MAS(Anchored):
    """Penalty (coef / 2) Omega (w - w*)^2, Omega summed over earlier tasks, w* where the latest of them ended.

    Attributes:
        num_samples: rows of a task that its importance is measured on.
    """

    name = "mas"

    num_samples: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise UserError(f"mas: num_samples is {self.num_samples}, it must be at least 1")

    def after_task(self, ctx: Context) -> None:
        """Measure the importance for the task just learnt."""
        place = self.weights_now(ctx)
        self.add(ctx.services.importance("sensitivity", self.num_samples, self.space), place)
        self.anchor = place
