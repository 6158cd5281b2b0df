"""The stage loop: what crosses a task boundary, what evaluation records, which checkpoints stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrl.config import load
from contrl.continual.records import read_records
from contrl.errors import UserError
from contrl.evaluation.scores import Settings, evaluate_task
from contrl.experiment import build_tasks, find
from tests.plugins import weights_hash
from tests.runs import AVERAGE, DIARY, REPLAY, Runs, lora, metric, remains, scores, weights

TASKS = ("sums", "doubles")


def diary(folder: Path, event: str) -> list[dict[str, Any]]:
    """What the Diary strategy wrote about an event."""
    lines = (folder / "diary.jsonl").read_text(encoding="utf-8").splitlines()
    return [fact for line in lines if (fact := json.loads(line))["event"] == event]


# --- the chain of weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_a_stage_starts_where_the_one_before_ended(runs: Runs, use_peft: bool) -> None:
    """Bit for bit, and what is saved is what was there; an adapter is continued, not begun anew."""
    changes: dict[str, Any] = {"model": lora(runs.world)} if use_peft else {}
    run = runs(strategies=[DIARY], rounds=2, **changes)
    starts = {fact["stage"]: fact["weights"] for fact in diary(runs.folder, "start")}
    ends = {fact["stage"]: fact["weights"] for fact in diary(runs.folder, "end")}
    assert [starts[stage + 1] for stage in (1, 2, 3)] == [ends[stage] for stage in (1, 2, 3)]
    assert len(set(ends.values())) == 4, "every stage learns something"
    # What stands in final/ is the end of the stage, read by a library that knows nothing of contrl.
    reader = AutoPeftModelForCausalLM if use_peft else AutoModelForCausalLM
    for stage, name in enumerate(2 * TASKS, start=1):
        saved = reader.from_pretrained(run / "stages" / f"{stage}-{name}" / "final", dtype=torch.float32)
        for parameter_name, parameter in saved.named_parameters():
            parameter.requires_grad_("lora_" in parameter_name or not use_peft)
        assert weights_hash(saved) == ends[stage]


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_a_reloaded_stage_scores_what_was_recorded(runs: Runs, use_peft: bool) -> None:
    changes: dict[str, Any] = {"model": lora(runs.world)} if use_peft else {}
    config = runs.config(training={"learning_rate": 3e-2}, **changes)
    run = runs.start(config)
    tasks = build_tasks(load(config, resolve=find).config)
    recorded = scores(run)
    for stage, name in enumerate(TASKS, start=1):
        folder = run / "stages" / f"{stage}-{name}" / "final"
        reader = AutoPeftModelForCausalLM if use_peft else AutoModelForCausalLM
        model = reader.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for task in tasks:
            again = evaluate_task(model, tokenizer, task, Settings(max_new_tokens=6))
            assert (again.value, again.n, again.se) == recorded[stage, task.name, "digits"]
    assert len({value for value, _, _ in recorded.values()}) > 1, "what is scored makes a difference"


def test_a_finished_run_is_a_model_folder(runs: Runs) -> None:
    """In ``final/`` and in the folder itself, as hard links to the last stage's files."""
    run = runs()
    last = run / "stages" / "2-doubles" / "final"
    for place in (run, run / "final"):
        assert (place / "model.safetensors").samefile(last / "model.safetensors")
        assert (
            AutoTokenizer.from_pretrained(place)("1")["input_ids"] == AutoTokenizer.from_pretrained(last)("1").input_ids
        )
        assert weights_hash(AutoModelForCausalLM.from_pretrained(place)) == weights_hash(
            AutoModelForCausalLM.from_pretrained(last)
        )
        assert not list(place.glob("strategy*")), "the strategies' state is no part of the model"


# --- what changes nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rloo", pytest.param("sft", marks=pytest.mark.slow)])
def test_learning_rate_zero_changes_nothing(runs: Runs, method: str) -> None:
    """All weights bit-equal to the base, and every row of the matrix equal to row 0."""
    changes: dict[str, Any] = {"method": "sft"} if method == "sft" else {}
    run = runs(training={"learning_rate": 0.0, "weight_decay": 0.1}, **changes)
    stages = [weights(run / "stages" / f"{stage}-{name}" / "final") for stage, name in enumerate(TASKS, start=1)]
    assert stages[0] == stages[1] == weights(run)
    base = AutoModelForCausalLM.from_pretrained(runs.world / "model")
    assert weights_hash(AutoModelForCausalLM.from_pretrained(run)) == weights_hash(base)
    rows = json.loads((run / "results.json").read_text(encoding="utf-8"))["matrix"]
    assert rows[0] == rows[1] == rows[2]
    assert all(cell["n"] == 4 and cell["value"] > 0 for cell in rows[0])
    changes_of_weights = read_records(run / "weights.jsonl", ("stage", "tensor"))
    assert {change["from_start"] for change in changes_of_weights} == {0.0}


IDLE = ["naive", "tests.plugins:Idle", {"name": "replay", "share": 0}]


@pytest.mark.parametrize(
    ("method", "strategies"),
    [
        ("rloo", ["naive"]),
        pytest.param("rloo", IDLE, marks=pytest.mark.slow),
        pytest.param("sft", IDLE, marks=pytest.mark.slow),
    ],
)
def test_a_strategy_that_does_nothing_changes_nothing(runs: Runs, method: str, strategies: list[Any]) -> None:
    changes: dict[str, Any] = {"method": "sft"} if method == "sft" else {}
    without = remains(runs("without", strategies=[], **changes))
    found = remains(runs("with", strategies=strategies, **changes))
    for what in ("weights", "scores", "answers", "losses"):
        assert found[what] == without[what], what


# --- replay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rloo", pytest.param("sft", marks=pytest.mark.slow)])
def test_replay_trains_as_many_rows_of_the_current_task_as_naive(runs: Runs, method: str) -> None:
    changes: dict[str, Any] = {"method": "sft"} if method == "sft" else {}
    run = runs(strategies=[REPLAY, DIARY], **changes)
    steps = diary(runs.folder, "step")
    assert [len(step["current"]) for step in steps] == [4] * 8
    assert [len(step["replayed"]) for step in steps] == [0] * 4 + [2] * 4, "half of four rows, from stage 2 on"
    assert all(row.startswith("sums/") for step in steps for row in step["replayed"])
    assert all(row.startswith("doubles/") for step in steps[4:] for row in step["current"])
    # The buffer holds five train rows, and none that is judged by.
    state = json.loads((run / "stages" / "2-doubles" / "final" / "strategy.json").read_text(encoding="utf-8"))
    kept = state["replay"]["memory"]
    tasks = {task.name: task for task in build_tasks(load(runs.config(), resolve=find).config)}
    for name in TASKS:
        judged = {str(row["id"]) for row in tasks[name].eval}
        assert len(kept[name]) == 5
        assert len(judged) == 4
        assert not judged & set(kept[name])
    drawn = {row.partition("/")[2] for step in steps for row in step["replayed"]}
    assert drawn <= set(kept["sums"])


# --- evaluation, logs ---------------------------------------------------------------------------------


def test_every_task_is_evaluated_before_and_after_every_stage(runs: Runs) -> None:
    run = runs()
    assert sorted(scores(run)) == [(stage, name, "digits") for stage in (0, 1, 2) for name in sorted(TASKS)]
    lines = [line for line in runs.said if line.startswith(("at the start: ", "after stage "))]
    assert [line.partition(":")[0] for line in lines] == ["at the start", "after stage 1", "after stage 2"]
    value = scores(run)[2, "doubles", "digits"][0]
    assert f"doubles {value:.2f}" in lines[2]


def test_without_the_first_evaluation_row_0_is_missing_and_not_zero(runs: Runs) -> None:
    run = runs(evaluation={"max_new_tokens": 6, "at_start": False})
    assert {stage for stage, _, _ in scores(run)} == {1, 2}
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["matrix"][0] == [None, None]


def test_metrics_are_one_record_a_number(runs: Runs) -> None:
    run = runs()
    assert [line for line in runs.said if line.startswith("device ")] == [
        "device   cpu, float32, gradient checkpointing off"
    ]
    assert not [line for line in runs.said if line.startswith("layout ")]
    assert sorted(metric(run, "reward")) == [(stage, step) for stage in (1, 2) for step in (1, 2, 3, 4)]
    records = read_records(run / "metrics.jsonl", ("stage", "step", "task", "name"))
    assert {record["task"] for record in records} == set(TASKS)
    assert metric(run, "learning_rate")[1, 1] == pytest.approx(3e-3)


def test_a_slower_layout_is_told_with_its_reason(runs: Runs) -> None:
    runs(training={"gradient_checkpointing": True, "max_steps": 1})
    assert "device   cpu, float32, gradient checkpointing on" in runs.said
    (line,) = {line for line in runs.said if line.startswith("layout ")}
    assert "a prompt is run once for each completion: " in line
    assert "checkpointing" in line


# --- checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "kept"),
    [
        pytest.param({"save_steps": 2, "max_steps": 5}, [2, 4], marks=pytest.mark.slow),
        ({"save_steps": 1, "max_steps": 5, "save_total_limit": 2}, [4, 5]),
        pytest.param({"save_strategy": "no"}, [], marks=pytest.mark.slow),
        pytest.param({"save_strategy": "epoch", "max_steps": 5}, [2, 4], marks=pytest.mark.slow),
        pytest.param({"save_steps": 0.5, "max_steps": 5}, [3], marks=pytest.mark.slow),
    ],
)
def test_checkpoints_stay_as_the_user_asked(runs: Runs, training: dict[str, Any], kept: list[int]) -> None:
    """In each stage: multiples of save_steps (a share of 5 steps, 0.5, is every 3), and at most the limit."""
    run = runs(method="sft", training=training, evaluation={"num_items": 1, "at_start": False})
    for stage, name in enumerate(TASKS, start=1):
        folder = run / "stages" / f"{stage}-{name}"
        assert sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")) == kept


def test_a_window_is_not_continued_by_another_number_of_processes(runs: Runs) -> None:
    """Its rollouts lie in the checkpoint, one file a process; here two files and one process."""
    from contrl import faults

    config = runs.config(method={**runs.config()["method"], "num_minibatches": 2}, training={"save_steps": 1})
    faults.arm("training", 2)
    with pytest.raises(faults.Killed):
        runs.start(config)
    (checkpoint,) = (runs.folder / "run").glob("stages/1-sums/checkpoint-1")
    (checkpoint / "window-1.json").write_bytes((checkpoint / "window-0.json").read_bytes())
    with pytest.raises(UserError, match="saved by 2 processes, and there are 1 now"):
        runs.start(config)


def test_average_strategy_of_the_tests_is_saved_with_the_stage(runs: Runs) -> None:
    """Its tensors are safetensors, the number JSON: four moves a stage."""
    run = runs(strategies=[AVERAGE], method="sft")
    moves = []
    for stage, name in enumerate(TASKS, start=1):
        state = json.loads((run / "stages" / f"{stage}-{name}" / "final" / "strategy.json").read_text(encoding="utf-8"))
        moves.append(state["moves"])
    assert moves == [4, 8]
