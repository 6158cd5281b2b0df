"""Value estimates: how they turn token rewards into advantages and returns, and what they are trained by.

A completion is an episode that ends with its last token: nothing is bootstrapped behind it, also where the length
limit cut it, as in TRL's PPO.
"""

from __future__ import annotations

import torch


def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation, arXiv:1506.02438, equation 16.

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = delta_t + gamma lambda A_{t+1}``, returns ``A_t + V_t``; beyond
    the last token V and A are 0. Rows may be right padded with zeros in both tensors: their results are 0 there.

    Args:
        rewards: ``[N, T]`` what each token earned.
        values: ``[N, T]`` the estimate *before* each token.

    Returns:
        Advantages and returns, ``[N, T]``, without gradient.
    """
    rewards, values = rewards.detach(), values.detach()
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0]) if values.shape[1] else values.sum(-1)
    next_value = torch.zeros_like(following)
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = delta + gamma * gae_lambda * following
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, advantages + values


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2`` of each token, not reduced.

    PPO's value loss as in Dhariwal et al.'s baselines and TRL's old PPO: a value that has already moved by c towards
    its return is not pulled further.

    Args:
        values: any shape, with gradient.
        old_values: what the head said when the completion was sampled.
        returns: the target.
        clip: c; None is the plain squared error.

    Returns:
        The terms and whether each one's gradient was clipped away.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    near = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    clipped = (near - returns).square()
    return torch.maximum(free, clipped) / 2, (clipped > free).detach()
