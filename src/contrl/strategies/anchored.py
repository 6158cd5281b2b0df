"""What EWC, MAS and L2 share: weights are pulled back to where they mattered, in closed form, once a step.

The penalty is (coef / 2) sum_i F_i (w_i - a_i)^2. Of several earlier tasks the sum of their penalties is one penalty
again, with the sum of the F and their weighted mean as anchor, so memory does not grow with the tasks. It never goes
through autograd: right under accumulation, several ranks and sharding, and never silently zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from contrl.errors import UserError
from contrl.interfaces import Context, Refusal, Setting, Strategy
from contrl.interfaces.strategies import Space
from contrl.models.lowrank import Factors, adapted_layers
from contrl.models.value_head import NAME as VALUE

Form = Literal["gradient", "proximal"]


@dataclass
class Anchored(Strategy):
    """A quadratic penalty on the movement of weights.

    Attributes:
        coef: strength; 0 changes nothing, to the bit.
        form: "gradient" adds coef F (w - a) to the gradient before clipping. "proximal" instead moves the weights after
            the optimizer's step, w <- (w + lr coef F a) / (1 + lr coef F), which freezes them at large coefficients
            also under Adam, whose steps do not grow with the gradient.
        space: of LoRA runs: "weights" penalises A and B of the adapter, which all tasks continue; "delta_w" their
            product (memory: twice the adapted weights).
    """

    coef: float = 10.0
    form: Form = "gradient"
    space: Space = "weights"
    strength: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    anchor: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.coef < 0:
            raise UserError(f"{self.name}: coef is {self.coef}, it must be at least 0")
        if self.form == "proximal" and self.space == "delta_w":
            raise UserError(
                f"{self.name}: form proximal needs space weights",
                why="one step in delta W is no step in A and B",
                fix="leave one of the two out",
            )

    def refuses(self, setting: Setting) -> Refusal | None:
        refusal = super().refuses(setting)
        if refusal is None and self.space == "delta_w" and not setting.adapter:
            return Refusal("space delta_w is about LoRA layers and the whole model is trained", "leave space out")
        return refusal

    # --- what is anchored -------------------------------------------------------------------------------

    def weights_now(self, ctx: Context) -> dict[str, torch.Tensor]:
        """The penalised weights as they are, float32 copies."""
        if self.space == "delta_w":
            return {layer.name: layer.delta().float() for layer in adapted_layers(ctx.model)}
        return {name: p.detach().float().clone() for name, p in ctx.params() if not name.startswith(f"{VALUE}.")}

    def add(self, importance: dict[str, torch.Tensor], place: dict[str, torch.Tensor], keep: float = 1.0) -> None:
        """One more task: its importance and where the weights were; earlier ones count ``keep`` times."""
        for name, new in importance.items():
            here = place[name].to(new.device)
            if name not in self.strength:
                self.strength[name], self.anchor[name] = new, here
                continue
            old, before = self.strength[name].to(new.device) * keep, self.anchor[name].to(new.device)
            total = old + new
            mixed = torch.where(total > 0, (old * before + new * here) / total.clamp(min=1e-30), here)
            self.strength[name], self.anchor[name] = total, mixed

    # --- the hooks --------------------------------------------------------------------------------------

    def penalty(self, ctx: Context) -> None:
        """Adds the gradient of the penalty, and logs the penalty itself."""
        if not self.strength or self.coef == 0:
            return
        if self.form == "proximal":
            return
        total: Any = 0.0
        if self.space == "delta_w":
            for layer in adapted_layers(ctx.model):
                total = total + self._pull_product(layer)
        else:
            for name, parameter in ctx.params():
                if name in self.strength and parameter.grad is not None:
                    total = total + self._pull(name, parameter)
        ctx.report({f"{self.name}/penalty": (total, 1.0)})

    def _pull(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        strength, anchor = self._at(name, parameter.device)
        moved = parameter.detach().float() - anchor
        assert parameter.grad is not None
        parameter.grad.add_((strength * moved).to(parameter.grad.dtype), alpha=self.coef)
        return 0.5 * self.coef * (strength * moved.square()).sum()

    def _pull_product(self, layer: Factors) -> torch.Tensor:
        """d/dA = s B' G and d/dB = s G A', with G the gradient in delta W."""
        strength, anchor = self._at(layer.name, layer.up.device)
        moved = layer.delta().float() - anchor
        slope = self.coef * layer.scale * strength * moved
        up, down = layer.up.detach().float(), layer.down.detach().float()
        for parameter, gradient in ((layer.down, up.T @ slope), (layer.up, slope @ down.T)):
            if parameter.grad is not None:
                parameter.grad.add_(gradient.to(parameter.grad.dtype))
        return 0.5 * self.coef * (strength * moved.square()).sum()

    def after_step(self, ctx: Context) -> None:
        """The proximal form's step."""
        if self.form != "proximal" or not self.strength or self.coef == 0:
            return
        with torch.no_grad():
            for name, parameter in ctx.params():
                if name in self.strength:
                    strength, anchor = self._at(name, parameter.device)
                    pull = ctx.learning_rate * self.coef * strength
                    parameter.copy_(((parameter.float() + pull * anchor) / (1 + pull)).to(parameter.dtype))

    def _at(self, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Strength and anchor of a weight, moved to its device once."""
        if self.strength[name].device != device:
            self.strength[name] = self.strength[name].to(device)
            self.anchor[name] = self.anchor[name].to(device)
        return self.strength[name], self.anchor[name]

    def state_dict(self) -> dict[str, Any]:
        """Strength and anchor of every weight."""
        return {"strength": dict(self.strength), "anchor": dict(self.anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.strength, self.anchor = dict(state.get("strength", {})), dict(state.get("anchor", {}))
