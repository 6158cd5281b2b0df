"""CPPO: learn more from some sampled answers, and stay closer to the earlier policy on others.

Zhang et al. 2024 (ICLR, "CPPO: Continual Learning for Reinforcement Learning with Human Feedback"). Reward and
likelihood of an answer, each against mean and spread of the whole step, say which of five kinds it is: its weight in
the method's loss and the weight of its retention term. Made for PPO; it works with every method that samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from contrl.errors import UserError
from contrl.interfaces import Batch, Context, Group, LossOutput, OnlineMethod, Outputs, Refusal, Setting, Strategy


@dataclass
class CPPO(Strategy):
    """Weighs completions by alpha and adds reg_coef sum_i beta_i mean_t (log p - log p_earlier)^2 / sum_i beta_i.

    Attributes:
        reg_coef: strength of the retention term, which begins with the second stage.
        threshold: how many standard deviations from the step's mean are high or low.
        upper, lower: the weights of what counts more and less.
    """

    name = "cppo"

    reg_coef: float = 0.1
    threshold: float = 0.5
    upper: float = 2.0
    lower: float = 0.2
    _weights: dict[int, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)
    _earlier: object = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.reg_coef < 0 or self.threshold < 0 or not 0 < self.lower <= 1 <= self.upper:
            raise UserError("cppo needs reg_coef >= 0, threshold >= 0 and 0 < lower <= 1 <= upper")

    def refuses(self, setting: Setting) -> Refusal | None:
        if not isinstance(setting.method, OnlineMethod):
            return Refusal(
                "its weights come from rewards of sampled answers, and this method samples none",
                "use ppo, rloo or grpo, or kl with this method",
            )
        return super().refuses(setting)

    def before_task(self, ctx: Context) -> None:
        """Freeze the policy the stage begins with; before the second stage there is nothing to retain."""
        retains = ctx.stage.index > 1 and self.reg_coef > 0
        self._earlier = ctx.services.reference("previous") if retains else None

    def prepare_step(self, ctx: Context, groups: Sequence[Group]) -> None:
        """Sort the step's completions, of all ranks, into the five kinds."""
        completions = [c for group in groups for c in group.completions]
        rewards = torch.tensor([_nan(c.reward) for c in completions], dtype=torch.float64)
        likely = torch.tensor(
            [sum(c.old_logps or [0.0]) / max(len(c.ids), 1) for c in completions], dtype=torch.float64
        )
        alpha, beta = self.kinds(rewards, likely, ctx.services.gather(rewards), ctx.services.gather(likely))
        everyone = ctx.services.gather(alpha)
        mean = float(everyone.mean()) if len(everyone) else 1.0
        pairs = zip((alpha / mean).tolist(), beta.tolist(), strict=True)
        self._weights = {id(c): pair for c, pair in zip(completions, pairs, strict=True)}
        ctx.report({"cppo/alpha": (float(alpha.sum()), float(len(alpha))), "cppo/beta": (float(beta.sum()), len(beta))})

    def kinds(
        self, rewards: torch.Tensor, likely: torch.Tensor, all_rewards: torch.Tensor, all_likely: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and beta ``[N]`` of completions; a missing reward (not a number) counts as ordinary.

        Args:
            rewards, likely: ``[N]`` reward and mean log-probability of a token.
            all_rewards, all_likely: of the whole step.
        """
        good, bad = _sides(rewards, all_rewards, self.threshold)
        sure, unsure = _sides(likely, all_likely, self.threshold)
        alpha, beta = torch.ones_like(rewards), torch.ones_like(rewards)
        for mask, (a, b) in (
            (good & sure, (self.upper, self.upper)),  # right and sure of it: learn it and keep it
            (good & unsure, (self.upper, 1.0)),  # a lucky find: learn it
            (bad & sure, (self.upper, self.lower)),  # wrong and sure of it: unlearn it
            (bad & unsure, (self.lower, self.lower)),  # noise
        ):
            alpha[mask], beta[mask] = a, b
        return alpha, beta

    def weights(self, ctx: Context, batch: Batch) -> torch.Tensor | None:
        """alpha, with mean 1 over the step."""
        return self._of(batch, 0)

    def _of(self, batch: Batch, which: int) -> torch.Tensor:
        known = [self._weights.get(id(c), (1.0, 1.0))[which] for group in batch.groups for c in group.completions]
        return batch.weights.new_tensor(known)

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        """The sum of beta."""
        if self._earlier is None:
            return {}
        learnt = [c for group in groups if not group.is_anchor for c in group.completions]
        return {self.name: sum(self._weights.get(id(c), (1.0, 1.0))[1] for c in learnt)}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        """The retention term."""
        if self._earlier is None or batch.groups[0].is_anchor:
            return None
        earlier = ctx.services.read(self._earlier, batch).logps
        tokens = batch.mask.sum(-1).clamp(min=1)
        terms = ((out.logps - earlier).square() * batch.mask).sum(-1) / tokens
        return LossOutput(
            {self.name: self.reg_coef * (self._of(batch, 1) * terms).sum()},
            {"cppo/retention": (terms.detach().sum(), float(len(terms)))},
        )


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _sides(values: torch.Tensor, everyone: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Which values are above and below the mean of all by more than ``threshold`` standard deviations."""
    known = everyone[everyone.isfinite()]
    if len(known) < 2:
        nothing = torch.zeros_like(values, dtype=torch.bool)
        return nothing, nothing
    mean, spread = known.mean(), known.std(correction=0)
    return values > mean + threshold * spread, values < mean - threshold * spread
