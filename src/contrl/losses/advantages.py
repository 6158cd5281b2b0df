"""Advantages from the rewards of a group; a missing reward (NaN) takes no part and gets advantage 0."""

from __future__ import annotations

import torch


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Reward minus the mean reward of the *other* samples of the prompt.

    ``A_i = r_i - (sum_{j != i} r_j) / (K - 1)``. RLOO, arXiv:2402.14740, equation 7; equal to TRL 1.16's.
    The advantages of a group sum to 0; a group with fewer than two rewards teaches nothing.

    Args:
        rewards: ``[K]`` of one group, NaN = missing.
    """
    known = ~rewards.isnan()
    num_known = int(known.sum())
    if num_known < 2 or bool((rewards[known] == rewards[known][0]).all()):
        # Equal rewards teach nothing: exactly 0, not the rounding error of the subtraction below.
        return torch.zeros_like(rewards)
    filled = rewards.nan_to_num(0.0)
    baseline = (filled.sum() - filled) / (num_known - 1)
    return torch.where(known, filled - baseline, torch.zeros_like(rewards))
