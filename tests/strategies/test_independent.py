"""Independent training: the run's first weights at every stage, and nothing else of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl import faults
from contrl.errors import UserError
from contrl.faults import Killed
from contrl.interfaces import Context
from contrl.strategies.composite import combine
from contrl.strategies.ewc import EWC
from contrl.strategies.independent import Independent
from contrl.strategies.replay import Replay
from tests import runs as small
from tests.plugins import Diary
from tests.runs import Runs, lora, remains
from tests.strategies import toys

world, runs = small.world, small.runs
At = Callable[..., Context]


class Late(Diary):
    """Looks after the others have changed what they change."""

    name = "late"


@pytest.mark.parametrize("make", [toys.full, toys.llama, toys.lora])
def test_a_stage_begins_with_the_first_weights_of_what_is_trained(make: Callable[[], Any], at: At) -> None:
    model = make()
    start, frozen = toys.weights(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    toys.train(model)
    assert not toys.same(toys.weights(model), start)
    Independent().before_task(toys.served(at(2, model=model), start))
    assert toys.same(toys.weights(model), start)
    assert toys.same({n: p.detach() for n, p in model.named_parameters()}, frozen)


def test_the_value_function_is_left_to_the_method(at: At) -> None:
    model = toys.full()
    start = toys.weights(model)  # taken before there is a value function
    value = toys.add_value(model)
    toys.train(model)
    before = value.detach().clone()
    Independent().before_task(toys.served(at(2, model=model), start))
    assert torch.equal(value, before)


def test_it_asks_for_the_first_weights_also_among_others() -> None:
    assert Independent().needs_start
    assert combine([Independent(), Replay()]).needs_start


@pytest.mark.parametrize("name", ["adapters", "averaging", "ewc", "l2", "mas"])
def test_what_remembers_earlier_weights_is_refused(name: str) -> None:
    assert name in Independent.conflicts
    with pytest.raises(UserError, match="ewc"):
        combine([EWC(), Independent()])


@pytest.mark.slow
def test_every_stage_begins_alike_and_a_killed_run_ends_alike(runs: Runs) -> None:
    """Both stages begin with equal weights; killed after the strategies looked back, it ends the same."""
    changes: dict[str, Any] = {
        "method": "sft",
        "strategies": ["independent", f"{__name__}:Late"],
        "model": lora(runs.world),
    }
    changes["training"] = {"save_steps": 4}
    whole = remains(runs("whole", **changes))
    lines = [json.loads(line) for line in Path("diary.jsonl").read_text(encoding="utf-8").splitlines()]
    began, ended = ([line["weights"] for line in lines if line["event"] == event] for event in ("start", "end"))
    assert began[0] == began[1]
    assert len({*began, *ended}) == 3
    faults.arm("looked_back", 2)
    with pytest.raises(Killed):
        runs("run", **changes)
    assert remains(runs("run", **changes)) == whole
