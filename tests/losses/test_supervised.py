"""Supervised terms against torch's own cross-entropy, and the two worked cases of dynamic fine-tuning."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import cross_entropy

from contrl.losses.supervised import dynamic_fine_tuning, negative_log_likelihood

MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]]).bool()


def scored() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits ``[2, 4, 7]``, targets ``[2, 4]`` and the targets' log-probabilities, attached to the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(7, (2, 4), generator=generator)
    logps = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    return logits, targets, logps


def test_nll_equals_cross_entropy_in_value_and_gradient() -> None:
    """torch's ignore_index -100 for the same tokens that the mask leaves out."""
    logits, targets, logps = scored()
    mine = negative_log_likelihood(logps, MASK)
    labels = targets.masked_fill(~MASK, -100)
    wanted = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, 4)
    torch.testing.assert_close(mine, wanted)
    (gradient,) = torch.autograd.grad(mine.sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), logits)[0])
    assert gradient[~MASK].abs().sum() == 0


def test_dft_with_equal_logits_over_two_tokens_is_half_the_cross_entropy() -> None:
    """p = 1/2 everywhere, so -p log p = 1/2 * -log p; the weight carries no gradient."""
    logits = torch.zeros(2, 4, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0]])
    logps = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    dft, nll = dynamic_fine_tuning(logps, MASK), negative_log_likelihood(logps, MASK)
    torch.testing.assert_close(dft, nll / 2)
    assert dft[0, 0].item() == 0.5 * math.log(2)
    (dft_gradient,) = torch.autograd.grad(dft.sum(), logits, retain_graph=True)
    torch.testing.assert_close(dft_gradient, torch.autograd.grad(nll.sum(), logits)[0] / 2)


def test_dft_weights_each_token_by_its_own_probability() -> None:
    """In log-probabilities the gradient of -sg(p) log p is -p: rare tokens are hardly pulled up."""
    logps = torch.tensor([[0.9, 0.5, 0.01, 0.3]] * 2, dtype=torch.float64).log().requires_grad_()
    terms = dynamic_fine_tuning(logps, MASK)
    (gradient,) = torch.autograd.grad(terms.sum(), logps)
    torch.testing.assert_close(gradient, -logps.detach().exp() * MASK)
    torch.testing.assert_close(terms.detach(), (-logps.exp() * logps).detach() * MASK)
