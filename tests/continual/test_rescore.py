"""Judging afterwards: the same numbers as while training, for full weights, adapters, strategies and pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from contrl.continual import results
from contrl.continual.judging import tasks_after
from contrl.continual.records import read_records
from contrl.continual.rescore import rescore
from contrl.interfaces import Task, TaskSequence
from contrl.launch import Options, reopen
from tests.runs import AVERAGE, Runs, lora, scores

TASKS = ("sums", "doubles")


def answers(run: Path) -> dict[str, Any]:
    return {path.name: parquet.read_table(path).to_pylist() for path in (run / "eval").glob("*.parquet")}


def written(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


# --- which tasks a row holds --------------------------------------------------------------------------


def test_the_tasks_of_a_row() -> None:
    """Three tasks, one of them without rows to judge by; row 0 comes before the first stage."""
    rows = ({"id": "0"},)
    sequence = TaskSequence.in_order(
        [Task("a", rows, rows), Task("b", rows, rows), Task("c", rows), Task("d", rows, rows)]
    )

    def names(row: int, which: str) -> str:
        return "".join(task.name for task in tasks_after(sequence, row, which))

    assert [names(row, "all") for row in range(5)] == ["abd"] * 5
    assert [names(row, "seen") for row in range(5)] == ["", "a", "ab", "ab", "abd"]
    assert [names(row, "seen+next") for row in range(5)] == ["a", "ab", "ab", "abd", "abd"]
    assert [names(row, "none") for row in range(5)] == [""] * 5


def test_a_task_of_a_later_round_stays_seen() -> None:
    rows = ({"id": "0"},)
    sequence = TaskSequence.in_order([Task("a", rows, rows), Task("b", rows, rows)], rounds=2)
    assert [len(tasks_after(sequence, row, "seen")) for row in range(5)] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("which", "cells"), [("seen", {(1, "sums")}), ("seen+next", {(0, "sums"), (1, "sums"), (1, "doubles")})]
)
def test_a_run_judges_what_it_was_asked_to(runs: Runs, which: str, cells: set[tuple[int, str]]) -> None:
    run = runs(method="sft", evaluation={"tasks": which, "num_items": 2}, training={"max_steps": 1})
    found = {(stage, task) for stage, task, _ in scores(run)}
    assert found == cells | {(2, "sums"), (2, "doubles")}
    assert written(run)["metrics"]["fwt"]["value"] is None
    assert written(run)["metrics"]["forgetting"]["value"] is not None


# --- afterwards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="rloo"),
        pytest.param({"method": "sft", "strategies": [AVERAGE]}, id="sft-average"),
        pytest.param({"method": "sft", "model": "lora"}, id="sft-lora", marks=pytest.mark.slow),
        pytest.param({"method": {"name": "ppo", "max_new_tokens": 6}}, id="ppo", marks=pytest.mark.slow),
        pytest.param({"rounds": 2, "method": "sft"}, id="two-rounds", marks=pytest.mark.slow),
    ],
)
def test_judging_afterwards_gives_the_numbers_of_training(runs: Runs, changes: dict[str, Any]) -> None:
    changes = {**changes, "training": {"max_steps": 2}}
    if changes.get("model") == "lora":
        changes["model"] = lora(runs.world)
    whole = runs("whole", **changes)
    late = runs("late", **changes, evaluation={"max_new_tokens": 6, "tasks": "none"})
    assert not scores(late)
    assert not answers(late)
    assert not any(cell for row in written(late)["matrix"] for cell in row)
    rows = rescore(reopen(late, Options(say=runs.said.append)))
    results.write(late)
    assert rows == list(range(3 if "rounds" not in changes else 5))
    assert scores(late) == scores(whole)
    assert answers(late) == answers(whole)
    assert written(late) == written(whole)


def test_judging_again_only_where_asked(runs: Runs) -> None:
    run = runs(method="sft", training={"max_steps": 1}, evaluation={"tasks": "seen"})

    def count() -> int:
        return len((run / "scores.jsonl").read_text(encoding="utf-8").splitlines())

    before, key = count(), ("stage", "task", "metric")
    known = read_records(run / "scores.jsonl", key)
    rescore(reopen(run, Options(say=runs.said.append)))
    assert read_records(run / "scores.jsonl", key)[: len(known)] == known
    assert {(stage, task) for stage, task, _ in scores(run)} == {(k, task) for k in range(3) for task in TASKS}
    filled = count()
    assert filled > before
    rescore(reopen(run, Options(say=runs.said.append)), again=True)
    assert count() == 2 * filled
