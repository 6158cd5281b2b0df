"""Several strategies as one: hook by hook, and that the order they are given in changes nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Context, Group, LossOutput, Outputs, Row, Strategy, Task
from contrl.strategies.composite import Composite, combine
from contrl.strategies.naive import Naive
from contrl.strategies.replay import Replay

At = Callable[..., Context]


@dataclass
class Anchored(Strategy):
    """A small elastic penalty, as in EWC: adds coef * F * (w - w0) to the gradient; F and w0 from after_task."""

    name = "anchored"

    coef: float = 0.5
    anchors: dict[str, torch.Tensor] = field(default_factory=dict)
    importance: dict[str, torch.Tensor] = field(default_factory=dict)

    def after_task(self, ctx: Context) -> None:
        self.anchors = {name: p.detach().clone() for name, p in ctx.params()}
        self.importance = {name: p.detach().abs() + 0.1 for name, p in ctx.params()}

    def penalty(self, ctx: Context) -> None:
        for name, p in ctx.params():
            if name in self.anchors:
                assert p.grad is not None
                p.grad += self.coef * self.importance[name] * (p.detach() - self.anchors[name])

    def state_dict(self) -> dict[str, Any]:
        return {"anchors": dict(self.anchors), "importance": dict(self.importance)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.anchors, self.importance = dict(state.get("anchors", {})), dict(state.get("importance", {}))


@dataclass
class Decay(Anchored):
    """The same towards zero, under another name: a float addition that does not commute bit for bit."""

    name = "decay"

    def penalty(self, ctx: Context) -> None:
        for _, p in ctx.params():
            assert p.grad is not None
            p.grad += self.coef * 1e-3 * p.detach()


@dataclass
class Recorder(Strategy):
    """Writes down every call; doubles its weights; adds one loss term of its own."""

    journal: list[str] = field(default_factory=list)
    factor: float = 2.0
    term: str = "extra"

    def before_task(self, ctx: Context) -> None:
        self.journal.append(f"{self.name} before_task")

    def after_step(self, ctx: Context) -> None:
        self.journal.append(f"{self.name} after_step")

    def project(self, ctx: Context) -> None:
        self.journal.append(f"{self.name} project")

    def rows(self, ctx: Context, rows: list[tuple[Task, Row]]) -> list[tuple[Task, Row]]:
        return [*rows, (rows[0][0], {"id": self.name})]

    def weights(self, ctx: Context, batch: Batch) -> torch.Tensor | None:
        return torch.full_like(batch.weights, self.factor)

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        return {self.term: float(len(groups))}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        return LossOutput({self.term: out.logps.sum() * self.factor}, {f"{self.term}/mean": (self.factor, 1.0)})

    @contextlib.contextmanager
    def eval_weights(self, ctx: Context, task: Task) -> Iterator[None]:
        self.journal.append(f"{self.name} opens")
        yield
        self.journal.append(f"{self.name} closes")


class First(Recorder):
    name: ClassVar[str] = "first"


class Second(Recorder):
    name: ClassVar[str] = "second"


def batch() -> Batch:
    group = Group("0", "a", [1], [Completion([2]), Completion([3])])
    two = torch.zeros(2, dtype=torch.long)
    return Batch([group], two, two[:, None], two[:, None] == 0, torch.ones(2), torch.zeros(2))


def model_with_gradients(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


# --- order ------------------------------------------------------------------------------------------------------


def test_strategies_run_sorted_by_name() -> None:
    given = [Replay(), Decay(), Naive(), Anchored()]
    for order in itertools.permutations(given):
        assert [strategy.name for strategy in Composite(order).strategies] == ["anchored", "decay", "naive", "replay"]


def trained_gradients(order: Sequence[int], at: At) -> tuple[list[torch.Tensor], list[tuple[str, str]]]:
    """Gradients after the penalties, and replayed rows, of strategies given in this order."""
    given = [Anchored(0.3), Decay(0.7), Replay()]
    strategy = combine([given[i] for i in order])
    strategy.after_task(at(1, model=model_with_gradients(1)))
    model = model_with_gradients(2)
    strategy.penalty(at(2, model=model))
    return gradients(model), [(task.name, row["id"]) for task, row in strategy.draw(at(2), 16)]


def test_the_order_given_changes_no_bit_of_penalties_and_draws(at: At) -> None:
    wanted, drawn = trained_gradients((0, 1, 2), at)
    assert len(drawn) == 8
    for order in itertools.permutations(range(3)):
        mine, mine_drawn = trained_gradients(order, at)
        assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))
        assert mine_drawn == drawn


def test_penalties_add_and_coefficient_zero_adds_nothing(at: At) -> None:
    """grad + .3 F (w - w0) + .7e-3 w, by hand; with coefficient 0 bit for bit the gradient without."""
    start, model = model_with_gradients(1), model_with_gradients(2)
    before = [gradient.clone() for gradient in gradients(model)]
    strategy = combine([Decay(0.7), Anchored(0.3)])
    strategy.after_task(at(1, model=start))
    strategy.penalty(at(2, model=model))
    for gradient, old, p, p0 in zip(gradients(model), before, model.parameters(), start.parameters(), strict=True):
        wanted = old + 0.3 * (p0.abs() + 0.1) * (p - p0) + 0.7e-3 * p
        torch.testing.assert_close(gradient, wanted.detach())
        assert not torch.equal(gradient, old)
    silent = combine([Decay(0.0), Anchored(0.0)])
    silent.after_task(at(1, model=start))
    untouched = model_with_gradients(2)
    silent.penalty(at(2, model=untouched))
    assert all(torch.equal(a, b) for a, b in zip(gradients(untouched), before, strict=True))


# --- hook by hook ------------------------------------------------------------------------------------------------


def test_rows_chain_and_draws_join(at: At, sequence: Any) -> None:
    ctx = at(2)
    rows = combine([Second(), First(), Naive()]).rows(ctx, [(sequence[0], {"id": "0"})])
    assert [row["id"] for _, row in rows] == ["0", "first", "second"]
    replay = Replay()
    replay.after_task(at(1))
    alone = [row["id"] for _, row in replay.draw(ctx, 8)]
    assert [row["id"] for _, row in combine([replay, Naive()]).draw(ctx, 8)] == alone


def test_weights_multiply_and_none_is_left_out(at: At) -> None:
    ctx = at(1)
    product = combine([First(factor=2.0), Naive(), Second(factor=0.25)]).weights(ctx, batch())
    assert product is not None
    assert product.tolist() == [0.5, 0.5]
    assert combine([Naive(), Replay()]).weights(ctx, batch()) is None


def test_losses_add_under_their_own_names_each_with_its_own_count(at: At) -> None:
    ctx, out = at(1), Outputs(torch.tensor([[-1.0], [-2.0]]))
    both = combine([First(term="kl", factor=1.0), Second(term="copr", factor=3.0), Naive()])
    loss = both.loss(ctx, batch(), out)
    assert loss is not None
    assert {name: value.item() for name, value in loss.sums.items()} == {"kl": -3.0, "copr": -9.0}
    assert loss.metrics == {"kl/mean": (1.0, 1.0), "copr/mean": (3.0, 1.0)}
    assert both.count(ctx, batch().groups) == {"kl": 1.0, "copr": 1.0}
    assert both.adds_loss


def test_strategies_without_losses_have_none(at: At) -> None:
    both = combine([Naive(), Replay()])
    assert both.loss(at(1), batch(), Outputs(torch.zeros(2, 1))) is None
    assert both.count(at(1), []) == {}
    assert not both.adds_loss


def test_two_terms_of_one_name_are_refused(at: At) -> None:
    """One of them would be lost in silence."""
    both = combine([First(term="kl"), Second(term="kl")])
    with pytest.raises(UserError, match="two strategies use the name kl"):
        both.count(at(1), [])
    with pytest.raises(UserError, match="two strategies use the name kl"):
        both.loss(at(1), batch(), Outputs(torch.zeros(2, 1)))


def test_the_remaining_hooks_reach_every_strategy_in_order(at: At) -> None:
    journal: list[str] = []
    both, ctx = combine([Second(journal), First(journal)]), at(1)
    both.before_task(ctx)
    both.project(ctx)
    both.after_step(ctx)
    hooks = ("before_task", "project", "after_step")
    assert journal == [f"{name} {hook}" for hook in hooks for name in ("first", "second")]


def test_evaluation_weights_nest(at: At) -> None:
    journal: list[str] = []
    with combine([Second(journal), First(journal)]).eval_weights(at(1), Task("a", [])):
        journal.append("evaluates")
    assert journal == ["first opens", "second opens", "evaluates", "second closes", "first closes"]


# --- state, refusals ----------------------------------------------------------------------------------------------


def test_each_strategy_keeps_its_own_state(at: At) -> None:
    both, model = combine([Replay(buffer_size=3), Anchored()]), model_with_gradients()
    both.after_task(at(1, model=model))
    state = both.state_dict()
    assert sorted(state) == ["anchored", "replay"]
    assert json.loads(json.dumps(state["replay"])) == state["replay"]
    replay, anchored = Replay(buffer_size=3), Anchored()
    combine([anchored, replay]).load_state_dict(state)
    assert len(replay.memory["a"]) == 3
    assert replay.memory == state["replay"]["memory"]
    assert torch.equal(anchored.anchors["0.weight"], model.get_parameter("0.weight"))


def test_a_strategy_that_joined_later_starts_empty(at: At) -> None:
    replay = Replay()
    replay.after_task(at(1))
    combine([replay, Naive()]).load_state_dict({"naive": {}})
    assert replay.memory == {}


def test_a_strategy_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="a strategy is given twice: replay, replay"):
        Composite([Replay(), Replay(share=0.1)])


def test_a_single_strategy_stays_itself() -> None:
    replay = Replay()
    assert combine([replay]) is replay
