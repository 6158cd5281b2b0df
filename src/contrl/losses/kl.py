"""Estimates of KL(policy || reference) from tokens that the policy sampled, and the coefficient that steers it.

Every direction here is policy against reference: positive where the policy gives its own token more than the
reference does. Estimators after Schulman 2020, "Approximating KL divergence"; nothing is reduced.
"""

from __future__ import annotations

from typing import Literal

import torch

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    logps: torch.Tensor, reference_logps: torch.Tensor, estimator: KLEstimator, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """KL of each token, with ``d = logp - reference_logp``.

    k1 is ``d``: unbiased, either sign. k2 is ``d^2 / 2``: biased, never negative. k3 is ``exp(-d) - 1 + d``: unbiased
    and never negative. At d = 0 all are 0. k3 equals TRL 1.16's GRPO term, k1 its RLOO term.

    Args:
        logps, reference_logps: same shape, of tokens drawn from the policy.
        estimator: which of the three.
        mask: same shape, True = counts; elsewhere the estimate is 0 and whatever stands there takes no part.
    """
    difference = logps - reference_logps
    if mask is not None:
        difference = torch.where(mask, difference, torch.zeros_like(difference))
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    # expm1 keeps what 1 + small would lose: k3 is about d^2 / 2 near 0.
    return torch.expm1(-difference) + difference


def adapted_coef(coef: float, kl: float, target: float, num_completions: float, horizon: float) -> float:
    """The next KL coefficient: up when the measured KL is above its target, down when below.

    ``coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_completions / horizon)``. Ziegler et al., arXiv:1909.08593,
    section 2.2; equal to TRL's old AdaptiveKLController.

    Args:
        coef: the current coefficient.
        kl: mean over completions of the KL summed over tokens, in nats.
        target: what it should be.
        num_completions: completions that were measured.
        horizon: completions over which an error of 1 would change the coefficient by its own size.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * num_completions / horizon)
