"""Independent training: every stage begins with the run's first weights, so each task is learnt by a model of its own.

The diagonal of its matrix is what each task scores when no other was trained before it: the level that forward
transfer and the loss of plasticity are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from contrl.interfaces import Context, Strategy
from contrl.models.trained import put, trained

_FORGETS = "independent forgets every earlier task on purpose, so nothing of them can be kept"


@dataclass
class Independent(Strategy):
    """A fresh start with each stage, also of a task that comes back.

    What is put back are all trained weights of the policy: of the whole model, or of the adapter. The value function
    of actor-critic methods follows their own ``keep_value``.
    """

    name = "independent"
    needs_start = True
    conflicts: ClassVar[dict[str, str]] = dict.fromkeys(("adapters", "averaging", "ewc", "l2", "mas"), _FORGETS)

    def before_task(self, ctx: Context) -> None:
        """Put the run's first weights back."""
        put(trained(ctx.params()), ctx.services.start_weights())
