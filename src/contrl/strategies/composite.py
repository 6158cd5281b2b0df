"""Several strategies as one; they run sorted by name, so the order they were given in changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from contrl.errors import Refused, UserError
from contrl.interfaces import Batch, Context, Group, LossOutput, Outputs, Row, Strategy, Task, Teacher

Value = TypeVar("Value")


class Composite(Strategy):
    """The hooks of several strategies: rows and draws chain, weights multiply, losses and gradients add."""

    name = "composite"

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        names = [strategy.name for strategy in strategies]
        if len(set(names)) < len(names):
            raise UserError(f"a strategy is given twice: {', '.join(names)}", fix="give each strategy once")
        for strategy in strategies:
            for other in sorted(set(names) & strategy.conflicts.keys()):
                raise Refused(
                    f"{strategy.name} and {other} cannot be combined", why=strategy.conflicts[other], fix="drop one"
                )
        self.strategies = sorted(strategies, key=lambda strategy: strategy.name)
        self.needs_start = any(strategy.needs_start for strategy in strategies)

    def before_task(self, ctx: Context) -> None:
        for strategy in self.strategies:
            strategy.before_task(ctx)

    def rows(self, ctx: Context, rows: list[tuple[Task, Row]]) -> list[tuple[Task, Row]]:
        for strategy in self.strategies:
            rows = strategy.rows(ctx, rows)
        return rows

    def draw(self, ctx: Context, num_rows: int) -> list[tuple[Task, Row]]:
        return [row for strategy in self.strategies for row in strategy.draw(ctx, num_rows)]

    def anchors(self, ctx: Context, num_rows: int) -> list[Group]:
        return [group for strategy in self.strategies for group in strategy.anchors(ctx, num_rows)]

    def prepare_step(self, ctx: Context, groups: Sequence[Group]) -> None:
        for strategy in self.strategies:
            strategy.prepare_step(ctx, groups)

    def teachers(self, ctx: Context) -> Mapping[str, Teacher]:
        return _joined([strategy.teachers(ctx) for strategy in self.strategies])

    def weights(self, ctx: Context, batch: Batch) -> torch.Tensor | None:
        product: torch.Tensor | None = None
        for strategy in self.strategies:
            factors = strategy.weights(ctx, batch)
            if factors is not None:
                product = factors if product is None else product * factors
        return product

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        return _joined([s.count(ctx, groups) for s in self.strategies])

    @property
    def adds_loss(self) -> bool:
        return any(strategy.adds_loss for strategy in self.strategies)

    @property
    def adds_rows(self) -> bool:
        return any(strategy.adds_rows for strategy in self.strategies)

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        outputs = [output for s in self.strategies if (output := s.loss(ctx, batch, out)) is not None]
        if not outputs:
            return None
        return LossOutput(_joined([output.sums for output in outputs]), _joined([output.metrics for output in outputs]))

    def penalty(self, ctx: Context) -> None:
        for strategy in self.strategies:
            strategy.penalty(ctx)

    def project(self, ctx: Context) -> None:
        for strategy in self.strategies:
            strategy.project(ctx)

    def after_step(self, ctx: Context) -> None:
        for strategy in self.strategies:
            strategy.after_step(ctx)

    def after_task(self, ctx: Context) -> None:
        for strategy in self.strategies:
            strategy.after_task(ctx)

    @contextlib.contextmanager
    def eval_weights(self, ctx: Context, task: Task) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for strategy in self.strategies:
                stack.enter_context(strategy.eval_weights(ctx, task))
            yield

    def state_dict(self) -> dict[str, Any]:
        return {strategy.name: strategy.state_dict() for strategy in self.strategies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for strategy in self.strategies:
            strategy.load_state_dict(state.get(strategy.name, {}))


def _joined(parts: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """One dictionary of several; a name that two strategies use would lose one of its values."""
    joined: dict[str, Value] = {}
    for part in parts:
        if shared := sorted(joined.keys() & part.keys()):
            raise UserError(f"two strategies use the name {', '.join(shared)}", fix="give each loss term its own name")
        joined |= part
    return joined


def combine(strategies: Sequence[Strategy]) -> Strategy:
    """One strategy that does what all of them do; a single one is returned as it is."""
    return strategies[0] if len(strategies) == 1 else Composite(strategies)
