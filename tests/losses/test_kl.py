"""KL estimators against hand arithmetic and against the KL itself; the controller's update."""

from __future__ import annotations

import math

import pytest
import torch

from contrl.losses.kl import KLEstimator, adapted_coef, kl_estimate


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        # d = logp - reference_logp = .5 and -.25
        ("k1", [0.5, -0.25]),
        ("k2", [0.125, 0.03125]),
        ("k3", [math.exp(-0.5) - 1 + 0.5, math.exp(0.25) - 1 - 0.25]),  # .106531, .034025
    ],
)
def test_by_hand(estimator: KLEstimator, wanted: list[float]) -> None:
    """The policy gives the first token more than the reference does: k1 is positive there."""
    logps, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.75])
    assert kl_estimate(logps, reference, estimator).tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_for_policy_against_reference_and_not_the_other_way(estimator: KLEstimator) -> None:
    """The exact mean under p = (.7, .2, .1) is KL(p || q) = .1838, q = (.4, .4, .2), and not KL(q || p) = .1920."""
    p, q = (torch.tensor(row, dtype=torch.float64) for row in ([0.7, 0.2, 0.1], [0.4, 0.4, 0.2]))
    mean = (p * kl_estimate(p.log(), q.log(), estimator)).sum().item()
    forward, backward = (p * (p / q).log()).sum().item(), (q * (q / p).log()).sum().item()
    assert abs(forward - backward) > 5e-3
    assert mean == pytest.approx(forward, abs=1e-12)


def test_k2_is_biased_and_never_negative() -> None:
    d = torch.linspace(-3, 3, 13, dtype=torch.float64)
    for estimator in ("k2", "k3"):
        values = kl_estimate(d, torch.zeros_like(d), estimator)
        assert (values >= 0).all()
        assert values[6] == 0
    assert not torch.allclose(kl_estimate(d, torch.zeros_like(d), "k2"), kl_estimate(d, torch.zeros_like(d), "k3"))


def test_k3_keeps_small_differences() -> None:
    """Near 0 it is d^2 / 2; exp(-d) - 1 + d in float32 would be 0 or rounding error."""
    d = torch.tensor([1e-3, 1e-2])
    assert kl_estimate(d, torch.zeros(2), "k3").tolist() == pytest.approx([5e-7, 5e-5], rel=1e-2)


def test_masked_tokens_are_zero_with_zero_gradient() -> None:
    logps = torch.tensor([-1.0, -500.0], requires_grad=True)
    kl = kl_estimate(logps, torch.zeros(2), "k3", torch.tensor([True, False]))
    (gradient,) = torch.autograd.grad(kl.sum(), logps)
    assert kl[1] == 0
    assert gradient[1] == 0
    assert gradient[0] != 0


@pytest.mark.parametrize(
    ("kl", "wanted"),
    [
        (6.0, 0.1),  # on target: unchanged
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),
        (60.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # the error is clipped at .2
        (0.0, 0.1 * (1 - 0.2 * 64 / 1000)),
    ],
)
def test_the_coefficient_rises_above_the_target_and_falls_below(kl: float, wanted: float) -> None:
    assert adapted_coef(0.1, kl, target=6.0, num_completions=64, horizon=1000) == pytest.approx(wanted)
