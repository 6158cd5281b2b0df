"""Borrowing a model: what is switched while a block runs is back, module by module, when it ends.

``model.train(was_training)`` would put every module into one mode and so wake the dropout of parts that were in
eval mode on purpose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout) while open; afterwards every module has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def unchanged_training(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, afterwards the same parameters are trained (peft switches them with its adapters)."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad = requires_grad
