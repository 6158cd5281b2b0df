"""Losses on single completions that carry a label: desirable or not; one term each, not reduced."""

from __future__ import annotations

import torch


def kto(log_ratio: torch.Tensor, desirable: torch.Tensor, beta: float, kl: torch.Tensor | float) -> torch.Tensor:
    """``1 - s(beta (r - kl))`` for a desirable completion, ``1 - s(beta (kl - r))`` for the others ``[N]``.

    KTO, arXiv:2402.01306, equation 7; equal to TRL 1.16's before its weights and its mean.

    Args:
        log_ratio: ``[N]`` r, log-ratio of policy to reference, summed over tokens.
        desirable: ``[N]`` True = an answer to imitate.
        beta: strength of the pull towards the reference.
        kl: the reference point, a detached estimate of how far the policy has moved.
    """
    gain = beta * (log_ratio - kl)
    return torch.where(desirable, torch.sigmoid(-gain), torch.sigmoid(gain))


def apo_zero_unpaired(log_ratio: torch.Tensor, desirable: torch.Tensor, beta: float) -> torch.Tensor:
    """KTO with reference point 0 ``[N]``: desirable up, undesirable down, whatever the policy's drift.

    APO, arXiv:2408.06266, equation 7 taken apart; equal to TRL 1.16's.
    """
    return kto(log_ratio, desirable, beta, 0.0)
