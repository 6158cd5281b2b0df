"""A borrowed model comes back as it was, module by module and parameter by parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contrl.models.modes import evaluating, unchanged_training


def network() -> nn.Sequential:
    """In train mode, but for a second layer that was put into eval mode on purpose."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.9), nn.Linear(2, 2))
    model.train()[1].eval()
    return model


def test_eval_mode_inside_and_every_modules_own_mode_afterwards() -> None:
    model = network()
    with evaluating(model):
        assert [module.training for module in model.modules()] == [False] * 4
        assert torch.equal(model[:2](torch.ones(100)), torch.ones(100))
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_also_after_an_exception() -> None:
    model = network()

    def freeze_and_fail() -> None:
        model.requires_grad_(False)
        raise KeyError

    with pytest.raises(KeyError), evaluating(model), unchanged_training(model):
        freeze_and_fail()
    assert model.training
    assert model[2].weight.requires_grad


def test_what_was_frozen_stays_frozen() -> None:
    model = network()
    model[2].bias.requires_grad = False
    with unchanged_training(model):
        model.requires_grad_(True)
    assert [p.requires_grad for p in model.parameters()] == [True, False]
