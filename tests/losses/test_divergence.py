"""Scores under an f-divergence: values by hand, slopes by the theory, every precision."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from contrl.losses.divergence import Divergence, divergence_score

LOG_RATIO = torch.tensor([-2.0, -0.1, 0.0, 0.2, 3.0], dtype=torch.float64)


def test_values_at_a_ratio_of_two() -> None:
    """u = 2: log 2; 1 - 1/2; log(4/3); (2^-.5 - 1) / -.5."""
    log_ratio = torch.tensor([math.log(2)], dtype=torch.float64)
    found = {kind: divergence_score(log_ratio, kind).item() for kind in get_args(Divergence)}
    assert found == pytest.approx(
        {
            "reverse_kl": math.log(2),
            "forward_kl": 0.5,
            "js_divergence": math.log(4 / 3),
            "alpha_divergence": 2 * (1 - 2**-0.5),
        }
    )


@pytest.mark.parametrize("kind", get_args(Divergence))
def test_every_score_is_zero_and_rises_where_policy_and_reference_agree(kind: Divergence) -> None:
    """f'(1) = 0, and f is convex, so the score rises with the ratio everywhere."""
    assert divergence_score(torch.zeros(1), kind).item() == pytest.approx(0.0, abs=1e-7)
    assert (divergence_score(LOG_RATIO, kind).diff() > 0).all()


@pytest.mark.parametrize(("alpha", "tolerance"), [(1.0, 0.0), (1 + 1e-4, 1e-3)])
def test_alpha_one_is_reverse_kl(alpha: float, tolerance: float) -> None:
    found = divergence_score(LOG_RATIO, "alpha_divergence", alpha)
    torch.testing.assert_close(found, LOG_RATIO, atol=tolerance, rtol=0)


def test_alpha_zero_is_forward_kl() -> None:
    """(u^-1 - 1) / -1 = 1 - 1/u."""
    torch.testing.assert_close(
        divergence_score(LOG_RATIO, "alpha_divergence", 0.0), divergence_score(LOG_RATIO, "forward_kl")
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_huge_ratios_stay_finite(dtype: torch.dtype) -> None:
    """TRL 1.16 raises KeyError for float64. alpha .5 of a tiny ratio would leave the type."""
    log_ratio = torch.tensor([-5000.0, 0.25], dtype=dtype)
    found = divergence_score(log_ratio, "alpha_divergence", 0.5)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert found[1].item() == pytest.approx(2 * (1 - math.exp(-0.125)), rel=2e-2)
