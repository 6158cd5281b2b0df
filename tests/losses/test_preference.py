"""Pairwise losses at points where they can be worked out, and what every one of them must do.

Fixture P: log-ratios chosen .2, -.1, rejected -.2, .25; lengths 3, 2 and 2, 3; beta .1.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from contrl.losses.preference import PAIRWISE, Pairs, length_desensitised, smoothed_sigmoid, wpo_weights


def fixture_p(**fields: Any) -> Pairs:
    chosen, rejected = torch.tensor([0.2, -0.1]), torch.tensor([-0.2, 0.25])
    lengths = torch.tensor([3.0, 2.0]), torch.tensor([2.0, 3.0])
    return Pairs(chosen, rejected, chosen, rejected, *lengths, **{"beta": 0.1, **fields})


def soft(x: float) -> float:
    return math.log1p(math.exp(-x))


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand() -> dict[str, list[float]]:
    """Every loss of the two pairs: margins .04 and -.035; per token .2/3 + .1 and -.05 - .25/3."""
    c, r, m = (0.02, -0.01), (-0.02, 0.025), (0.04, -0.035)
    per_token = (0.2 / 3 + 0.1, -0.05 - 0.25 / 3)
    e, tau = 0.1, 0.05
    return {
        "sigmoid": [soft(x) for x in m],
        "hinge": [1 - x for x in m],
        "ipo": [(x - 5) ** 2 for x in per_token],
        "exo_pair": [s(x) * (math.log(s(x)) - math.log(1 - e)) + s(-x) * (math.log(s(-x)) - math.log(e)) for x in m],
        "nca_pair": [soft(x) + soft(-x) / 2 + soft(-y) / 2 for x, y in zip(c, r, strict=True)],
        "robust": [((1 - e) * soft(x) - e * soft(-x)) / (1 - 2 * e) for x in m],
        "bco_pair": [soft(x) + soft(-y) for x, y in zip(c, r, strict=True)],
        "sppo_hard": [(0.2 - 5) ** 2 + (-0.2 + 5) ** 2, (-0.1 - 5) ** 2 + (0.25 + 5) ** 2],
        "apo_zero": [s(-x) + s(y) for x, y in zip(c, r, strict=True)],
        "apo_down": [s(x) + s(y - x) for x, y in zip(c, r, strict=True)],
        "discopop": [soft(x) * (1 - s(x / tau)) + math.exp(-x) * s(x / tau) for x in m],
        "sigmoid_norm": [soft(0.1 * x) for x in per_token],
    }


@pytest.mark.parametrize("name", PAIRWISE)
def test_every_loss_by_hand(name: str) -> None:
    found = PAIRWISE[name](fixture_p(label_smoothing=0.1))
    assert found.tolist() == pytest.approx(by_hand()[name], rel=1e-5)


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_gradient_prefers_the_chosen_answer(name: str) -> None:
    """Where the policy has the pair the wrong way round, every loss lowers the rejected answer against the chosen one.

    Only apo_down lowers both. (Near margin 0 discopop pulls the other way: its mixture has a dent there.)
    """
    chosen, rejected = torch.full((1,), -6.0, requires_grad=True), torch.full((1,), 6.0, requires_grad=True)
    pairs = Pairs(chosen, rejected, chosen, rejected, torch.ones(1), torch.ones(1), 0.1, label_smoothing=0.1)
    up, down = torch.autograd.grad(PAIRWISE[name](pairs).sum(), (chosen, rejected))
    assert down.item() > 0
    assert down.item() > up.item()
    assert (up.item() > 0) == (name == "apo_down")


def test_robust_is_unbiased() -> None:
    """With labels flipped in a share e, the mean over flips is the loss of the true label."""
    e = 0.2
    right = fixture_p(label_smoothing=e)
    wrong = Pairs(
        right.rejected,
        right.chosen,
        right.rejected_score,
        right.chosen_score,
        right.rejected_tokens,
        right.chosen_tokens,
        0.1,
        e,
    )
    mixed = (1 - e) * PAIRWISE["robust"](right) + e * PAIRWISE["robust"](wrong)
    torch.testing.assert_close(mixed, PAIRWISE["sigmoid"](right))


def test_exo_is_least_where_the_policy_has_the_smoothed_odds() -> None:
    """KL to (1 - e, e) is 0 at margin log((1 - e) / e)."""
    e = 0.1
    margin = torch.tensor([math.log((1 - e) / e)])
    pairs = Pairs(margin, 0 * margin, margin, 0 * margin, margin, margin, 1.0, label_smoothing=e)
    assert PAIRWISE["exo_pair"](pairs).item() == pytest.approx(0.0, abs=1e-6)


def test_the_reward_shift_moves_both_sides_of_bco() -> None:
    found = PAIRWISE["bco_pair"](fixture_p(reward_shift=torch.tensor(0.01)))
    assert found.tolist() == pytest.approx([soft(0.01) + soft(0.03), soft(-0.02) + soft(0.01 - 0.025)])


def test_smoothing_mixes_both_labels() -> None:
    found = smoothed_sigmoid(torch.tensor([0.3, -2.0]), 0.25)
    assert found.tolist() == pytest.approx([0.75 * soft(0.3) + 0.25 * soft(-0.3), 0.75 * soft(-2) + 0.25 * soft(2)])


# --- sequence log-probabilities --------------------------------------------------------------------------


def test_ld_counts_the_tail_in_part() -> None:
    """Lengths 3 and 2: the third token of the chosen side, -4, counts a quarter. Untrained positions count for none."""
    logps = torch.tensor([[[-1.0, -2.0, 0.0, -4.0], [-8.0, -16.0, 0.0, 0.0]]])
    mask = torch.tensor([[[1, 1, 0, 1], [1, 1, 0, 0]]]).bool()
    assert length_desensitised(logps, mask, 0.25).tolist() == [[-4.0, -24.0]]
    assert length_desensitised(logps, mask, None).tolist() == [[-7.0, -24.0]]
    assert length_desensitised(logps, mask, 1.0).tolist() == [[-7.0, -24.0]]
    assert length_desensitised(logps, mask, 0.0).tolist() == [[-3.0, -24.0]]


def test_wpo_weighs_by_the_policys_own_taste() -> None:
    """Means of log p - log sum p^2: (-1 + 1 - 3 + 1) / 2 = -1 and -2 + .5 = -1.5, so e^-2.5; without gradient."""
    logps = torch.tensor([[[-1.0, -3.0], [-2.0, 0.0]]], requires_grad=True)
    log_sum_p2 = torch.tensor([[[-1.0, -1.0], [-0.5, -9.0]]])
    mask = torch.tensor([[[1, 1], [1, 0]]]).bool()
    found = wpo_weights(logps, log_sum_p2, mask)
    assert found.tolist() == pytest.approx([math.exp(-2.5)])
    assert not found.requires_grad
