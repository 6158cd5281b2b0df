"""Supervised losses on completion tokens: per-token terms, not reduced."""

from __future__ import annotations

import torch


def negative_log_likelihood(logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``-log p`` of each trained token, 0 elsewhere.

    Args:
        logps: ``[N, T]`` log-probabilities of the tokens.
        mask: ``[N, T]`` True = trained token.
    """
    return -logps * mask


def dynamic_fine_tuning(logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``-sg(p) log p`` of each trained token: the likelihood re-weighted by its own probability.

    DFT, arXiv:2508.05629, equation 9. With two equally likely tokens it is half the cross-entropy.
    """
    return -logps.detach().exp() * logps * mask
