"""KTO's terms by hand: which side of the reference point, which sign of the gradient."""

from __future__ import annotations

import math

import pytest
import torch

from contrl.losses.unpaired import apo_zero_unpaired, kto


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_terms_by_hand() -> None:
    """r = .6 and -.2 around kl = .1, beta 2: 1 - s(1) for the desirable, 1 - s(.6) for the undesirable one."""
    found = kto(torch.tensor([0.6, -0.2]), torch.tensor([True, False]), 2.0, torch.tensor(0.1))
    assert found.tolist() == pytest.approx([1 - s(1.0), 1 - s(0.6)])


def test_apo_has_its_reference_point_at_zero() -> None:
    found = apo_zero_unpaired(torch.tensor([0.6, -0.2]), torch.tensor([True, False]), 2.0)
    assert found.tolist() == pytest.approx([1 - s(1.2), s(-0.4)])


def test_desirable_answers_are_pulled_up_and_others_down() -> None:
    """At r = kl the slope is beta / 4 either way; the reference point itself has none."""
    ratio, kl = torch.full((2,), 0.1, requires_grad=True), torch.tensor(0.1)
    (gradient,) = torch.autograd.grad(kto(ratio, torch.tensor([True, False]), 2.0, kl).sum(), ratio)
    assert gradient.tolist() == pytest.approx([-0.5, 0.5])
