"""Advantages: the peer's numbers, their invariants, and exact zeros where nothing is to be learnt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrl.losses.advantages import from_mean, has_contrast, leave_one_out, normalised_sum, spread, whiten

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


# --- relative to the group's mean -----------------------------------------------------------------------


def test_from_mean_and_spread_by_hand() -> None:
    """[1,0,0,1]: mean .5, unbiased std sqrt(1/3); [1,-,0,1]: mean 2/3 of the three that are there."""
    assert from_mean(torch.tensor([1.0, 0.0, 0.0, 1.0])).tolist() == [0.5, -0.5, -0.5, 0.5]
    assert spread(torch.tensor([1.0, 0.0, 0.0, 1.0])) == pytest.approx((1 / 3) ** 0.5)
    missing = torch.tensor([1.0, NAN, 0.0, 1.0])
    assert from_mean(missing).tolist() == pytest.approx([1 / 3, 0.0, -2 / 3, 1 / 3])
    assert spread(missing) == pytest.approx((1 / 3) ** 0.5)


@pytest.mark.parametrize("rewards", [[0.1] * 8, [NAN, NAN, 1.0, NAN], [3.0], [NAN] * 4, [], [0.1, NAN, 0.1]])
def test_groups_without_contrast_are_exactly_zero(rewards: list[float]) -> None:
    table = torch.tensor(rewards)
    assert not has_contrast(table)
    assert from_mean(table).tolist() == [0.0] * len(rewards)
    assert spread(table) == 0.0


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12))
def test_from_mean_sums_to_zero_and_is_a_share_of_leave_one_out(values: list[float]) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    advantages = from_mean(rewards)
    assert abs(float(advantages.sum())) < 1e-9 * max(1.0, float(rewards.abs().max()))
    share = (len(values) - 1) / len(values)
    torch.testing.assert_close(advantages, leave_one_out(rewards) * share, atol=1e-9, rtol=1e-9)


# --- several rewards, whitening -------------------------------------------------------------------------


def test_each_reward_is_put_on_the_scale_of_its_group() -> None:
    """[[1,0],[0,2]], weights 1 and .5: +-.5 / (.70711 + 1e-4) and -+1 / (1.41421 + 1e-4) / 2, so +-.353."""
    found = normalised_sum(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 0.5]))
    first, second = 0.5 / (0.5**0.5 + 1e-4), 1.0 / (2.0**0.5 + 1e-4)
    assert found.tolist() == pytest.approx([first - second / 2, -first + second / 2], abs=1e-6)


def test_a_missing_score_adds_nothing_and_no_score_at_all_is_missing() -> None:
    scores = torch.tensor([[1.0, NAN], [0.0, 3.0], [NAN, NAN]])
    found = normalised_sum(scores, torch.ones(2))
    wanted = 0.5 / (0.5**0.5 + 1e-4)
    assert found[:2].tolist() == pytest.approx([wanted, -wanted])
    assert math.isnan(float(found[2]))


def test_whitening_by_hand() -> None:
    """2 and 3: mean 2.5, unbiased variance .5, so +-.5 / sqrt(.5) = +-.70711; unshifted 2.5 more."""
    values = torch.tensor([2.0, 3.0])
    assert whiten(values, 2.5, 0.5).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert whiten(values, 2.5, 0.5, shift_mean=False).tolist() == pytest.approx([2.5 - 0.5**0.5, 2.5 + 0.5**0.5])
