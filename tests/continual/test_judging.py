"""Which tasks a row of the matrix holds; what is judged and told while a run trains."""

from __future__ import annotations

import json
from typing import Any

from contrl.continual.judging import tasks_after
from contrl.interfaces import Task, TaskSequence
from tests import runs as small
from tests.runs import Runs, scores

world, runs = small.world, small.runs
TASKS = ("sums", "doubles")


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


def test_a_run_judges_what_was_asked_for(runs: Runs) -> None:
    """seen+next leaves out doubles before the first stage: forward transfer needs it, forgetting does not."""
    run = runs(method="sft", training={"max_steps": 1}, evaluation={"tasks": "seen+next", "num_items": 2})
    assert set(scores(run)) == {(0, "sums", "digits"), *((k, task, "digits") for k in (1, 2) for task in TASKS)}
    written: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert written["metrics"]["fwt"]["value"] is None
    assert written["metrics"]["forgetting"]["value"] is not None
