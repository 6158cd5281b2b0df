"""Scores of a completion under an f-divergence: what takes the log-ratio's place in a preference loss.

f-DPO, arXiv:2309.16240: the reward is ``beta f'(p / p_ref)`` up to a constant of the prompt, which
cancels in the difference of chosen and rejected alone; losses that read one side by itself have no such form.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

# exp() of more than this leaves the type; bfloat16 and float32 share their range.
_LARGEST_EXPONENT = {torch.float16: 11.0, torch.bfloat16: 80.0, torch.float32: 80.0, torch.float64: 700.0}


def divergence_score(log_ratio: torch.Tensor, kind: Divergence, alpha: float = 0.5) -> torch.Tensor:
    """``f'(u)`` of the ratio ``u = p(y) / p_ref(y)``, up to constants that cancel.

    ``reverse_kl`` gives log u, ``forward_kl`` 1 - 1/u, ``js_divergence`` log(2u / (1 + u)), ``alpha_divergence``
    (u^(alpha - 1) - 1) / (alpha - 1), whose limit at alpha = 1 is log u. Values equal TRL 1.16's; float64 works too.

    Args:
        log_ratio: any shape, log u.
        kind: which divergence keeps the policy near its reference.
        alpha: of ``alpha_divergence`` only.
    """
    if kind == "forward_kl":
        return -torch.expm1(-log_ratio)
    if kind == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio)
    if kind == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        exponent = ((alpha - 1) * log_ratio).clamp(max=_LARGEST_EXPONENT[log_ratio.dtype])
        return torch.expm1(exponent) / (alpha - 1)
    return log_ratio
