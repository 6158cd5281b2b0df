"""Judging afterwards: the same numbers as while training, for full weights, adapters, strategies and pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from contrl.continual import results
from contrl.continual.judging import tasks_after
from contrl.continual.rescore import rescore
from contrl.interfaces import Task, TaskSequence
from contrl.launch import Options, reopen
from tests.runs import AVERAGE, Runs, lora, scores

TASKS = ("sums", "doubles")


def answers(run: Path) -> dict[str, Any]:
    return {path.name: parquet.read_table(path).to_pylist() for path in (run / "eval").glob("*.parquet")}


def written(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def pairs(folder: Path, name: str) -> str:
    """Twelve pairs; one task likes what the other does not."""
    answers = ["yes", "no"] if name == "sums" else ["no", "yes"]
    rows = [
        {"id": f"{name}{i}", "prompt": f"{i}?", **dict(zip(("chosen", "rejected"), answers, strict=True))}
        for i in range(12)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


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


# --- afterwards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"method": "sft", "strategies": [AVERAGE]}, id="sft-average"),
        pytest.param({"method": "dpo"}, id="dpo", marks=pytest.mark.slow),
        pytest.param({}, id="rloo", marks=pytest.mark.slow),
        pytest.param({"method": "sft", "model": "lora"}, id="sft-lora", marks=pytest.mark.slow),
        pytest.param({"method": {"name": "ppo", "max_new_tokens": 6}}, id="ppo", marks=pytest.mark.slow),
        pytest.param({"rounds": 2, "method": "sft"}, id="two-rounds", marks=pytest.mark.slow),
    ],
)
def test_judging_afterwards_gives_the_numbers_of_training(runs: Runs, changes: dict[str, Any]) -> None:
    changes = {**changes, "training": {"max_steps": 2}}
    if changes.get("model") == "lora":
        changes["model"] = lora(runs.world)
    if changes.get("method") == "dpo":
        changes["tasks"] = [{"name": name, "data": pairs(runs.folder, name), "eval_size": 4} for name in TASKS]
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


def test_what_was_not_judged_is_filled_and_the_rest_stays(runs: Runs) -> None:
    """seen+next leaves out doubles before the first stage; once filled, only ``again`` judges anew."""
    run = runs(method="sft", training={"max_steps": 1}, evaluation={"tasks": "seen+next", "num_items": 2})
    assert set(scores(run)) == {(0, "sums", "digits"), *((k, task, "digits") for k in (1, 2) for task in TASKS)}
    assert written(run)["metrics"]["fwt"]["value"] is None
    assert written(run)["metrics"]["forgetting"]["value"] is not None

    def count() -> int:
        return len((run / "scores.jsonl").read_text(encoding="utf-8").splitlines())

    before = scores(run)
    runner = reopen(run, Options(say=runs.said.append))
    rescore(runner)
    assert before.items() <= scores(run).items()
    assert set(scores(run)) == {(k, task, "digits") for k in range(3) for task in TASKS}
    filled = count()
    rescore(reopen(run, Options(say=runs.said.append)), again=True)
    assert count() == 2 * filled
