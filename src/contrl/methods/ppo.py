"""PPO: a value estimate at every token says how much better each token did than expected.

arXiv:1707.06347, for language models arXiv:1909.08593. Every token earns minus its KL to the reference, the last one
the score as well. The policy and the values are trained on one forward pass, each under its own clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch.nn.utils.rnn import pad_sequence

from contrl.interfaces import Batch, Completion, Group, LossOutput, Outputs, Pool, Rollouts
from contrl.losses.advantages import whiten
from contrl.losses.kl import KLEstimator, adapted_coef
from contrl.losses.policy import Surrogate, clipped_surrogate, token_log_ratio
from contrl.losses.values import clipped_value_loss, generalised_advantages
from contrl.methods.pairs import derive
from contrl.methods.rollouts import (
    Metrics,
    Problems,
    SampledMethod,
    entropy_metric,
    measured,
    moments,
    num_tokens,
    reference_kl,
    reward_clip_problem,
    reward_metrics,
)

KL_COEF = "kl_coef"
"""Where the adaptive coefficient is kept from window to window, and in checkpoints."""


@dataclass(frozen=True)
class PPO(SampledMethod):
    """Proximal policy optimisation with a value estimate per token.

    Attributes:
        kl_coef: weight of each token's KL to the reference, taken off its reward; 0 needs no reference.
        kl_estimator: of that KL.
        target_kl: nats per completion that an adaptive ``kl_coef`` aims at; None keeps it fixed.
        kl_horizon: completions over which the coefficient adapts.
        clip_value: how far a value may move from the sampled one before its loss stops pulling; None = no limit.
        value_coef: weight of the value loss.
        gamma, gae_lambda: discount and the trace of generalised advantage estimation.
        whiten_rewards: divide token rewards by their standard deviation over the window; their mean stays.
        whiten_advantages: shift and scale advantages to mean 0 and variance 1 over the window of all ranks.
        missing_eos_penalty: taken off the score of a completion that was cut; None = nothing.
        value: where values come from: a head on the policy's trunk, or a model of its own.
        value_model: the folder or name of that model; None starts from the policy's first weights.
        keep_value: whether the next task goes on with the values of the last; else it begins anew.
        keep_value: every task carries the value function on; False starts it anew with each task.
        reward_clip: bounds of the score; None = none.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "entropy", "values"})
    fewest_samples: ClassVar[int] = 1
    watched: ClassVar[tuple[str, ...]] = ("reward", "verifier/", "kl", "policy/entropy_avg")

    samples_per_prompt: int = 1
    num_epochs: int = 4
    kl_coef: float = 0.05
    kl_estimator: KLEstimator = "k1"
    target_kl: float | None = None
    kl_horizon: float = 10000.0
    clip_value: float | None = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    missing_eos_penalty: float | None = None
    value: Literal["head", "model"] = "head"
    value_model: str | None = None
    keep_value: bool = True
    reward_clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        derive(self, measures=frozenset({"values", *(("reference_logps",) if self.kl_coef else ())}))

    def problems(self) -> Problems:
        fixed = self.target_kl is not None and not self.kl_coef
        return [
            (self.kl_coef < 0, f"kl_coef is {self.kl_coef}, use 0 or more"),
            (
                self.kl_estimator not in get_args(KLEstimator),
                f"kl_estimator is {self.kl_estimator!r}, use {', '.join(get_args(KLEstimator))}",
            ),
            (self.target_kl is not None and self.target_kl <= 0, f"target_kl is {self.target_kl}, use more than 0"),
            (fixed, "target_kl changes kl_coef by factors, so kl_coef cannot start at 0"),
            (self.kl_horizon <= 0, f"kl_horizon is {self.kl_horizon}, use more than 0"),
            (self.clip_value is not None and self.clip_value <= 0, f"clip_value is {self.clip_value}, use more than 0"),
            (self.value_coef < 0, f"value_coef is {self.value_coef}, use 0 or more"),
            (not 0 <= self.gamma <= 1, f"gamma is {self.gamma}, use 0 to 1"),
            (not 0 <= self.gae_lambda <= 1, f"gae_lambda is {self.gae_lambda}, use 0 to 1"),
            (self.value not in ("head", "model"), f"value is {self.value!r}, use head or model"),
            (self.value_model is not None and self.value != "model", "value_model needs value: model"),
            reward_clip_problem(self.reward_clip),
        ]

    def teaches(self, group: Group) -> bool:
        """Values are learnt from every completion that has a reward, also where rewards do not differ."""
        return any(c.reward is not None and c.num_trained() > 0 for c in group.completions)

    # --- credit -------------------------------------------------------------------------------------------

    def credit(self, groups: Rollouts, pool: Pool) -> dict[str, tuple[float, float]]:
        """Token rewards, advantages and returns; a completion without reward is not learnt from at all."""
        self.leave_out_truncated(groups)
        completions = [c for group in groups for c in group.completions]
        for completion in completions:
            if completion.reward is None:
                completion.trained = [False] * len(completion.ids)
        coef = pool.memory.get(KL_COEF, self.kl_coef)
        kls = [reference_kl(c, self.kl_estimator) if self.kl_coef else _zeros(c) for c in completions]
        rewards = [self._token_rewards(c, kl, coef) for c, kl in zip(completions, kls, strict=True)]
        self._credit_tokens(completions, rewards, pool)
        if self.target_kl is not None:
            self._adapt(kls, coef, pool)
        return reward_metrics(groups) | self._metrics(completions, kls, coef)

    def _score(self, completion: Completion) -> float:
        score = float(completion.reward or 0.0)
        if self.reward_clip is not None:
            score = min(max(score, self.reward_clip[0]), self.reward_clip[1])
        return score if completion.ended else score - (self.missing_eos_penalty or 0.0)

    def _token_rewards(self, completion: Completion, kl: torch.Tensor, coef: float) -> torch.Tensor:
        rewards = -coef * kl
        rewards[-1:] += self._score(completion)
        return rewards

    def _credit_tokens(self, completions: Sequence[Completion], rewards: list[torch.Tensor], pool: Pool) -> None:
        """Whitening and GAE over the window; every rank calls ``pool.gather`` equally often, also with nothing."""
        empty = torch.zeros(0, dtype=torch.float64)
        values = pad_sequence([empty, *(measured(c, "values") for c in completions)], batch_first=True)
        table = pad_sequence([empty, *rewards], batch_first=True)
        mask = pad_sequence([empty.bool(), *(_trained(c) for c in completions)], batch_first=True)
        if self.whiten_rewards:
            mean, variance = moments(table[mask], pool)
            table = torch.where(mask, whiten(table, mean, variance, shift_mean=False), torch.zeros_like(table))
        advantages, returns = generalised_advantages(table, values, self.gamma, self.gae_lambda)
        if self.whiten_advantages:
            advantages = whiten(advantages, *moments(advantages[mask], pool))
        advantages = torch.where(mask, advantages, torch.zeros_like(advantages))
        for row, completion in enumerate(completions, start=1):
            length = len(completion.ids)
            completion.token_advantages = advantages[row, :length].tolist()
            completion.returns = returns[row, :length].tolist()

    def _adapt(self, kls: Sequence[torch.Tensor], coef: float, pool: Pool) -> None:
        """The next window's coefficient, from the KL of all ranks."""
        measured_kls = pool.gather(torch.tensor([float(kl.sum()) for kl in kls], dtype=torch.float64))
        if self.target_kl is not None and measured_kls.numel():
            kl, number = float(measured_kls.mean()), float(measured_kls.numel())
            pool.memory[KL_COEF] = adapted_coef(coef, kl, self.target_kl, number, self.kl_horizon)

    def _metrics(
        self, completions: Sequence[Completion], kls: Sequence[torch.Tensor], coef: float
    ) -> dict[str, tuple[float, float]]:
        number, kl = float(len(completions)), sum(float(table.sum()) for table in kls)
        surprise = -sum(float(measured(c, "old_logps").sum()) for c in completions)
        scored = [self._score(c) for c in completions if c.reward is not None]
        kls_of_scored = [kl for kl, c in zip(kls, completions, strict=True) if c.reward is not None]
        penalty = -coef * sum(float(table.sum()) for table in kls_of_scored)
        metrics = {
            "objective/entropy": (surprise, number),
            "objective/non_score_reward": (-coef * kl, number),
            "objective/rlhf_reward": (sum(scored) + penalty, float(len(scored))),
            "objective/scores": (sum(scored), float(len(scored))),
            "objective/kl_coef": (coef, 1.0),
            "val/num_eos_tokens": (float(sum(c.ended for c in completions)), 1.0),
        }
        return metrics | ({"kl": (kl, number), "objective/kl": (kl, number)} if self.kl_coef else {})

    # --- loss ---------------------------------------------------------------------------------------------

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Trained tokens, for either term."""
        return {"policy": num_tokens(groups), "value": num_tokens(groups)}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sums over trained tokens of the clipped surrogate and of the clipped value loss."""
        if out.values is None or batch.old_values is None or batch.returns is None or batch.token_advantages is None:
            raise RuntimeError("ppo reached its loss without values, returns or advantages")
        weights = batch.mask * batch.weights[:, None]
        log_ratio = token_log_ratio(out.logps, batch.old_logps, batch.mask)
        surrogate = clipped_surrogate(log_ratio, batch.token_advantages, self.clip, self.clip_high)
        terms = surrogate.terms if batch.correction is None else surrogate.terms * batch.correction
        values, is_clipped = clipped_value_loss(out.values, batch.old_values, batch.returns, self.clip_value)
        policy, value = (terms * weights).sum(), (values * weights).sum()
        metrics = _ratio_metrics(surrogate, log_ratio, batch.mask) | entropy_metric(out, batch, "policy/entropy_avg")
        tokens = batch.mask.sum()
        metrics |= {
            "loss/policy_avg": (policy.detach(), tokens),
            "loss/value_avg": (value.detach(), tokens),
            "val/clipfrac_avg": ((is_clipped & batch.mask).sum(), tokens),
        }
        return LossOutput({"policy": policy, "value": self.value_coef * value}, metrics)


def _ratio_metrics(surrogate: Surrogate, log_ratio: torch.Tensor, mask: torch.Tensor) -> Metrics:
    """Over trained tokens; val/ratio_var is about 1 and not about the mean, so that passes and ranks add up."""
    ratio, tokens = surrogate.ratio.detach(), mask.sum()
    return {
        "policy/approxkl_avg": (log_ratio.detach().square().sum() / 2, tokens),
        "policy/clipfrac_avg": (((surrogate.is_low | surrogate.is_high) & mask).sum(), tokens),
        "val/ratio": ((ratio * mask).sum(), tokens),
        "val/ratio_var": (((ratio - 1).square() * mask).sum(), tokens),
    }


def _trained(completion: Completion) -> torch.Tensor:
    return torch.tensor(completion.trained or [completion.trained is None] * len(completion.ids), dtype=torch.bool)


def _zeros(completion: Completion) -> torch.Tensor:
    return torch.zeros(len(completion.ids), dtype=torch.float64)
