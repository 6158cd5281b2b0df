"""Generalised advantage estimation and the value loss against hand arithmetic."""

from __future__ import annotations

import pytest
import torch

from contrl.losses.values import clipped_value_loss, generalised_advantages


def test_the_case_of_the_issue() -> None:
    """Rewards 0 0 1, values .5 .4 .3, gamma 1, lambda .95.

    A_3 = 1 - .3 = .7; A_2 = (.3 - .4) + .95 x .7 = .565; A_1 = (.4 - .5) + .95 x .565 = .43675.
    """
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    advantages, returns = generalised_advantages(rewards, values, 1.0, 0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.43675, 0.565, 0.7]]))
    torch.testing.assert_close(returns, torch.tensor([[0.93675, 0.965, 1.0]]))


def test_lambda_one_is_the_discounted_return_and_zero_the_one_step_error() -> None:
    """gamma .5: returns 1 + .5 (2 + .5 x 4) = 3, 2 + 2 = 4, 4; one-step errors r + .5 V' - V."""
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, -1.0, 3.0]])
    assert generalised_advantages(rewards, values, 0.5, 1.0)[1].tolist() == [[3.0, 4.0, 4.0]]
    assert generalised_advantages(rewards, values, 0.5, 0.0)[0].tolist() == [[0.0, 4.5, 1.0]]


def test_padding_changes_nothing_and_is_zero() -> None:
    rewards, values = torch.rand(1, 4), torch.rand(1, 4)
    alone = generalised_advantages(rewards, values, 0.9, 0.8)
    behind = torch.zeros(1, 3)
    padded = generalised_advantages(torch.cat([rewards, behind], 1), torch.cat([values, behind], 1), 0.9, 0.8)
    for mine, wanted in zip(padded, alone, strict=True):
        assert torch.equal(mine[:, :4], wanted)
        assert not mine[:, 4:].any()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_is_allowed(shape: tuple[int, int]) -> None:
    advantages, returns = generalised_advantages(torch.zeros(shape), torch.zeros(shape), 1.0, 0.95)
    assert advantages.shape == returns.shape == shape


def test_no_gradient_reaches_the_values() -> None:
    values = torch.rand(1, 2, requires_grad=True)
    assert not generalised_advantages(torch.rand(1, 2), values, 1.0, 0.95)[1].requires_grad


@pytest.mark.parametrize(
    ("value", "old", "target", "term", "gradient", "clipped"),
    [
        (0.5, 0.4, 1.0, 0.125, -0.5, False),  # within .2 of the old one: (.5 - 1)^2 / 2
        (0.9, 0.4, 1.0, 0.08, 0.0, True),  # moved by .5 towards its return already: (.6 - 1)^2 / 2, no pull
        (-0.2, 0.4, 1.0, 0.72, -1.2, False),  # moved away from it: (-.2 - 1)^2 / 2, pulled back
        (0.1, 0.4, -1.0, 0.72, 0.0, True),  # below: (.2 + 1)^2 / 2
    ],
)
def test_value_loss_by_hand(
    value: float, old: float, target: float, term: float, gradient: float, clipped: bool
) -> None:
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    terms, is_clipped = clipped_value_loss(values, torch.tensor([old]).double(), torch.tensor([target]).double(), 0.2)
    (found,) = torch.autograd.grad(terms.sum(), values)
    assert terms.item() == pytest.approx(term)
    assert found.item() == pytest.approx(gradient)
    assert is_clipped.item() is clipped


def test_without_a_bound_it_is_half_the_squared_error() -> None:
    terms, is_clipped = clipped_value_loss(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0]), None)
    assert terms.tolist() == [2.0]
    assert not is_clipped.any()
