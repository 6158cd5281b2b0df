"""GRPO and its relatives: advantages relative to the prompt's other samples, one ratio per token or per completion.

arXiv:2402.03300; DAPO arXiv:2503.14476, Dr. GRPO arXiv:2503.20783, GSPO arXiv:2507.18071. They differ in what the sum
over tokens is divided by, in the ratio and in the scale of the advantage: three fields, not four classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from contrl.errors import UserError
from contrl.interfaces import Batch, Group, LossOutput, Outputs, Pool, Rollouts
from contrl.losses.advantages import EPSILON, from_mean, normalised_sum, spread
from contrl.losses.kl import kl_estimate
from contrl.losses.policy import clipped_surrogate, sequence_correction, sequence_log_ratio, token_log_ratio
from contrl.methods.pairs import derive
from contrl.methods.rollouts import (
    Metrics,
    Problems,
    SampledMethod,
    clip_metrics,
    entropy_metric,
    kl_metrics,
    moments,
    num_completions,
    num_tokens,
    reward_metrics,
    rewards_of,
)

LossType = Literal["grpo", "bnpo", "dapo", "dr_grpo"]
Level = Literal["token", "sequence"]
Scale = Literal["group", "batch", "none"]
Aggregate = Literal["sum_then_normalize", "normalize_then_sum"]


@dataclass(frozen=True)
class GRPO(SampledMethod):
    """Group-relative policy optimisation.

    Attributes:
        loss_type: grpo is the mean over tokens of each completion, then over completions; dapo and bnpo the sum over
            all tokens of the step by their number; dr_grpo the sum by completions x max_new_tokens.
        level: one ratio per token, or per completion (the geometric mean of its tokens', GSPO).
        scale_rewards: divide advantages by the standard deviation of the group, of the whole window, or not.
        aggregate: normalise the sum of several rewards, or sum the rewards after normalising each within its group.
        reward_weights: of normalize_then_sum, in the order of the reward functions; None = all 1. (A sum is weighted
            where it is made, by the rewards themselves.)
        beta: weight of the KL to the reference (k3 per token) in the loss; 0 needs no reference.
        unbiased_kl: multiply the KL by the ratio, which makes its gradient that of the reverse KL (arXiv:2512.02556).
        delta: upper bound of the ratio also where the advantage is negative; None = none.
    """

    why_fewest: ClassVar[str] = ": an advantage compares a sample with the others of its prompt"

    samples_per_prompt: int = 8
    loss_type: LossType = "dapo"
    level: Level = "token"
    scale_rewards: Scale = "group"
    aggregate: Aggregate = "sum_then_normalize"
    reward_weights: tuple[float, ...] | None = None
    beta: float = 0.0
    unbiased_kl: bool = True
    delta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        derive(self, measures=frozenset({"reference_logps"} if self.beta else ()))

    def problems(self) -> Problems:
        choices = {"loss_type": LossType, "level": Level, "scale_rewards": Scale, "aggregate": Aggregate}
        alone = self.reward_weights is not None and self.aggregate == "sum_then_normalize"
        return [
            *(
                (getattr(self, name) not in get_args(kind), f"{name} is {getattr(self, name)!r}, use {_listed(kind)}")
                for name, kind in choices.items()
            ),
            (self.beta < 0, f"beta is {self.beta}, use 0 or more"),
            (self.delta is not None and self.delta <= 0, f"delta is {self.delta}, use more than 0 or null"),
            (alone, "reward_weights belongs to aggregate: normalize_then_sum; a sum is weighted by the rewards"),
        ]

    def teaches(self, group: Group) -> bool:
        """A KL term teaches every completion, also where rewards do not differ."""
        return super().teaches(group) or (self.beta > 0 and any(c.num_trained() > 0 for c in group.completions))

    def credit(self, groups: Rollouts, pool: Pool) -> dict[str, tuple[float, float]]:
        """Advantages relative to the group; metrics under TRL's names."""
        self.leave_out_truncated(groups)
        summed = self.aggregate == "sum_then_normalize"
        rewards = [rewards_of(group) if summed else self._normalised(group) for group in groups]
        # What was normalised within each group has mean 0 in the window; it is divided by the window's spread.
        over_window = self.scale_rewards == "batch" or not summed
        known = torch.cat([torch.zeros(0, dtype=torch.float64), *rewards])
        deviation = moments(known[~known.isnan()], pool)[1] ** 0.5 if over_window else 0.0
        for group, table in zip(groups, rewards, strict=True):
            advantages = from_mean(table) if summed else table.nan_to_num(0.0)
            if over_window or self.scale_rewards == "group":
                advantages = advantages / ((deviation if over_window else spread(table)) + EPSILON)
            for completion, advantage in zip(group.completions, advantages.tolist(), strict=True):
                completion.advantage = advantage
        # The log's kl_per_token is the loss's own, which follows the policy through the window.
        kl = {"kl": kl_metrics(groups, "k3")["kl"]} if self.beta else {}
        return reward_metrics(groups) | kl

    def _normalised(self, group: Group) -> torch.Tensor:
        """``[K]`` weighted sum of the group's normalised scores."""
        tables = [completion.scores or {"reward": completion.reward} for completion in group.completions]
        names = list(tables[0]) if tables else []
        weights = self.reward_weights or (1.0,) * len(names)
        if len(weights) != len(names):
            raise UserError(
                f"grpo: reward_weights has {len(weights)} numbers for the rewards {', '.join(names)}",
                where=f"task {group.task}" if group.task else "",
                fix="give one weight for each reward, in their order",
            )
        # A completion whose reward could not be had has none, even if some of its scores are known.
        missing = [completion.reward is None for completion in group.completions]
        scores = [
            [float("nan") if lost else _number(table.get(name)) for name in names]
            for table, lost in zip(tables, missing, strict=True)
        ]
        return normalised_sum(torch.tensor(scores, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64))

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Completions, trained tokens, or the tokens there could have been, as ``loss_type`` says."""
        if self.loss_type in ("bnpo", "dapo"):
            return {"policy": num_tokens(groups)}
        return {"policy": num_completions(groups) * (self.max_new_tokens if self.loss_type == "dr_grpo" else 1)}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum of the clipped surrogate and of beta times the KL, over tokens or over the completions' means."""
        mask = batch.mask
        log_ratio = token_log_ratio(out.logps, batch.old_logps, mask)
        correction = batch.correction
        if self.level == "sequence":
            log_ratio = sequence_log_ratio(log_ratio, mask)[:, None]
            if correction is not None:
                correction = sequence_correction(correction, mask, self.correction_cap)[:, None]
        surrogate = clipped_surrogate(log_ratio, batch.advantages[:, None], self.clip, self.clip_high, self.delta)
        terms = surrogate.terms if correction is None else surrogate.terms * correction
        metrics = clip_metrics(surrogate, mask) | entropy_metric(out, batch)
        if self.beta:
            kl, logged = self._kl(out, batch, surrogate.ratio)
            terms, metrics = terms + self.beta * kl, metrics | logged
        sums = (terms * mask).sum(-1)
        if self.loss_type == "grpo":
            sums = sums / mask.sum(-1).clamp(min=1)
        return LossOutput({"policy": (sums * batch.weights).sum()}, metrics)

    def _kl(self, out: Outputs, batch: Batch, ratio: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        if batch.reference_logps is None:
            raise RuntimeError("grpo with beta reached its loss without the reference's log-probabilities")
        kl = kl_estimate(out.logps, batch.reference_logps, "k3", batch.mask)
        if self.unbiased_kl:
            kl = kl * ratio
        return kl, {"kl_per_token": ((kl.detach() * batch.mask).sum(), batch.mask.sum())}


def _listed(kind: object) -> str:
    return ", ".join(get_args(kind))


def _number(score: float | None) -> float:
    return float("nan") if score is None else float(score)
