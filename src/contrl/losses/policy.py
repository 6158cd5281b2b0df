"""Policy-gradient surrogates, one term per completion, not reduced."""

from __future__ import annotations

import torch


def clipped_sequence_surrogate(
    logps: torch.Tensor, old_logps: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate on whole completions: ``-min(r A, clip(r, 1 - c, 1 + c) A)``, r = p(y) / p_old(y).

    With ``old_logps = logps.detach()`` the gradient is REINFORCE's, ``-A grad log p(y)``, on the *sum* of
    the completion's log-probabilities. RLOO, arXiv:2402.14740, with PPO's clip, arXiv:1707.06347, equation 7;
    equal to TRL 1.16's RLOO loss before its mean.

    Args:
        logps, old_logps, mask: ``[N, T]``.
        advantages: ``[N]``.
        clip: half-width of the interval the ratio is clipped to.

    Returns:
        The terms ``[N]`` and whether each completion's gradient was clipped away ``[N]``.
    """
    log_ratio = ((logps - old_logps) * mask).sum(-1)
    ratio = log_ratio.exp()
    free = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(free, clipped), (clipped < free).detach()
