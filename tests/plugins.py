"""What a user might write beside the package: the plugins of the test runs, named by import path in their files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from contrl.interfaces import Batch, Context, Group, LossOutput, Outputs, Strategy, Task

# --- rewards ------------------------------------------------------------------------------------------


def digits(*, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    """Share of digits, and a little for length: a model without any training already earns different rewards."""
    return [sum(letter.isdigit() for letter in text) / 6 + len(text) / 100 for text in completions]


def nothing(*, completions: list[str], **columns: list[Any]) -> list[None]:
    """Does not apply to anything."""
    return [None] * len(completions)


calls = 0
"""How often ``digits_asking_to_stop`` was called in this process."""


def digits_asking_to_stop(**columns: Any) -> list[float]:
    """``digits``; call number ``$ASK_AT`` sends this process ``$ASK_BY`` (15 or 2), as a scheduler or Ctrl-C would.

    Once only: the file ``asked`` in the working directory remembers it.
    """
    global calls
    calls += 1
    if str(calls) == os.environ.get("ASK_AT") and not Path("asked").exists():
        Path("asked").touch()
        os.kill(os.getpid(), int(os.environ["ASK_BY"]))
    return digits(**columns)


# --- strategies ---------------------------------------------------------------------------------------


def weights_hash(model: torch.nn.Module) -> float:
    """A number that changes when any trainable weight does: a sum with different factors for every entry."""
    total = 0.0
    for parameter in model.parameters():
        if parameter.requires_grad:
            flat = parameter.detach().double().flatten()
            total = total * 0.5 + float((flat * torch.arange(1, len(flat) + 1, dtype=torch.float64)).sum())
    return total


@dataclass
class Diary(Strategy):
    """Changes nothing, writes down what it sees: the weights at the borders of a stage, the rows of every step."""

    name = "diary"

    file: str = "diary.jsonl"

    def _note(self, **facts: Any) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def before_task(self, ctx: Context) -> None:
        self._note(event="start", stage=ctx.stage.index, weights=weights_hash(ctx.model))

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        rows = {kind: [f"{g.task}/{g.row_id}" for g in groups if g.is_replay == kind] for kind in (False, True)}
        self._note(event="step", stage=ctx.stage.index, step=ctx.step, current=rows[False], replayed=rows[True])
        return {}

    def after_task(self, ctx: Context) -> None:
        self._note(event="end", stage=ctx.stage.index, weights=weights_hash(ctx.model))


@dataclass
class Average(Strategy):
    """A moving average of the weights, and how often it moved: state of tensors and numbers, within a stage too."""

    name = "average"

    decay: float = 0.9
    average: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    moves: int = field(default=0, init=False)

    def after_step(self, ctx: Context) -> None:
        self.moves += 1
        for name, parameter in ctx.params():
            new = parameter.detach().clone()
            old = self.average.get(name, new)
            self.average[name] = self.decay * old + (1 - self.decay) * new

    def state_dict(self) -> dict[str, Any]:
        return {"average": dict(self.average), "moves": self.moves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.moves = dict(state.get("average", {})), int(state.get("moves", 0))


@dataclass
class Pull(Strategy):
    """A penalty towards zero, as a gradient: what half precision does not show."""

    name = "pull"

    coef: float = 0.1

    def penalty(self, ctx: Context) -> None:
        for _, parameter in ctx.params():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=self.coef)


@dataclass
class Idle(Strategy):
    """Uses every hook and changes nothing: a run with it must equal a run without, bit for bit."""

    name: ClassVar[str] = "idle"

    def weights(self, ctx: Context, batch: Batch) -> torch.Tensor | None:
        return torch.ones_like(batch.weights)

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        return None

    def penalty(self, ctx: Context) -> None:
        for _, parameter in ctx.params():
            parameter.grad = parameter.grad


@dataclass
class JudgedAverage(Average):
    """``Average``, which is also what is judged: an evaluation without its state judges other weights."""

    name: ClassVar[str] = "judged-average"

    @contextlib.contextmanager
    def eval_weights(self, ctx: Context, task: Task) -> Iterator[None]:
        trained = {name: parameter for name, parameter in ctx.params() if name in self.average}
        kept = {name: parameter.data for name, parameter in trained.items()}
        for name, parameter in trained.items():
            parameter.data = self.average[name].to(parameter)
        try:
            yield
        finally:
            for name, parameter in trained.items():
                parameter.data = kept[name]
