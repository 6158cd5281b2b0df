"""Losses of reward models on scored pairs: one term per pair, not reduced."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor | float = 0.0) -> torch.Tensor:
    """``-log s(chosen - rejected - margin)`` ``[P]``.

    Bradley-Terry likelihood, arXiv:2203.02155, equation 1; the margin is Llama 2's, arXiv:2307.09288, equation 2.
    Equal to TRL 1.16's before its mean.

    Args:
        chosen, rejected: ``[P]`` scores.
        margins: ``[P]`` how much better the chosen answer is said to be; 0 where nothing is said.
    """
    return -logsigmoid(chosen - rejected - margins)


def centring(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """``(chosen + rejected)^2`` ``[P]``: keeps the scores' mean at 0. arXiv:2312.09244, equation 2."""
    return (chosen + rejected) ** 2
