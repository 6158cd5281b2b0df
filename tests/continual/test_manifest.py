"""run.json: enough to believe a run and to repeat it."""

from __future__ import annotations

import json
from importlib.metadata import version

from contrl import __version__
from contrl.config import load
from contrl.continual.manifest import describe_data, describe_run
from contrl.experiment import find
from contrl.interfaces import Task, TaskSequence
from tests.runs import Runs

ROWS = [{"id": "0", "prompt": "a"}, {"id": "1", "prompt": "b"}]


def test_the_order_of_tasks_and_stages_is_in_it(runs: Runs) -> None:
    resolved = load(runs.config(seed=5, rounds=2, strategies=["replay"]), resolve=find)
    sequence = TaskSequence.in_order([Task("sums", ROWS, ROWS[:1]), Task("doubles", ROWS[:1], ROWS)], rounds=2)
    run = describe_run(resolved, sequence, ["contrl", "run", "my.yaml"], 2)
    assert run["sequence"] == ["sums", "doubles"]
    assert [(stage["stage"], stage["task"], stage["round"]) for stage in run["stages"]] == [
        (1, "sums", 1),
        (2, "doubles", 1),
        (3, "sums", 2),
        (4, "doubles", 2),
    ]
    assert [stage["folder"] for stage in run["stages"]][2] == "stages/3-sums"
    assert (run["method"], run["strategies"], run["seed"], run["processes"]) == ("rloo", ["replay"], 5, 2)
    assert run["command"] == ["contrl", "run", "my.yaml"]
    assert run["digest"] == resolved.digest
    assert (run["status"], run["contrl"], run["versions"]["torch"]) == ("running", __version__, version("torch"))
    assert run["hardware"]["cores"] > 0
    assert json.loads(json.dumps(run)) == run, "everything in it can be written"


def test_no_strategy_is_naive(runs: Runs) -> None:
    resolved = load(runs.config(), resolve=find)
    run = describe_run(resolved, TaskSequence.in_order([Task("sums", ROWS, ROWS)]), [], 1)
    assert run["strategies"] == ["naive"]


def test_rows_are_told_apart_by_content_and_order() -> None:
    def described(*rows: dict[str, str]) -> dict[str, object]:
        return describe_data(TaskSequence.in_order([Task("sums", list(rows), ROWS)]))["sums"]

    first = described(*ROWS)
    assert (first["train"], first["eval"]) == (2, 2)
    assert described(*ROWS) == first
    assert described(*ROWS[::-1]) != first
    assert described({**ROWS[0], "prompt": "A"}, ROWS[1]) != first
