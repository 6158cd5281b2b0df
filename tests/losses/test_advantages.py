"""Leave-one-out advantages: the peer's numbers, their invariants, and exact zeros where nothing is to be learnt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrl.losses.advantages import leave_one_out

NAN = float("nan")
GOLDEN = Path(__file__).parents[1] / "golden" / "rloo-trl-1.16.0.json"


def test_one_and_zero_by_hand() -> None:
    """[1,0,0,1]: 1 - (0+0+1)/3 = 2/3, 0 - (1+0+1)/3 = -2/3."""
    advantages = leave_one_out(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(advantages, torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3]))
    assert abs(float(advantages.sum())) < 1e-6


def test_a_missing_reward_takes_no_part() -> None:
    """[1,-,0,1]: 1 - (0+1)/2 = .5; missing = 0; 0 - (1+1)/2 = -1; .5."""
    assert leave_one_out(torch.tensor([1.0, NAN, 0.0, 1.0])).tolist() == [0.5, 0.0, -1.0, 0.5]


def test_equal_to_trl() -> None:
    with open(GOLDEN, encoding="utf-8") as file:
        record = json.load(file)["advantages"]
    for rewards, wanted in zip(record["rewards"], record["advantages"], strict=True):
        mine = leave_one_out(torch.tensor([NAN if r is None else float(r) for r in rewards]))
        torch.testing.assert_close(mine, torch.tensor(wanted), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "rewards", [[0.1] * 8, [0.7] * 3, [2.0, 2.0], [NAN, NAN, 1.0, NAN], [3.0], [NAN] * 4, [0.1, NAN, 0.1, 0.1]]
)
def test_nothing_to_compare_teaches_exactly_nothing(rewards: list[float]) -> None:
    """Exactly 0, not 1e-9: (8 x 0.1 - 0.1) / 7 is not 0.1 in float32, and a tiny advantage would move weights."""
    assert leave_one_out(torch.tensor(rewards)).tolist() == [0.0] * len(rewards)


def test_the_plain_formula_would_not_be_exactly_zero() -> None:
    """Why equal rewards are a case of their own."""
    rewards = torch.full((8,), 0.1)
    assert (rewards - (rewards.sum() - rewards) / 7).abs().max() > 0


@given(st.lists(st.one_of(st.none(), st.floats(-100, 100, width=32)), min_size=1, max_size=12))
def test_invariants(values: list[float | None]) -> None:
    """They sum to 0, are K/(K-1) times the distance from the mean, and missing ones are 0."""
    rewards = torch.tensor([NAN if value is None else value for value in values], dtype=torch.float64)
    advantages = leave_one_out(rewards)
    known = [value for value in values if value is not None]
    assert abs(float(advantages.sum())) < 1e-9 * max(1.0, max(map(abs, known), default=0.0))
    for value, advantage in zip(values, advantages.tolist(), strict=True):
        if value is None or len(known) < 2:
            assert advantage == 0
        else:
            mean = math.fsum(known) / len(known)
            assert advantage == pytest.approx((value - mean) * len(known) / (len(known) - 1), abs=1e-9)
