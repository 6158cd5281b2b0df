"""One adapter per task: put in when its task is trained or evaluated, found again when the task comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from contrl import faults
from contrl.compatibility import check_strategies
from contrl.continual.results import read
from contrl.errors import UserError
from contrl.faults import Killed
from contrl.interfaces import Context, Setting, Stage
from contrl.methods.sft import SFT
from contrl.strategies.adapters import Adapters
from contrl.strategies.composite import combine
from contrl.strategies.l2 import L2
from tests import runs as small
from tests.runs import Runs, lora, remains, scores
from tests.strategies import toys

world, runs = small.world, small.runs
At = Callable[..., Context]


@pytest.fixture
def model() -> Any:
    return toys.lora()


def through(adapters: Adapters, at: At, model: Any, stages: range, start: Any) -> dict[int, Any]:
    """Stages trained one after another; what each began with."""
    began = {}
    for stage in stages:
        ctx = toys.served(at(stage, model=model), start)
        adapters.before_task(ctx)
        began[stage] = toys.weights(model)
        toys.train(model, seed=stage)
        adapters.after_task(ctx)
    return began


def test_a_new_task_begins_with_the_first_adapter_and_one_that_returns_with_its_own(at: At, model: Any) -> None:
    """Stages 1 to 4 are four tasks, stage 5 is the first of them again."""
    adapters, start = Adapters(), toys.weights(model)
    began = through(adapters, at, model, range(1, 5), start)
    assert all(toys.same(weights, start) for weights in began.values())
    through(adapters, at, model, range(5, 6), start)
    again = through(adapters, at, model, range(6, 7), start)
    # Task b was moved once, by the noise of stage 2.
    expected = toys.lora()
    toys.train(expected, seed=2)
    assert toys.same(again[6], toys.weights(expected))


def test_each_task_is_evaluated_with_its_own_and_the_weights_come_back(at: At, model: Any) -> None:
    adapters, start = Adapters(), toys.weights(model)
    through(adapters, at, model, range(1, 3), start)
    live, inputs = toys.weights(model), torch.ones(1, 6)
    outputs = {}
    ctx = toys.served(at(2, model=model), start)
    for name in ("a", "b", "c"):
        with adapters.eval_weights(ctx, ctx.sequence.task(name)):
            outputs[name] = model(inputs).detach()
        assert toys.same(toys.weights(model), live)
    assert torch.equal(outputs["b"], model(inputs))
    assert torch.equal(outputs["c"], toys.lora()(inputs))
    one = toys.lora()
    toys.train(one, seed=1)
    assert torch.equal(outputs["a"], one(inputs))


def test_the_weights_come_back_when_an_evaluation_fails(at: At, model: Any) -> None:
    adapters, start = Adapters(), toys.weights(model)
    through(adapters, at, model, range(1, 3), start)
    live, ctx = toys.weights(model), toys.served(at(2, model=model), start)
    with pytest.raises(ZeroDivisionError), adapters.eval_weights(ctx, ctx.sequence.task("a")):
        raise ZeroDivisionError
    assert toys.same(toys.weights(model), live)


def test_tasks_of_one_stage_share_an_adapter(at: At, model: Any) -> None:
    adapters, start = Adapters(), toys.weights(model)
    ctx = toys.served(at(1, model=model), start)
    ctx.stage = Stage(1, ("a", "b"), 1)
    adapters.before_task(ctx)
    toys.train(model)
    adapters.after_task(ctx)
    assert adapters.used_by == {"a": "a+b", "b": "a+b"}
    assert list(adapters.stored) == ["a+b"]


def test_the_value_function_stays(at: At, model: Any) -> None:
    adapters, start = Adapters(), toys.weights(model)
    value = toys.add_value(model)
    through(adapters, at, model, range(1, 3), start)
    before = value.detach().clone()
    adapters.before_task(toys.served(at(3, model=model), start))
    assert torch.equal(value, before)
    assert not any(name.startswith("value_head") for name in adapters.stored["a"])


def test_a_restored_state_puts_the_same_adapters_in(at: At, model: Any) -> None:
    adapters, start = Adapters(), toys.weights(model)
    through(adapters, at, model, range(1, 4), start)
    restored = Adapters()
    restored.load_state_dict(adapters.state_dict())
    adapters.stored["a"].clear()
    assert toys.same(restored.stored["a"], restored.state_dict()["stored"]["a"])
    assert set(restored.stored["a"]) == set(start)
    assert restored.used_by == {"a": "a", "b": "b", "c": "c"}
    restored.load_state_dict({})
    assert (restored.stored, restored.used_by) == ({}, {})


def test_a_whole_model_is_refused_with_what_works() -> None:
    with pytest.raises(UserError, match="adapters does not go with this run") as caught:
        check_strategies([Adapters()], Setting(SFT()))
    assert "use_peft: true, or use averaging or kl" in str(caught.value.fix)
    check_strategies([Adapters()], Setting(SFT(), adapter=True, partial_gradients="DeepSpeed steps inside backward"))


def test_penalties_on_another_tasks_adapter_are_refused() -> None:
    with pytest.raises(UserError, match="adapters and l2") as caught:
        combine([L2(), Adapters()])
    assert "no two tasks share an adapter" in str(caught.value.why)
    assert {"averaging", "ewc", "l2", "mas"} <= set(Adapters.conflicts)


@pytest.mark.slow
def test_a_run_forgets_nothing_and_survives_kills(runs: Runs) -> None:
    """Four stages, both tasks come back; killed after the strategies looked back and while tasks are evaluated."""
    changes: dict[str, Any] = {
        "method": "sft",
        "strategies": ["adapters"],
        "model": {**lora(runs.world), "lora_dropout": 0.0},
        "rounds": 2,
        "training": {"learning_rate": 3e-2},
    }
    folder = runs("whole", **changes)
    whole, values = remains(folder), scores(folder)
    first = {place: value for place, value in values.items() if place[1] == "sums"}
    assert len({value for (stage, *_), value in first.items() if stage in (1, 2)}) == 1
    assert read(folder).matrix[1][0].value != read(folder).matrix[0][0].value
    assert read(folder).matrix[1][1].value == read(folder).matrix[0][1].value
    assert read(folder).matrix[3][1].value == read(folder).matrix[2][1].value
    for point, visit in (("looked_back", 2), ("evaluation", 2)):
        faults.arm(point, visit)
        with pytest.raises(Killed):
            runs("run", **changes)
    assert remains(runs("run", **changes)) == whole
