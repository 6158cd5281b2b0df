"""The clipped surrogate: values, where its gradient stops, and REINFORCE at ratio 1; the ratios it is given."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrl.losses.policy import clipped_surrogate, sequence_correction, sequence_log_ratio, token_log_ratio


def surrogate(ratio: float, advantage: float, **bounds: float | None) -> tuple[float, float, str]:
    """Term, gradient in the log-ratio, and which bound stopped it ("low", "high" or "")."""
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found = clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.2, **bounds)
    (gradient,) = torch.autograd.grad(found.terms.sum(), log_ratio)
    assert found.ratio.item() == pytest.approx(ratio)
    return found.terms.item(), gradient.item(), "low" * found.is_low.item() + "high" * found.is_high.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "term", "stopped"),
    [
        (1.1, 2.0, -2.2, ""),  # inside the interval
        (1.5, 2.0, -2.4, "high"),  # good and already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, ""),  # good but less likely than before: pulled back
        (0.5, -1.0, 0.8, "low"),  # bad and already unlikelier: clipped at 0.8
        (1.5, -1.0, 1.5, ""),  # bad but likelier than before: pulled back
        (1.5, 0.0, 0.0, ""),
    ],
)
def test_values_and_where_the_gradient_stops(ratio: float, advantage: float, term: float, stopped: str) -> None:
    """-min(r A, clip(r, .8, 1.2) A); its gradient in log r is -r A, or 0 where the clip decides."""
    found, gradient, bound = surrogate(ratio, advantage)
    assert found == pytest.approx(term)
    assert gradient == pytest.approx(0.0 if stopped else -ratio * advantage)
    assert bound == stopped


@pytest.mark.parametrize(
    ("ratio", "advantage", "bounds", "term", "stopped"),
    [
        (1.25, 1.0, {"clip_high": 0.28}, -1.25, ""),  # the wider upper bound alone lets it go on
        (1.5, 1.0, {"clip_high": 0.28}, -1.28, "high"),
        (0.5, -1.0, {"clip_high": 0.28}, 0.8, "low"),  # the lower bound is still clip
        (3.0, -1.0, {"delta": 2.0}, 2.0, ""),  # a bad token that became likelier: the term is bounded
        (1.15, 1.0, {"delta": 1.1}, -1.1, ""),  # delta below 1 + clip: TRL counts none as clipped
    ],
)
def test_wider_and_two_sided_bounds(
    ratio: float, advantage: float, bounds: dict[str, float], term: float, stopped: str
) -> None:
    found, _, bound = surrogate(ratio, advantage, **bounds)
    assert found == pytest.approx(term)
    assert bound == stopped


def test_delta_stops_the_gradient_of_bad_tokens() -> None:
    assert surrogate(3.0, -1.0, delta=2.0)[1] == 0
    assert surrogate(3.0, -1.0)[1] == pytest.approx(3.0)


def test_at_ratio_one_the_gradient_is_reinforce() -> None:
    """Without old log-probabilities the ratio is exactly 1 and d term / d logp = -A at every trained token."""
    logps = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    advantages = torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64)
    log_ratio = token_log_ratio(logps, None, mask).sum(-1)
    found = clipped_surrogate(log_ratio, advantages, 0.2)
    (gradient,) = torch.autograd.grad(found.terms.sum(), logps)
    assert torch.equal(gradient, -advantages[:, None] * mask)
    assert torch.equal(found.terms.detach(), -advantages)
    assert not (found.is_low | found.is_high).any()


@pytest.mark.parametrize("kind", ["sum", "mean", "token"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    old, logps = (torch.randn(2, 3, dtype=torch.float64) * 0.1 for _ in range(2))
    advantages = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def loss(values: torch.Tensor) -> torch.Tensor:
        log_ratio = token_log_ratio(values, old, mask)
        if kind == "token":
            return (clipped_surrogate(log_ratio, advantages[:, None], 0.2).terms * mask).sum()
        log_ratio = log_ratio.sum(-1) if kind == "sum" else sequence_log_ratio(log_ratio, mask)
        return clipped_surrogate(log_ratio, advantages, 0.2).terms.sum()

    assert torch.autograd.gradcheck(loss, (logps.requires_grad_(),))


@given(st.floats(-5, 5), st.integers(0, 3))
def test_padding_takes_no_part(value: float, columns: int) -> None:
    """Whatever stands behind the mask, also in further columns, neither ratio nor gradient sees it."""
    logps, old = (torch.tensor([row], dtype=torch.float64) for row in ([-0.5, -1.0, -0.2], [-0.6, -0.9, -0.2]))
    behind = torch.full((1, columns), value, dtype=torch.float64)
    padded = torch.cat([logps, behind], 1).requires_grad_()
    mask = torch.cat([torch.ones(1, 3), torch.zeros(1, columns)], 1).bool()
    log_ratio = token_log_ratio(padded, torch.cat([old, -behind], 1), mask)
    assert torch.equal(log_ratio[:, :3].detach(), logps - old)
    assert sequence_log_ratio(log_ratio, mask).item() == pytest.approx(0.0)
    (gradient,) = torch.autograd.grad(log_ratio.exp().sum(), padded)
    assert gradient[:, 3:].abs().sum() == 0


def test_the_sequence_ratio_is_the_mean_over_trained_tokens() -> None:
    """(.2 - .1 + 0) / 3 and .6 / 2; a completion without a trained token has ratio 1."""
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]]).bool()
    logps = torch.tensor([[0.2, -0.1, 0.0], [9.0, 0.6, 0.0], [5.0, 5.0, 5.0]])
    log_ratio = token_log_ratio(logps, torch.zeros(3, 3), mask)
    assert sequence_log_ratio(log_ratio, mask).tolist() == pytest.approx([0.1 / 3, 0.3, 0.0])


def test_the_importance_weight_of_a_completion_is_the_capped_product() -> None:
    """2 x .5 x .5 = .5; 2 x 2 = 4, capped at 3; what is masked takes no part; weight 0 stays 0 and finite."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    weights = torch.tensor([[2.0, 0.5, 0.5], [2.0, 2.0, 7.0], [5.0, 5.0, 5.0], [0.0, 1.0, 1.0]])
    assert sequence_correction(weights, mask, 3.0).tolist() == pytest.approx([0.5, 3.0, 1.0, 0.0])
