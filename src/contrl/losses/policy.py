"""Policy-gradient surrogates on tokens or on whole completions; the same clip, not reduced.

What differs between RLOO, GRPO, GSPO and PPO is only whose log-ratio it is: of a token, the mean or the sum of a
completion's. At ratio 1 the gradient is REINFORCE's, ``-A grad log p``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Surrogate:
    """Of each element: the term of the loss, the ratio, and whether the lower or upper bound stopped its gradient."""

    terms: torch.Tensor
    ratio: torch.Tensor
    is_low: torch.Tensor
    is_high: torch.Tensor


def clipped_surrogate(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    clip: float,
    clip_high: float | None = None,
    delta: float | None = None,
) -> Surrogate:
    """``-min(r A, clip(r, 1 - clip, 1 + clip_high) A)``, r = exp(log_ratio).

    PPO, arXiv:1707.06347, equation 7; ``clip_high`` is DAPO's clip-higher, arXiv:2503.14476. ``delta`` bounds the
    first r as well, so that a bad token that became much likelier no longer has an unbounded term (two-sided clip,
    arXiv:2505.07291). Equal to TRL 1.16's terms.

    Args:
        log_ratio: log p - log p_old, any shape.
        advantages: of a shape that broadcasts with it.
        clip, clip_high: half-widths of the interval; ``clip_high`` None = ``clip``.
        delta: upper bound of the free ratio, or None.
    """
    high = clip if clip_high is None else clip_high
    ratio = log_ratio.exp()
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    terms = -torch.minimum(bounded * advantages, ratio.clamp(1 - clip, 1 + high) * advantages)
    # The bounded ratio, as TRL has it: with delta below 1 + clip_high the upper bound is never the one that stops.
    is_low = (bounded < 1 - clip) & (advantages < 0)
    is_high = (bounded > 1 + high) & (advantages > 0)
    return Surrogate(terms, ratio, is_low.detach(), is_high.detach())


def token_log_ratio(logps: torch.Tensor, old_logps: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
    """``[N, T]`` log p - log p_old, 0 where ``mask`` is False.

    ``old_logps`` None means that the policy has not moved since it sampled: then the ratio is exactly 1, with the
    gradient of ``logps``.
    """
    difference = logps - (logps.detach() if old_logps is None else old_logps)
    return torch.where(mask, difference, torch.zeros_like(difference))


def sequence_log_ratio(log_ratio: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``[N]`` mean of the token log-ratios ``[N, T]`` over trained tokens: GSPO's, arXiv:2507.18071, equation 7."""
    return log_ratio.sum(-1) / mask.sum(-1).clamp(min=1)


def sequence_correction(correction: torch.Tensor, mask: torch.Tensor, cap: float) -> torch.Tensor:
    """``[N]`` one importance weight a completion: the product of its token weights ``[N, T]``, at most ``cap``.

    For losses whose ratio is the completion's own. Truncating the product, and not only its factors, bounds the
    variance (truncated importance sampling).
    """
    logs = torch.where(mask, correction, torch.ones_like(correction)).clamp(min=torch.finfo(correction.dtype).tiny)
    return logs.log().sum(-1).exp().clamp(max=cap)
