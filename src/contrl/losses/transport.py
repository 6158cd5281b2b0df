"""Preference losses by optimal transport (AOT, arXiv:2406.05882): sorted values are compared, not pairs.

Sorting couples all pairs of a step. Each term here takes its partner from order statistics of the *whole* step,
detached; the sum of the terms over any split into passes has the value and the gradient of the unsplit loss.
"""

from __future__ import annotations

import torch

from contrl.losses.preference import smoothed_sigmoid


def _share_of_rank(values: torch.Tensor, ordered: torch.Tensor) -> torch.Tensor:
    """``[P, R]``, rows sum to 1: the rank each value holds in the step, shared equally between equal values.

    The nearest observed value is taken, not an equal one: a second forward need not repeat the first to the last bit.
    """
    distance = (values.detach()[:, None] - ordered[None, :]).abs()
    nearest = distance == distance.amin(1, keepdim=True)
    return nearest / nearest.sum(1, keepdim=True)


def aot(
    policy: torch.Tensor, ordered_policy: torch.Tensor, ordered_reference: torch.Tensor, beta: float, smoothing: float
) -> torch.Tensor:
    """Each pair's log-ratio against the reference's log-ratio of the same rank ``[P]``.

    The paired form; TRL 1.16 sorts one micro-batch, this the optimizer step.

    Args:
        policy: ``[P]`` log p(chosen) - log p(rejected) of the policy.
        ordered_policy: ``[R]`` the same of all pairs of the step, sorted.
        ordered_reference: ``[R]`` that of the reference, sorted.
        beta, smoothing: as in DPO.
    """
    terms = smoothed_sigmoid(beta * (policy[:, None] - ordered_reference[None, :]), smoothing)
    return (_share_of_rank(policy, ordered_policy) * terms).sum(1)


def aot_unpaired(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ordered_chosen: torch.Tensor,
    ordered_rejected: torch.Tensor,
    beta: float,
    smoothing: float,
) -> torch.Tensor:
    """The chosen answers' log-ratios against the rejected ones' of the same rank ``[P]``.

    The unpaired form. Both sides carry a gradient: the chosen value against its detached
    partner gives the value and its own gradient, the rejected one against its own partner only the gradient.

    Args:
        chosen, rejected: ``[P]`` log-ratios of policy to reference.
        ordered_chosen, ordered_rejected: ``[R]`` those of all pairs of the step, sorted.
        beta, smoothing: as in DPO.
    """
    upper = smoothed_sigmoid(beta * (chosen[:, None] - ordered_rejected[None, :]), smoothing)
    upper = (_share_of_rank(chosen, ordered_chosen) * upper).sum(1)
    lower = smoothed_sigmoid(beta * (ordered_chosen[None, :] - rejected[:, None]), smoothing)
    lower = (_share_of_rank(rejected, ordered_rejected) * lower).sum(1)
    return upper + lower - lower.detach()
