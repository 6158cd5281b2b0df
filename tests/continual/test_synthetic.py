"""The two sequences that run anywhere: found by name, without noise; and a preference that flips is measurable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.config import load
from contrl.continual.results import read
from contrl.experiment import build_tasks, find
from contrl.interfaces import LIKELIHOOD
from contrl.rewards.rules import exact_match
from tests.runs import Runs


def tasks_of(tasks: dict[str, Any], method: str = "sft") -> tuple[list[Any], list[str]]:
    said: list[str] = []
    config = {"output_dir": "o", "model": "tiny", "method": method, "tasks": tasks}
    return build_tasks(load(config, resolve=find).config, said.append), said


def test_tables_and_rules_are_judged_by_generation() -> None:
    """The rows of a table are judged as they were taught, and nobody is warned of that."""
    tasks, said = tasks_of({"name": "tables_and_rules", "train_size": 50, "eval_size": 10})
    assert [task.name for task in tasks] == ["table_a", "table_b", "reverse", "shift", "sort"]
    assert {task.metric.name for task in tasks} == {"exact_match"}
    assert {task.reward for task in tasks} == {exact_match}
    assert [(len(task.train), len(task.eval)) for task in tasks] == [(64, 64)] * 2 + [(50, 10)] * 3
    assert list(tasks[0].train) == list(tasks[0].eval)
    assert said == []


def test_as_pairs_they_are_judged_by_the_method() -> None:
    tasks, said = tasks_of({"name": "tables_and_rules", "pairs": True, "names": ["sort", "copy"]}, "dpo")
    assert [task.name for task in tasks] == ["sort", "copy"]
    assert {task.metric for task in tasks} == {LIKELIHOOD}
    assert said == []


@pytest.mark.parametrize("method", ["dpo", "cpo", "orpo", "kto", "reward", "sft"])
def test_every_preference_method_takes_opposite_preferences(method: str) -> None:
    tasks, said = tasks_of({"name": "opposite_preferences", "train_size": 6, "eval_size": 4}, method)
    assert [task.name for task in tasks] == ["longer", "shorter", "yes_first", "no_first"]
    assert {len(task.train) for task in tasks} == {12 if method == "kto" else 6}
    assert said == []


def scores(run: Path) -> list[list[float]]:
    return [[cell.value for cell in row] for row in read(run).matrix]


def test_a_flip_makes_the_earlier_task_fall(runs: Runs) -> None:
    """Learning shorter right after longer undoes longer: from nearly all pairs to nearly none."""
    tasks = {"name": "opposite_preferences", "names": ["longer", "shorter"], "train_size": 60, "eval_size": 20}
    training = {"max_steps": 12, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    config = runs.config(tasks=tasks, method={"name": "dpo"}, prompts_per_step=8, training=training)
    run = runs.start(config)
    start, longer, shorter = scores(run)
    assert start == [0.5, 0.5]
    assert longer[0] > 0.9
    assert shorter[0] < 0.1
    assert shorter[1] > 0.9
    data = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (data["order"], data["order_seed"], data["sequence"]) == ("given", 0, ["longer", "shorter"])


def test_tasks_of_one_stage_are_learnt_together_and_a_probe_is_judged(runs: Runs) -> None:
    """Two tasks in a stage under an adapter-free dpo with replay, then a third; the fourth is in no stage."""
    tasks = {"name": "opposite_preferences", "train_size": 8, "eval_size": 4}
    changes = {"method": {"name": "dpo"}, "strategies": ["replay"], "training": {"max_steps": 2, "save_steps": 1}}
    run = runs(
        "shared", tasks=tasks, stages=[["longer", "yes_first"], ["shorter"]], order="reversed", rounds=2, **changes
    )
    data = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (data["order"], data["sequence"]) == ("reversed", ["shorter", "longer", "yes_first", "no_first"])
    assert [(stage["tasks"], stage["round"], stage["folder"]) for stage in data["stages"]] == [
        (["shorter"], 1, "stages/1-shorter"),
        (["longer", "yes_first"], 1, "stages/2-longer+yes_first"),
        (["shorter"], 2, "stages/3-shorter"),
        (["longer", "yes_first"], 2, "stages/4-longer+yes_first"),
    ]
    results = read(run)
    assert [len(row) for row in results.matrix] == [4] * 5
    assert {cell.n for row in results.matrix for cell in row} == {4}
    metrics = json.loads((run / "results.json").read_text(encoding="utf-8"))["metrics"]
    assert all(metrics[name]["value"] is not None for name in ("average", "forgetting"))
    assert "judged   no_first: in no stage, so never learnt" in runs.text
