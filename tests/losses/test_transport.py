"""AOT taken apart: sums over any split have the value and the gradient of sorting the whole step at once."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from contrl.losses.preference import smoothed_sigmoid
from contrl.losses.transport import aot, aot_unpaired

# Distinct halves and thirds: no two equal values, so that sorting has one gradient.
VALUES = st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True)


def sorted_at_once(x: torch.Tensor, y: torch.Tensor, beta: float, smoothing: float) -> torch.Tensor:
    """The loss as one sort of both, with autograd through the sorting."""
    return smoothed_sigmoid(beta * (x.sort().values - y.sort().values), smoothing).sum()


def columns(numbers: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two columns of different values from one list, the second in another order."""
    first = torch.tensor(numbers, dtype=torch.float64) / 2
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return first.requires_grad_(), (first.detach()[order] * 0.7 + 0.1).requires_grad_()


@settings(deadline=None, max_examples=40)
@given(VALUES, st.integers(0, 99), st.sampled_from([0.0, 0.2]), st.integers(1, 8))
def test_any_split_of_aot_equals_one_sort(numbers: list[int], seed: int, smoothing: float, size: int) -> None:
    policy, reference = columns(numbers, seed)
    wanted = sorted_at_once(policy, reference.detach(), 0.3, smoothing)
    ordered = policy.detach().sort().values, reference.detach().sort().values
    found = sum((aot(part, *ordered, 0.3, smoothing).sum() for part in policy.split(size)), torch.zeros(()))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, policy), torch.autograd.grad(wanted, policy))


@settings(deadline=None, max_examples=40)
@given(VALUES, st.integers(0, 99), st.sampled_from([0.0, 0.2]), st.integers(1, 8))
def test_any_split_of_aot_unpaired_equals_one_sort(numbers: list[int], seed: int, smoothing: float, size: int) -> None:
    chosen, rejected = columns(numbers, seed)
    wanted = sorted_at_once(chosen, rejected, 0.3, smoothing)
    ordered = chosen.detach().sort().values, rejected.detach().sort().values
    parts = zip(chosen.split(size), rejected.split(size), strict=True)
    found = sum((aot_unpaired(c, r, *ordered, 0.3, smoothing).sum() for c, r in parts), torch.zeros(()))
    torch.testing.assert_close(found, wanted)
    both = (chosen, rejected)
    for mine, theirs in zip(torch.autograd.grad(found, both), torch.autograd.grad(wanted, both), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_equal_values_share_their_ranks() -> None:
    """Three policies at 1 against references 0, 2, 4: each meets all three, and the sum is the sorted one."""
    policy, reference = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([4.0, 0.0, 2.0])
    terms = aot(policy, policy, reference.sort().values, 0.5, 0.0)
    torch.testing.assert_close(terms.sum(), sorted_at_once(policy, reference, 0.5, 0.0))
    assert terms[0].item() == pytest.approx(terms[1].item())


def test_a_second_forward_that_differs_in_the_last_bit_keeps_its_rank() -> None:
    """Values observed at 1 and 2 come back at 1.0000002: the partner is still the reference of rank 0."""
    ordered = torch.tensor([1.0, 2.0])
    exact = aot(torch.tensor([1.0]), ordered, torch.tensor([-3.0, 5.0]), 0.5, 0.0)
    nearly = aot(torch.tensor([1.0000002]), ordered, torch.tensor([-3.0, 5.0]), 0.5, 0.0)
    torch.testing.assert_close(exact, nearly)
    assert exact.item() == pytest.approx(smoothed_sigmoid(torch.tensor(2.0), 0.0).item())
