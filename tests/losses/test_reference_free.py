"""CPO's, SimPO's, AlphaPO's and ORPO's terms by hand, with TRL 1.16's values for the sums of fixture P."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from contrl.losses.reference_free import alpha_reward, contrastive, log_odds_ratio, odds_ratio_loss

CHOSEN, REJECTED = torch.tensor([-1.0, -1.5]), torch.tensor([-2.0, -1.25])


@pytest.mark.parametrize(
    ("kind", "fields", "alpha", "mean"),
    [
        ("sigmoid", {}, 0.0, 0.675061),
        ("sigmoid", {"label_smoothing": 0.1}, 0.0, 0.678811),
        ("hinge", {}, 0.0, 0.9625),
        ("ipo", {}, 0.0, 21.78125),
        ("simpo", {"gamma": 0.5}, 0.0, 0.951364),
        ("simpo", {"gamma": 0.5}, 0.25, 0.940987),
    ],
)
def test_known_means_of_fixture_p(kind: str, fields: dict[str, Any], alpha: float, mean: float) -> None:
    """Differences 1 and -.25 at beta .1: ipo (1 - 5)^2 = 16 and (-.25 - 5)^2 = 27.5625, and so on."""
    difference = alpha_reward(CHOSEN, alpha) - alpha_reward(REJECTED, alpha)
    assert contrastive(difference, kind, 0.1, **fields).mean().item() == pytest.approx(mean, abs=1e-5)


def test_the_target_margin_raises_the_loss_of_simpo_alone() -> None:
    """beta 2 on difference 1, gamma .5: -log s(1.5); the sigmoid loss does not know gamma."""
    one = torch.ones(1)
    assert contrastive(one, "simpo", 2.0, gamma=0.5).item() == pytest.approx(math.log1p(math.exp(-1.5)))
    assert contrastive(one, "sigmoid", 2.0, gamma=0.5).item() == pytest.approx(math.log1p(math.exp(-2)))


@pytest.mark.parametrize("alpha", [0.25, -0.5])
def test_alpha_reward(alpha: float) -> None:
    """(1 - p^-alpha) / alpha; its limit at 0 is log p, and a small p does not vanish first."""
    p = torch.tensor([0.5, 0.01], dtype=torch.float64)
    torch.testing.assert_close(alpha_reward(p.log(), alpha), (1 - p**-alpha) / alpha)
    torch.testing.assert_close(alpha_reward(p.log(), alpha * 1e-9), p.log())
    assert alpha_reward(torch.tensor(-200.0), 0.25).isfinite()


def test_odds_by_hand() -> None:
    """p = .5 has odds 1, p = .25 a third: the log ratio is log 3, and the loss -log s(log 3) = log(4/3)."""
    odds = log_odds_ratio(torch.tensor(0.5).log(), torch.tensor(0.25).log())
    assert odds.item() == pytest.approx(math.log(3), rel=1e-6)
    assert odds_ratio_loss(odds).item() == pytest.approx(math.log(4 / 3), rel=1e-6)


def test_odds_of_near_certainty_and_of_near_impossibility_are_exact() -> None:
    """1 - e^-.001 = .0009995; at log p = -30 the odds are p itself."""
    found = log_odds_ratio(torch.tensor(-1e-3), torch.tensor(-30.0))
    assert found.item() == pytest.approx(-1e-3 - math.log(-math.expm1(-1e-3)) + 30, rel=1e-5)
