"""L2 to earlier weights: every weight is pulled alike, the control that EWC and MAS must beat.

``to: previous`` pulls to where the stage began; ``to: start`` to the run's first weights, which also keeps a network
able to learn (L2-init, Kumar et al. 2023, arXiv:2308.11958).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from contrl.interfaces import Context
from contrl.models.lowrank import adapted_layers
from contrl.strategies.anchored import Anchored


@dataclass
class L2(Anchored):
    """Penalty (coef / 2) |w - a|^2.

    Attributes:
        to: "previous": the weights the stage began with, so the first stage is free; "start": the run's first weights,
            in every stage.
    """

    name = "l2"

    coef: float = 1.0
    to: Literal["previous", "start"] = "previous"
    needs_start: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs_start = self.to == "start"

    def before_task(self, ctx: Context) -> None:
        """Take the anchor."""
        if self.to == "previous" and ctx.stage.index == 1:
            return
        self.anchor = self.weights_now(ctx) if self.to == "previous" else self._start(ctx)
        self.strength = {name: torch.ones_like(tensor) for name, tensor in self.anchor.items()}

    def _start(self, ctx: Context) -> dict[str, torch.Tensor]:
        """The run's first weights; an adapter begins with B = 0, so its delta W there is nothing."""
        start = ctx.services.start_weights()
        if self.space == "weights":
            return {name: start[name].float() for name in self.weights_now(ctx)}
        names = {id(p): name for name, p in ctx.params()}
        return {
            layer.name: layer.scale * (start[names[id(layer.up)]] @ start[names[id(layer.down)]]).float()
            for layer in adapted_layers(ctx.model)
        }

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the anchor is taken anew at the start of a stage."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
