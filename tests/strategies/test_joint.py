"""Joint training: which rows a stage trains on, and that a whole run trains on them with each task's own reward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrl import faults
from contrl.config import load
from contrl.errors import UserError
from contrl.experiment import build_strategy, build_tasks, find
from contrl.faults import Killed
from contrl.interfaces import Context, Row, Stage, Strategy, Task, TaskSequence
from contrl.planning import build_plan, load_of
from contrl.strategies.joint import Joint
from tests import runs as small
from tests.runs import Runs, metric, remains

world, runs = small.world, small.runs
At = Callable[..., Context]


def rows_of(strategy: Strategy, ctx: Context) -> list[tuple[Task, Row]]:
    """As the runner asks."""
    tasks = [ctx.sequence.task(name) for name in ctx.stage.tasks]
    return strategy.rows(ctx, [(task, row) for task in tasks for row in task.train])


def names(rows: list[tuple[Task, Row]]) -> list[str]:
    return list(dict.fromkeys(task.name for task, _ in rows))


@pytest.mark.parametrize(
    ("data", "stage", "tasks"),
    [
        ("seen", 1, ["a"]),
        ("seen", 3, ["c", "a", "b"]),
        ("seen", 5, ["a", "b", "c", "d"]),  # the second round: a comes back
        ("all", 1, ["a", "b", "c", "d"]),
        ("all", 2, ["b", "a", "c", "d"]),
    ],
)
def test_a_stage_has_its_own_rows_and_those_of_the_others(data: Any, stage: int, tasks: list[str], at: At) -> None:
    rows = rows_of(Joint(data=data), at(stage))
    assert names(rows) == tasks
    assert len(rows) == 40 * len(tasks)
    assert all(row in task.train and str(row["id"]).startswith("train") for task, row in rows)


def test_a_stage_of_several_tasks_has_none_of_them_twice(at: At) -> None:
    ctx = at(3)
    ctx.stage = Stage(3, ("a", "c"), 1)
    assert names(rows_of(Joint(), ctx)) == ["a", "c", "b"]
    assert len(rows_of(Joint(), ctx)) == 120


def test_the_first_stage_is_naive(at: At) -> None:
    """Nothing was seen before it, so its rows are the very same list: bit for bit a naive stage."""
    assert rows_of(Joint(), at(1)) == rows_of(Strategy(), at(1))
    assert Joint().state_dict() == {}


def test_it_is_not_combined_with_what_it_contains(runs: Runs) -> None:
    config = load(runs.config(strategies=["joint", "replay"]), resolve=find).config
    with pytest.raises(UserError, match=r"joint and replay|replay and joint") as caught:
        build_strategy(config.strategies)
    assert "all rows of earlier tasks" in str(caught.value.why)


def test_epochs_are_longer_and_the_plan_says_so(runs: Runs) -> None:
    """8 rows at 4 a step are 2 steps an epoch, 16 are 4; max_steps stays what it is."""
    config = load(runs.config(training={"max_steps": -1, "num_train_epochs": 3}), resolve=find).config
    plan = build_plan(config, TaskSequence.in_order(build_tasks(config)), 1)
    assert load_of(plan, 1.0).steps == [6, 6]
    assert load_of(plan, 1.0, Joint()).steps == [6, 12]
    assert load_of(plan, 1.0, Joint("all")).steps == [12, 12]


@pytest.mark.slow
def test_a_run_trains_on_both_tasks_and_survives_a_kill(runs: Runs) -> None:
    """16 rows at 4 a step: 4 steps see each row of both tasks once, none held out; the first stage is naive."""
    changes = {"training": {"save_steps": 4}}
    naive = remains(runs("naive", **changes))
    joint = runs("joint", strategies=["joint", "tests.plugins:Diary"], **changes)
    lines = [json.loads(line) for line in Path("diary.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["current"] for line in lines if line["event"] == "step" and line["stage"] == 2]
    seen = [row for step in steps for row in step]
    assert len(seen) == len(set(seen)) == 16
    assert {row.partition("/")[0] for row in seen} == {"sums", "doubles"}
    assert not set(seen) & {f"{task}/{row['id']}" for task in ("sums", "doubles") for row in held_out(runs, task)}
    left = remains(joint)
    assert left["weights"]["1-sums"] == naive["weights"]["1-sums"]
    assert left["weights"]["2-doubles"] != naive["weights"]["2-doubles"]
    assert set(metric(joint, "reward")) == {(stage, step) for stage in (1, 2) for step in range(1, 5)}
    faults.arm("looked_back", 2)
    with pytest.raises(Killed):
        runs("run", strategies=["joint"], **changes)
    alone = remains(runs("run", strategies=["joint"], **changes))
    assert all(alone[kind] == left[kind] for kind in ("weights", "scores", "losses"))


def held_out(runs: Runs, task: str) -> list[Row]:
    config = load(runs.config(), resolve=find).config
    return list(next(made for made in build_tasks(config) if made.name == task).eval)
