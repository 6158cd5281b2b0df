"""What a run does with its folder: finished, different, foreign, moved, and what it says before it begins."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from contrl import faults, launch
from contrl.config import load
from contrl.errors import EnvironmentFault, UserError
from contrl.experiment import find
from contrl.launch import Options, resume
from tests import runs as small
from tests.plugins import weights_hash
from tests.runs import Runs, events, lora, remains, weights

world, runs = small.world, small.runs

QUICK: Mapping[str, Any] = {"method": "sft", "training": {"max_steps": 2}, "evaluation": {"num_items": 2}}
"""Changes that make the standard run shorter."""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its time of change and size."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- finished, different, foreign ---------------------------------------------------------------------


def test_a_finished_run_is_left_alone(runs: Runs) -> None:
    run = runs(**QUICK)
    before = snapshot(run)
    runs.said.clear()
    assert runs(**QUICK) == run
    assert snapshot(run) == before
    assert runs.text == f"this run is finished: {run}"


def test_another_configuration_is_refused_with_the_difference(runs: Runs) -> None:
    run = runs(**QUICK)
    before = snapshot(run)
    with pytest.raises(UserError, match=r"holds a run with another configuration") as caught:
        runs(**QUICK, seed=3, strategies=["replay"])
    assert "seed: 0 -> 3" in str(caught.value)
    assert "strategies.0.name: (not set) -> replay" in str(caught.value)
    assert "--overwrite_output_dir" in str(caught.value)
    assert caught.value.exit_code == 2
    assert snapshot(run) == before


def test_overwriting_deletes_the_other_run(runs: Runs) -> None:
    config = runs.config(**QUICK)
    run = runs.start(config)
    (run / "old.txt").touch()
    one_task = {**config, "tasks": config["tasks"][:1]}
    assert runs.start(one_task, overwrite=True) == run
    assert sorted(path.name for path in (run / "stages").iterdir()) == ["1-sums"]
    assert not (run / "old.txt").exists()
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["sequence"] == ["sums"]


def test_nothing_is_deleted_for_a_configuration_that_cannot_run(runs: Runs) -> None:
    config = runs.config(**QUICK)
    run = runs.start(config)
    before = snapshot(run)
    without_reward = [{key: value for key, value in task.items() if key != "reward"} for task in config["tasks"]]
    with pytest.raises(UserError, match="rloo needs a reward"):
        runs.start({**config, "method": "rloo", "tasks": without_reward}, overwrite=True)
    assert snapshot(run) == before


def test_the_same_configuration_is_continued_even_where_overwriting_is_allowed(runs: Runs) -> None:
    """A killed command is repeated as it was given, and must not throw away what it had."""
    config = runs.config(**QUICK)
    faults.arm("between_stages", 1)
    with pytest.raises(faults.Killed):
        runs.start(config, overwrite=True)
    run = runs.start(config, overwrite=True)
    assert [event["stage"] for event in events(run, "started")] == [1, 2]


def test_a_foreign_folder_is_refused(runs: Runs) -> None:
    foreign = runs.folder / "run"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("everything", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no run"):
            runs.start(runs.config(**QUICK), overwrite=overwrite)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_an_output_dir_that_is_a_file_is_refused(runs: Runs) -> None:
    (runs.folder / "run").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        runs(**QUICK)
    with pytest.raises(EnvironmentFault, match="cannot write to"):
        runs("run/inside", **QUICK)


def test_a_run_killed_in_its_first_moment_starts(runs: Runs) -> None:
    """The configuration is there, the manifest half written: not a foreign folder."""
    config = runs.config(**QUICK)
    folder = runs.folder / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(load(config, resolve=find).text, encoding="utf-8")
    (folder / ".run.json.7.tmp").write_text("{", encoding="utf-8")
    run = resume(folder, Options(say=runs.said.append))
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert not list(run.glob(".*"))


def test_a_run_does_not_continue_with_other_rows(runs: Runs) -> None:
    config = runs.config(**QUICK)
    rows = shutil.copy(runs.world / "sums.jsonl", runs.folder / "mine.jsonl")
    config["tasks"][0]["data"] = str(rows)
    faults.arm("between_stages", 1)
    with pytest.raises(faults.Killed):
        runs.start(config)
    lines = Path(rows).read_text(encoding="utf-8").splitlines()
    Path(rows).write_text("\n".join([lines[1], lines[0], *lines[2:]]), encoding="utf-8")
    with pytest.raises(UserError, match="the rows of sums are not those this run began with"):
        runs.start(config)


def test_resume_needs_a_run(runs: Runs) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        resume(runs.folder / "nothing", Options())


def test_resume_works_from_another_folder(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of data and model are absolute in the stored configuration."""
    config = {**runs.config(**QUICK), "model": os.path.relpath(runs.world / "model", runs.folder)}
    for task in config["tasks"]:
        task["data"] = os.path.relpath(task["data"], runs.folder)
    faults.arm("between_stages", 1)
    with pytest.raises(faults.Killed):
        runs.start({**config, "output_dir": "run"})
    (runs.folder / "elsewhere").mkdir()
    monkeypatch.chdir(runs.folder / "elsewhere")
    runs.said.clear()
    run = resume(Path("../run"), Options(say=runs.said.append))
    assert [event["stage"] for event in events(run, "started")] == [1, 2]
    assert runs.said[0] == "config   ../run/config.yaml", "the whole configuration is not told again"


# --- models -------------------------------------------------------------------------------------------


def test_a_finished_run_a_stage_and_a_checkpoint_serve_as_model(runs: Runs) -> None:
    """And the run says which weights it took."""
    run = runs("first", **QUICK | {"training": {"max_steps": 2, "save_steps": 1}})
    stage = run / "stages" / "1-sums"
    for number, (model, taken) in enumerate(
        [
            (run, run),
            (stage, stage / "final"),
            (stage / "checkpoint-1", stage / "checkpoint-1"),
        ]
    ):
        runs.said.clear()
        after = runs(
            f"next-{number}", **QUICK | {"model": str(model), "training": {"learning_rate": 0, "max_steps": 1}}
        )
        assert f"weights  {taken}" in runs.said
        given, kept = (weights_hash(AutoModelForCausalLM.from_pretrained(folder)) for folder in (taken, after))
        assert kept == given


def test_an_unfinished_run_serves_with_its_newest_weights(runs: Runs) -> None:
    config = runs.config("first", **QUICK)
    faults.arm("training", 3)
    with pytest.raises(faults.Killed):
        runs.start(config)
    runs("next", **QUICK | {"model": str(runs.folder / "first"), "training": {"max_steps": 1}})
    assert f"weights  {runs.folder / 'first' / 'stages' / '1-sums' / 'final'}" in runs.said


def test_a_moved_lora_run_still_loads(runs: Runs) -> None:
    """The embedded model is kept in the run's base/; the adapter's path to it is wrong after the move."""
    run = runs("first", **QUICK | {"model": {"name_or_path": "tiny", "use_peft": True, "lora_r": 2}})
    where = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert Path(where) == run / "base"
    moved = run.rename(runs.folder / "moved")
    runs.said.clear()
    after = runs(
        "next",
        **QUICK
        | {"model": {"name_or_path": str(moved), "use_peft": True}, "training": {"learning_rate": 0, "max_steps": 1}},
    )
    assert f"weights  {moved}, its adapter continued" in runs.said
    assert weights(after) == weights(moved)
    stored = json.loads((after / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert Path(stored) == moved / "base", "where it was found, not where it once was"


def test_a_lora_run_on_a_relative_model_folder_loads_from_anywhere(runs: Runs) -> None:
    relative = os.path.relpath(runs.world / "model", runs.folder)
    run = runs(**QUICK | {"model": {**lora(runs.world), "name_or_path": relative}})
    stored = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert Path(stored) == runs.world / "model"


# --- what is told first -------------------------------------------------------------------------------


def test_a_dry_run_tells_everything_and_writes_nothing(runs: Runs) -> None:
    before = snapshot(runs.folder)
    runs.start(runs.config(strategies=["replay"]), dry_run=True)
    assert snapshot(runs.folder) == before
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in runs.text.splitlines()}
    assert lines["training.learning_rate"] == "= 0.003 configuration"
    assert lines["strategies.0.share"] == "= 0.5 default"
    assert lines["batch"] == "4 prompts x 3 samples = 12 completions a step"
    assert lines["steps"] == "8 in 2 stages (4, 4)"
    # An embedding of 100 x 32, two layers of (4 x 32 x 32 + 3 x 32 x 64 + 2 x 32), a last norm of 32.
    assert lines["model"] == f"{3200 + 2 * (4096 + 6144 + 64) + 32:,} parameters, 23,840 trained"
    assert {"time", "memory", "disk"} <= set(lines)


def test_the_first_lines_of_a_run_are_every_value_with_its_origin(runs: Runs) -> None:
    runs(**QUICK)
    told = {line.split()[0]: " ".join(line.split()[1:]) for line in runs.said[0].splitlines()}
    assert told["training.max_steps"].endswith("configuration")
    assert told["tokens_per_pass"].endswith("default")


def test_a_run_that_does_not_fit_on_the_disk_is_refused(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 x 23,840 weights of 4 bytes a checkpoint; 4 checkpoints stay, one more and one in the making: over 1 MB."""
    usage = shutil.disk_usage(runs.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(EnvironmentFault, match=r"the run needs 2 MB of disk and 1 MB are free") as caught:
        runs()
    assert caught.value.exit_code == 4
    assert not (runs.folder / "run").exists()
    runs(training={"save_total_limit": 0, "max_steps": 2}, method="sft")


def test_an_interrupted_run_needs_only_the_rest_of_its_disk(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it already wrote lies there."""
    faults.arm("between_stages", 1)
    with pytest.raises(faults.Killed):
        runs()
    usage = shutil.disk_usage(runs.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_250_000))
    run = runs()
    assert remains(run)["scores"]


def test_what_judges_came_to_is_told_once_and_kept() -> None:
    """Two tasks with one judge: one line, and one entry for run.json. A rule has nothing to tell."""

    def judge(**columns: Any) -> list[float]:
        return []

    def rule(**columns: Any) -> list[float]:
        return []

    judge.stats = "7 calls, 3 of them from the cache"  # type: ignore[attr-defined]
    tasks = [SimpleNamespace(reward=reward) for reward in (judge, judge, rule, None)]
    said: list[str] = []
    plan: Any = SimpleNamespace(sequence=SimpleNamespace(tasks=tasks))
    assert launch._tell_judges(plan, said.append) == {"judge": "7 calls, 3 of them from the cache"}
    assert said == ["judge: 7 calls, 3 of them from the cache"]
