"""Small builders for the methods' tests: batches from literal numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from contrl.interfaces import Batch, Completion, Group
from contrl.models.embedded import character_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``make_batch(mask, advantages=, old_logps=, weights=)``: one group of all completions, ids all 5."""

    def make(
        mask: list[list[int]],
        advantages: list[float] | None = None,
        old_logps: list[list[float]] | None = None,
        weights: list[float] | None = None,
    ) -> Batch:
        number = len(mask)
        lengths = [max(sum(row), 1) for row in mask]
        completions = [Completion([5] * length) for length in lengths]
        return Batch(
            groups=[Group("row", "task", [3, 4], completions)],
            group_index=torch.zeros(number, dtype=torch.long),
            ids=torch.full((number, len(mask[0])), 5),
            mask=torch.tensor(mask).bool(),
            weights=torch.tensor(weights or [1.0] * number),
            advantages=torch.tensor(advantages or [0.0] * number),
            old_logps=None if old_logps is None else torch.tensor(old_logps, dtype=torch.float32),
        )

    return make
