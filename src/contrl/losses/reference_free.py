"""Preference losses that need no reference (CPO, SimPO, AlphaPO, ORPO): one term per pair, not reduced."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from contrl.losses.preference import smoothed_sigmoid


def alpha_reward(logps: torch.Tensor, alpha: float) -> torch.Tensor:
    """``(1 - p^-alpha) / alpha``, the reward that AlphaPO puts in the place of log p; alpha 0 is log p itself.

    arXiv:2501.03884. Written with expm1, so that a small p does not become 0 first.

    Args:
        logps: log p of each completion, any shape.
        alpha: above 0 rewards low probabilities less, below 0 more.
    """
    return logps if alpha == 0 else -torch.expm1(-alpha * logps) / alpha


def contrastive(
    difference: torch.Tensor, kind: str, beta: float, label_smoothing: float = 0.0, gamma: float = 0.0
) -> torch.Tensor:
    """CPO's preference term ``[P]``; equal to TRL 1.16's ``cpo_loss`` before its mean.

    ``sigmoid`` is CPO, arXiv:2401.08417, equation 3; ``simpo`` subtracts the target margin ``gamma``,
    arXiv:2405.14734, equation 6; ``hinge`` is SLiC's, ``ipo`` arXiv:2310.12036, equation 17.

    Args:
        difference: ``[P]`` reward of the chosen minus that of the rejected completion, not yet times beta.
        kind: sigmoid, simpo, hinge or ipo.
        beta, label_smoothing: as in DPO; hinge and ipo have no smoothing.
        gamma: SimPO's target margin, in units of beta times the difference.
    """
    if kind == "hinge":
        return torch.relu(1 - beta * difference)
    if kind == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    return smoothed_sigmoid(beta * difference - (gamma if kind == "simpo" else 0.0), label_smoothing)


def log_odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Log of odds(chosen) / odds(rejected) ``[P]``, with odds(p) = p / (1 - p).

    ORPO, arXiv:2403.07691, equations 4 and 7. A completion that is certain has infinite odds; its mean
    log-probability is held at -1e-6 here, where TRL 1.16 gets NaN.

    Args:
        chosen, rejected: ``[P]`` mean log-probability of a completion's tokens.
    """
    return _log_odds(chosen) - _log_odds(rejected)


def odds_ratio_loss(log_odds: torch.Tensor) -> torch.Tensor:
    """``-log s(log odds ratio)`` ``[P]``: ORPO's penalty, arXiv:2403.07691, equation 7."""
    return -logsigmoid(log_odds)


def _log_odds(logps: torch.Tensor) -> torch.Tensor:
    logps = logps.clamp(max=-1e-6)
    return logps - torch.log(-torch.expm1(logps))
