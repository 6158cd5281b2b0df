"""Averaging of weights: the formulas by hand, LoRA by its products, and the moving average through kills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from contrl import faults
from contrl.errors import UserError
from contrl.faults import Killed
from contrl.interfaces import Context
from contrl.models.lowrank import adapted_layers
from contrl.strategies.averaging import Averaging
from tests import runs as small
from tests.runs import Runs, lora, metric, remains, sha
from tests.strategies import toys

world, runs = small.world, small.runs
At = Callable[..., Context]
Weights = dict[str, torch.Tensor]


def stage(averaging: Averaging, at: At, model: Any, number: int = 2, steps: int = 1) -> tuple[list[Weights], Context]:
    """A stage of some steps of noise: the weights before it and after each step (before ``after_task``)."""
    ctx = toys.served(at(number, model=model))
    averaging.before_task(ctx)
    seen = [toys.weights(model)]
    for step in range(steps):
        ctx.step = step
        toys.train(model, seed=10 * number + step)
        averaging.after_step(ctx)
        seen.append(toys.weights(model))
    averaging.after_task(ctx)
    return seen, ctx


def deltas(model: Any) -> list[torch.Tensor]:
    return [layer.delta().clone() for layer in adapted_layers(model)]


def close(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


# --- WiSE-FT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [toys.full, toys.llama])
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_a_stage_ends_between_its_start_and_its_end(alpha: float, make: Any, at: At) -> None:
    model = make()
    (before, after), _ = stage(Averaging(alpha), at, model)
    close(toys.weights(model), {name: (1 - alpha) * before[name] + alpha * after[name] for name in before})


@pytest.mark.parametrize("make", [toys.full, toys.llama, toys.lora])
def test_all_of_what_is_new_changes_no_bit_and_none_of_it_puts_the_old_back(make: Any, at: At) -> None:
    for alpha, which in ((1.0, 1), (0.0, 0)):
        model = make()
        toys.train(model, seed=1)
        seen, _ = stage(Averaging(alpha), at, model)
        assert toys.same(toys.weights(model), seen[which])


@pytest.mark.parametrize(("fields", "averages"), [({}, False), ({"first": True}, True)])
def test_the_first_stage_is_left_alone_unless_asked(fields: dict[str, Any], averages: bool, at: At) -> None:
    model = toys.full()
    (before, after), _ = stage(Averaging(**fields), at, model, number=1)
    close(toys.weights(model), {n: (before[n] + after[n]) / 2 if averages else after[n] for n in before})


def test_the_value_function_is_the_methods(at: At) -> None:
    model = toys.full()
    value = toys.add_value(model)
    seen, _ = stage(Averaging(ema=0.5), at, model)
    assert torch.equal(value, seen[-1]["value_head.weight"])


# --- LoRA -----------------------------------------------------------------------------------------------------


def test_lora_is_averaged_in_delta_w_and_not_in_its_factors(at: At) -> None:
    """B A and (-B)(-A) are one adapter: their average is itself, while the average of the factors is nothing."""
    model = toys.lora()
    toys.train(model)
    averaging, ctx = Averaging(0.5), toys.served(at(2, model=model))
    averaging.before_task(ctx)
    wanted = deltas(model)
    with torch.no_grad():
        for layer in adapted_layers(model):
            layer.down.neg_()
            layer.up.neg_()
    averaging.after_task(ctx)
    torch.testing.assert_close(deltas(model), wanted, rtol=1e-5, atol=1e-6)
    assert max(delta.abs().max() for delta in wanted) > 0.1
    assert ctx.services.reported[-1]["averaging/cut"][0] < 1e-6


def test_of_a_sum_of_higher_rank_the_best_of_the_adapters_rank_is_kept_and_the_error_told(at: At) -> None:
    """Rank 2 + rank 2 = rank 4; Eckart-Young: the error is that of the two smaller sizes. The head plainly."""
    model = toys.lora()
    toys.train(model, seed=1)
    first = deltas(model)[0]
    (before, after), ctx = stage(Averaging(0.5), at, model)
    found, (head,) = deltas(model)[0], [name for name in before if "head" in name and name.endswith("weight")]
    other = toys.lora()
    toys.train(other, seed=1)
    toys.train(other, seed=20)
    mean = (first + deltas(other)[0]) / 2
    sizes = torch.linalg.svdvals(mean.double())
    error = float((sizes[2:].square().sum() / sizes.square().sum()).sqrt())
    assert error > 0.05
    assert float((found - mean).norm() / mean.norm()) == pytest.approx(error, rel=1e-4)
    assert ctx.services.reported[-1]["averaging/cut"][0] == pytest.approx(error, rel=1e-4)
    torch.testing.assert_close(toys.weights(model)[head], (before[head] + after[head]) / 2)


# --- moving average -------------------------------------------------------------------------------------------


def moving(values: list[torch.Tensor], decay: float, every: int = 1) -> torch.Tensor:
    """By its definition; the first value is where it begins."""
    mean = values[0]
    for value in values[every::every]:
        mean = decay * mean + (1 - decay) * value
    return mean


@pytest.mark.parametrize("every", [1, 2])
def test_the_weights_become_their_moving_average(every: int, at: At) -> None:
    model = toys.full()
    seen, _ = stage(Averaging(1.0, ema=0.8, every=every), at, model, number=1, steps=5)
    close(toys.weights(model), {n: moving([weights[n] for weights in seen], 0.8, every) for n in seen[0]})


def test_both_mix_the_moving_average_with_the_start(at: At) -> None:
    model = toys.full()
    seen, _ = stage(Averaging(0.5, ema=0.8), at, model, steps=3)
    mean = {n: moving([weights[n] for weights in seen], 0.8) for n in seen[0]}
    close(toys.weights(model), {n: (seen[0][n] + mean[n]) / 2 for n in mean})


def test_of_lora_it_is_that_of_the_products(at: At) -> None:
    """Small steps, as training makes them: within 2 % of the exact average of delta W, and no more than is told."""
    model = toys.lora(rank=2)
    toys.train(model, seed=1)
    averaging, ctx = Averaging(1.0, ema=0.8), toys.served(at(2, model=model))
    averaging.before_task(ctx)
    seen = [deltas(model)[0]]
    for step in range(6):
        ctx.step = step
        toys.train(model, 0.05, seed=30 + step)
        averaging.after_step(ctx)
        seen.append(deltas(model)[0])
    averaging.after_task(ctx)
    wanted = moving(seen, 0.8)
    assert float((deltas(model)[0] - wanted).norm() / wanted.norm()) < 0.02
    assert float((seen[-1] - wanted).norm() / wanted.norm()) > 0.05
    assert {name for entry in ctx.services.reported for name in entry} == {"averaging/ema_cut", "averaging/cut"}


def test_in_half_precision_it_still_moves(at: At) -> None:
    """0.999 x 1 + 0.001 x 2 is 1 in bfloat16, forever."""
    model = toys.full().bfloat16()
    averaging, ctx = Averaging(1.0, ema=0.999), toys.served(at(1, model=model))
    with torch.no_grad():
        model.inner.weight.fill_(1.0)
        averaging.before_task(ctx)
        model.inner.weight.fill_(2.0)
    for ctx.step in range(100):
        averaging.after_step(ctx)
    assert float(averaging.average["inner.weight"][0, 0]) == pytest.approx(2 - 0.999**100, rel=1e-4)
    averaging.after_task(ctx)
    assert model.inner.weight.dtype == torch.bfloat16


def test_a_resumed_average_goes_on_where_it_was(at: At) -> None:
    """As the runner does it: the stage's first weights, then the checkpoint's weights and state."""
    whole, part = toys.lora(), toys.lora()
    stage(Averaging(0.5, ema=0.7), at, whole, steps=4)
    killed, ctx = Averaging(0.5, ema=0.7), toys.served(at(2, model=part))
    killed.before_task(ctx)
    for ctx.step in range(2):
        toys.train(part, seed=20 + ctx.step)
        killed.after_step(ctx)
    saved, state, again = toys.weights(part), killed.state_dict(), toys.lora()
    resumed, ctx = Averaging(0.5, ema=0.7), toys.served(at(2, model=again))
    resumed.before_task(ctx)
    resumed.load_state_dict(state)
    again.load_state_dict(saved, strict=False)
    for ctx.step in range(2, 4):
        toys.train(again, seed=20 + ctx.step)
        resumed.after_step(ctx)
    resumed.after_task(ctx)
    assert toys.same(toys.weights(again), toys.weights(whole))
    assert resumed.state_dict() == {"average": {}}


@pytest.mark.parametrize("fields", [{"alpha": 1.2}, {"alpha": -0.1}, {"ema": 1.0}, {"ema": 0.0}, {"every": 0}])
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        Averaging(**fields)


# --- whole runs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_evaluates_the_average_and_survives_kills(runs: Runs) -> None:
    """Killed in mid-stage, and after the average is in the model but nowhere on disk; stage 1 differs by its EMA."""
    changes: dict[str, Any] = {
        "method": "sft",
        "model": lora(runs.world),
        "strategies": [{"name": "averaging", "alpha": 0.5, "ema": 0.5}],
        "training": {"learning_rate": 1e-2},
    }
    folder = runs("whole", **changes)
    whole = remains(folder)
    last, final = (
        folder / "stages" / "1-sums" / name / "adapter_model.safetensors" for name in ("checkpoint-4", "final")
    )
    assert not last.exists() or sha(last) != sha(final)
    assert set(metric(folder, "averaging/cut")) == {(1, 4), (2, 4)}
    assert all(0 <= value < 0.5 for value in metric(folder, "averaging/ema_cut").values())
    for point, visit in (("training", 3), ("looked_back", 1), ("looked_back", 1)):
        faults.arm(point, visit)
        with pytest.raises(Killed):
            runs("run", **changes)
    assert remains(runs("run", **changes)) == whole
