"""A context as the runner makes it: three tasks of prompts, a real method and tokenizer, any stage and step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from contrl.interfaces import Context, Method, Row, Task, TaskSequence
from contrl.methods.rloo import RLOO
from contrl.models.embedded import character_tokenizer

NAMES = ("a", "b", "c", "d")
NUM_ROWS = 40


def rows(task: str, split: str, number: int) -> list[Row]:
    return [{"id": f"{split}{i}", "prompt": f"{task}{i}="} for i in range(number)]


@pytest.fixture(scope="session")
def sequence() -> TaskSequence:
    """Four tasks of 40 training and 10 evaluation rows, two rounds: stages 1 to 8."""
    tasks = [Task(name, rows(name, "train", NUM_ROWS), rows(name, "eval", 10)) for name in NAMES]
    return TaskSequence.in_order(tasks, rounds=2)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def at(sequence: TaskSequence, tokenizer: Any) -> Callable[..., Context]:
    """``at(stage, step=0, seed=0, method=, model=)``: the context of that moment."""

    def make(
        stage: int, step: int = 0, seed: int = 0, method: Method | None = None, model: nn.Module | None = None
    ) -> Context:
        return Context(
            model=model if model is not None else nn.Linear(1, 1),
            tokenizer=tokenizer,
            method=method or RLOO(),
            sequence=sequence,
            stage=sequence.stages[stage - 1],
            seed=seed,
            step=step,
        )

    return make
