"""Advantages from the rewards of a group; a missing reward (NaN) takes no part and gets advantage 0.

Equal rewards teach exactly nothing: 0, not the rounding error of a subtraction, because with Adam any gradient moves
weights. What needs more than one group (a standard deviation of the whole window) is passed in.
"""

from __future__ import annotations

import torch

EPSILON = 1e-4
"""Added to a standard deviation that divides, as in TRL 1.16."""


def has_contrast(rewards: torch.Tensor) -> bool:
    """Whether a group's known rewards ``[K]`` differ at all."""
    known = rewards[~rewards.isnan()]
    return known.numel() > 1 and not bool((known == known[0]).all())


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean reward of the *other* samples of the prompt.

    ``A_i = r_i - (sum_{j != i} r_j) / (K - 1)``. RLOO, arXiv:2402.14740, equation 7; equal to TRL 1.16's.
    The advantages of a group sum to 0; a group with fewer than two rewards teaches nothing.

    Args:
        rewards: ``[K]`` of one group, NaN = missing.
    """
    if not has_contrast(rewards):
        return torch.zeros_like(rewards)
    known = ~rewards.isnan()
    filled = rewards.nan_to_num(0.0)
    baseline = (filled.sum() - filled) / (known.sum() - 1)
    return torch.where(known, filled - baseline, torch.zeros_like(rewards))


def from_mean(rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean of the group, its own included: GRPO's advantage before scaling, arXiv:2402.03300.

    Args:
        rewards: ``[K]`` of one group, NaN = missing.
    """
    if not has_contrast(rewards):
        return torch.zeros_like(rewards)
    return (rewards - rewards.nanmean()).nan_to_num(0.0)


def spread(rewards: torch.Tensor) -> float:
    """Unbiased standard deviation of the known rewards ``[K]``; 0 of fewer than two, and of equal ones."""
    return float(rewards[~rewards.isnan()].std()) if has_contrast(rewards) else 0.0


def normalised_sum(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of several rewards, each first put on a common scale within the group (GDPO).

    ``sum_f w_f (s_f - mean s_f) / (std s_f + 1e-4)``, a missing score adding nothing. Equal to TRL 1.16's
    normalize_then_sum before it divides by the standard deviation of the whole window.

    Args:
        scores: ``[K, F]`` raw scores of one group, NaN = not applicable or missing.
        weights: ``[F]``.

    Returns:
        ``[K]``, NaN for a completion without any score.
    """
    columns = [from_mean(column) / (spread(column) + EPSILON) for column in scores.unbind(-1)]
    total = (torch.stack(columns, -1) * weights).sum(-1)
    return torch.where(scores.isnan().all(-1), torch.nan, total)


def whiten(values: torch.Tensor, mean: float, variance: float, *, shift_mean: bool = True) -> torch.Tensor:
    """``(x - mean) / sqrt(variance + 1e-8)``, plus the mean again unless ``shift_mean``; as TRL's old PPO.

    Args:
        values: any shape.
        mean, variance: of all values of the window on all ranks; the variance unbiased.
    """
    whitened = (values - mean) * (variance + 1e-8) ** -0.5
    return whitened if shift_mean else whitened + mean
