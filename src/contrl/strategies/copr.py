"""COPR: pull the policy to the best distribution over a pair's answers, and keep those of old pairs (arXiv:2402.14228).

Between its two answers a pair has an optimal policy in closed form, P* proportional to P_earlier exp(advantage / tau).
New pairs fit log P to log P*; pairs kept of earlier tasks must stay near the P* they were given when they were
learnt, a constraint whose multiplier adapts. P is normalised over the answers of one prompt, so neither the order of
rows nor a batch of one changes anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from contrl.errors import UserError
from contrl.interfaces import Batch, Context, Group, LossOutput, Outputs, Refusal, Row, Setting, Strategy, Task
from contrl.strategies.replay import Replay


@dataclass
class COPR(Strategy):
    """Adds fit_coef mean (log P - log P*)^2 over new pairs and lambda times the same over old ones.

    Attributes:
        fit_coef: strength of the fit; 0 keeps the constraint alone.
        tau: temperature of the advantage, which is 1 for the chosen and -1 for the rejected answer.
        constraint_threshold: how far old pairs may be off before the multiplier grows.
        log_lambda, lambda_lr: the multiplier's logarithm at the start and its rate:
            log lambda += lambda_lr lambda (distance - threshold).
        buffer_size: pairs kept of each task; below 1 the share of its pairs.
        share: old pairs per new pair in a step.
    """

    name = "copr"

    fit_coef: float = 0.8
    tau: float = 1.0
    constraint_threshold: float = 0.1
    log_lambda: float = 1e-4
    lambda_lr: float = 1e-4
    buffer_size: int | float = 100
    share: float = 0.5
    targets: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    multiplier: float = field(default=0.0, init=False)
    _earlier: Any = field(default=None, init=False, repr=False)
    _seen: torch.Tensor = field(default_factory=lambda: torch.zeros(2), init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.fit_coef, self.share, self.lambda_lr, self.constraint_threshold) < 0 or self.tau <= 0:
            raise UserError("copr needs tau > 0 and fit_coef, share, lambda_lr, constraint_threshold >= 0")
        self.multiplier = self.log_lambda
        self._buffer = Replay(share=self.share, buffer_size=self.buffer_size)

    def refuses(self, setting: Setting) -> Refusal | None:
        if not setting.method.pairs or "scores" in setting.method.needs:
            return Refusal(
                "it needs pairs of a chosen and a rejected answer that the policy gives probabilities",
                "use dpo, cpo or orpo, or with this method replay or kl (cppo with methods that sample)",
            )
        return super().refuses(setting)

    def before_task(self, ctx: Context) -> None:
        """Freeze the policy the stage begins with: P* is told from it."""
        self._earlier = ctx.services.reference("previous")

    def draw(self, ctx: Context, num_rows: int) -> list[tuple[Task, Row]]:
        """Pairs kept of earlier tasks; the method learns from them as well."""
        return self._buffer.draw(ctx, num_rows)

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        """New pairs, and old ones with a target."""
        learnt = [group for group in groups if not group.is_anchor]
        old = sum(group.is_replay and _key(group) in self.targets for group in learnt)
        return {"copr/fit": float(sum(not group.is_replay for group in learnt)), "copr/kept": float(old)}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        """Both terms; the distance of old pairs is remembered for the multiplier."""
        if batch.groups[0].is_anchor:
            return None
        mine = over_answers(out.logps, batch)
        with torch.no_grad():
            best = self._best(ctx.services.read(self._earlier, batch).logps, batch)
        is_old = torch.tensor([g.is_replay for g in batch.groups], device=mine.device)
        known = torch.tensor([_key(g) in self.targets for g in batch.groups], device=mine.device) & is_old
        stored = mine.new_tensor([self.targets.get(_key(g), [0.0, 0.0]) for g in batch.groups])
        fit = (mine - best).square().sum(-1)[~is_old].sum()
        kept = (mine - stored).square().sum(-1)[known].sum()
        self._seen += torch.tensor([float(kept.detach()), float(known.sum())])
        return LossOutput(
            {"copr/fit": self.fit_coef * fit, "copr/kept": math.exp(self.multiplier) * kept},
            {
                "copr/fit_distance": (fit.detach(), (~is_old).sum()),
                "copr/kept_distance": (kept.detach(), known.sum()),
            },
        )

    def _best(self, earlier: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``[P, 2]`` log P*."""
        advantage = torch.tensor([1.0, -1.0], dtype=earlier.dtype, device=earlier.device) / self.tau
        return (over_answers(earlier, batch) + advantage).log_softmax(-1)

    def after_step(self, ctx: Context) -> None:
        """The multiplier grows while old pairs are further off than allowed."""
        total, number = ctx.services.gather(self._seen).reshape(-1, 2).sum(0).tolist()
        self._seen = torch.zeros(2)
        if number:
            excess = total / number - self.constraint_threshold
            self.multiplier += self.lambda_lr * math.exp(self.multiplier) * excess
            ctx.report({"copr/lambda": (math.exp(self.multiplier), 1.0)})

    def after_task(self, ctx: Context) -> None:
        """Keep a sample of the stage's pairs, each with the P* it was fitted to."""
        self._buffer.after_task(ctx)
        for name in ctx.stage.tasks:
            ids = set(self._buffer.memory[name])
            for row in ctx.sequence.task(name).train:
                if str(row["id"]) in ids:
                    group = ctx.method.prepare(row, ctx.tokenizer)
                    group.task = name
                    batch = ctx.services.batch([group])
                    best = self._best(ctx.services.read(self._earlier, batch).logps, batch)
                    self.targets[_key(group)] = best[0].tolist()

    def state_dict(self) -> dict[str, Any]:
        """The pairs kept, their targets, and the multiplier."""
        return {"buffer": self._buffer.state_dict(), "targets": dict(self.targets), "multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._buffer.load_state_dict(state.get("buffer", {}))
        self.targets = {key: list(value) for key, value in state.get("targets", {}).items()}
        self.multiplier = float(state.get("multiplier", self.log_lambda))


def over_answers(logps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """``[P, 2]`` log P of each answer among its prompt's two, from the mean log-probability of a token."""
    means = logps.sum(-1) / batch.mask.sum(-1).clamp(min=1)
    return means.view(-1, 2).log_softmax(-1)


def _key(group: Group) -> str:
    return f"{group.task}/{group.row_id}"
