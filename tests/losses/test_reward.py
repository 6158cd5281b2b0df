"""Bradley-Terry and centring by hand."""

from __future__ import annotations

import math

import pytest
import torch

from contrl.losses.reward import bradley_terry, centring

CHOSEN, REJECTED = torch.tensor([1.0, 0.5]), torch.tensor([0.2, 0.8])


def soft(x: float) -> float:
    return math.log1p(math.exp(-x))


def test_terms_and_margins() -> None:
    """Differences .8 and -.3; margins .5 and 0 leave .3 and -.3."""
    assert bradley_terry(CHOSEN, REJECTED).tolist() == pytest.approx([soft(0.8), soft(-0.3)])
    found = bradley_terry(CHOSEN, REJECTED, torch.tensor([0.5, 0.0]))
    assert found.tolist() == pytest.approx([soft(0.3), soft(-0.3)])


def test_only_the_difference_counts_and_the_centre_is_held_by_the_sum() -> None:
    torch.testing.assert_close(bradley_terry(CHOSEN + 5, REJECTED + 5), bradley_terry(CHOSEN, REJECTED))
    assert centring(CHOSEN, REJECTED).tolist() == pytest.approx([1.44, 1.69])
