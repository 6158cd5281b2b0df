"""The clipped surrogate on whole completions: values, where its gradient stops, and REINFORCE at ratio 1."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrl.losses.policy import clipped_sequence_surrogate


def surrogate(log_ratio: float, advantage: float, clip: float = 0.2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Term, clipped flag and gradient in the two log-probabilities of one completion with this log ratio."""
    old = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    logps = torch.tensor([[-1.0 + log_ratio, -2.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    terms, clipped = clipped_sequence_surrogate(logps, old, mask, torch.tensor([advantage]).double(), clip)
    terms.sum().backward()
    assert logps.grad is not None
    return terms.detach(), clipped, logps.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "term", "stopped"),
    [
        (1.1, 2.0, -2.2, False),  # inside the interval
        (1.5, 2.0, -2.4, True),  # good and already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, False),  # good but less likely than before: pulled back
        (0.5, -1.0, 0.8, True),  # bad and already unlikelier: clipped at 0.8
        (1.5, -1.0, 1.5, False),  # bad but likelier than before: pulled back
    ],
)
def test_values_and_where_the_gradient_stops(ratio: float, advantage: float, term: float, stopped: bool) -> None:
    """-min(r A, clip(r, .8, 1.2) A); its gradient in each token is -r A, or 0 where the clip decides."""
    terms, clipped, gradient = surrogate(math.log(ratio), advantage)
    assert terms.item() == pytest.approx(term)
    assert clipped.item() is stopped
    wanted = 0.0 if stopped else -ratio * advantage
    assert gradient.tolist() == [[pytest.approx(wanted), pytest.approx(wanted)]]


def test_at_ratio_one_the_gradient_is_reinforce() -> None:
    """d(-A exp(sum)/exp(sum)) / d logp = -A, for every token of the completion, with no effect of the clip."""
    logps = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    advantages = torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64)
    terms, clipped = clipped_sequence_surrogate(logps, logps.detach(), mask, advantages, 0.2)
    (gradient,) = torch.autograd.grad(terms.sum(), logps)
    assert torch.equal(gradient, -advantages[:, None] * mask)
    assert torch.equal(terms.detach(), -advantages)
    assert not clipped.any()


@given(st.floats(-5, 5), st.integers(0, 3))
def test_padding_takes_no_part(value: float, columns: int) -> None:
    """Whatever stands behind the mask, also in further columns, neither term nor gradient sees it."""
    logps = torch.tensor([[-0.5, -1.0, -0.2]], dtype=torch.float64)
    old = torch.tensor([[-0.6, -0.9, -0.2]], dtype=torch.float64)
    wanted, _ = clipped_sequence_surrogate(logps, old, torch.ones(1, 3).bool(), torch.ones(1).double(), 0.2)
    behind = torch.full((1, columns), value, dtype=torch.float64)
    padded = torch.cat([logps, behind], 1).requires_grad_()
    mask = torch.cat([torch.ones(1, 3), torch.zeros(1, columns)], 1).bool()
    terms, _ = clipped_sequence_surrogate(padded, torch.cat([old, -behind], 1), mask, torch.ones(1).double(), 0.2)
    (gradient,) = torch.autograd.grad(terms.sum(), padded)
    assert torch.equal(terms.detach(), wanted)
    assert gradient[:, 3:].abs().sum() == 0
