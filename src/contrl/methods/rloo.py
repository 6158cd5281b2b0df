"""RLOO: REINFORCE on whole completions, each sample's baseline being the mean of its siblings.

arXiv:2402.14740. The log-probability of a completion is the *sum* over its tokens; prompt tokens take no part. A KL
penalty is part of the reward. Later steps of a rollout window clip the ratio to the sampling policy, as TRL 1.16 does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from contrl.interfaces import Batch, Group, LossOutput, Outputs, Pool, Rollouts
from contrl.losses.advantages import EPSILON, leave_one_out
from contrl.losses.policy import clipped_surrogate, token_log_ratio
from contrl.methods.pairs import derive
from contrl.methods.rollouts import (
    Problems,
    SampledMethod,
    clip_metrics,
    entropy_metric,
    kl_metrics,
    moments,
    num_completions,
    reference_kl,
    reward_clip_problem,
    reward_metrics,
    rewards_of,
)


@dataclass(frozen=True)
class RLOO(SampledMethod):
    """REINFORCE leave-one-out.

    Attributes:
        beta: weight of the KL to the reference (k1, summed over the completion) that is taken off the reward; 0 needs
            no reference.
        normalize_advantages: divide by the standard deviation over the window of all ranks, plus 1e-4.
        reward_clip: bounds of the reward, before the KL is taken off; None = none.
    """

    why_fewest: ClassVar[str] = ": the baseline of a sample is the mean of the others"

    beta: float = 0.0
    normalize_advantages: bool = False
    reward_clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        derive(self, measures=frozenset({"reference_logps"} if self.beta else ()))

    def problems(self) -> Problems:
        return [(self.beta < 0, f"beta is {self.beta}, use 0 or more"), reward_clip_problem(self.reward_clip)]

    def credit(self, groups: Rollouts, pool: Pool) -> dict[str, tuple[float, float]]:
        """Leave-one-out advantages of the penalised rewards; metrics under TRL's names."""
        self.leave_out_truncated(groups)
        compared = [torch.zeros(0, dtype=torch.float64)]
        for group in groups:
            rewards = self._penalised(group)
            advantages = leave_one_out(rewards)
            known = ~rewards.isnan()
            if int(known.sum()) > 1:
                compared.append(advantages[known])
            for completion, advantage in zip(group.completions, advantages.tolist(), strict=True):
                completion.advantage = advantage
        if self.normalize_advantages:
            # Their mean is 0 by construction: not subtracted, so that groups without contrast stay exactly 0.
            _, variance = moments(torch.cat(compared), pool)
            for completion in (c for group in groups for c in group.completions):
                completion.advantage /= variance**0.5 + EPSILON
        return reward_metrics(groups) | (kl_metrics(groups, "k1") if self.beta else {})

    def _penalised(self, group: Group) -> torch.Tensor:
        rewards = rewards_of(group)
        if self.reward_clip is not None:
            rewards = rewards.clamp(*self.reward_clip)
        if not self.beta:
            return rewards
        return rewards - self.beta * torch.stack([reference_kl(c, "k1").sum() for c in group.completions])

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Completions."""
        return {"policy": num_completions(groups)}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over completions of the clipped surrogate; on the first step of a window it is REINFORCE."""
        log_ratio = token_log_ratio(out.logps, batch.old_logps, batch.mask).sum(-1)
        surrogate = clipped_surrogate(log_ratio, batch.advantages, self.clip, self.clip_high)
        total = (surrogate.terms * self.sequence_weights(batch)).sum()
        return LossOutput({"policy": total}, clip_metrics(surrogate, batch.mask) | entropy_metric(out, batch))
