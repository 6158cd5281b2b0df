"""Saved weights judged afterwards: the numbers that training logged, whoever trained them and wherever they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from contrl import faults
from contrl.cli.main import main
from contrl.continual.records import read_manifest, read_records
from contrl.faults import Killed
from contrl.report.page import build
from tests.runs import LORA, Runs, lora, scores

pytestmark = pytest.mark.usefixtures("no_page")

JUDGED = "tests.plugins:JudgedAverage"
PLAIN_LORA = {**LORA, "lora_dropout": 0.0}


def evaluate(*words: str | Path) -> int:
    return main(["evaluate-checkpoints", *map(str, words)])


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def answers(run: Path) -> dict[str, Any]:
    """Every judged item of the matrix."""
    files = sorted(path for path in (run / "eval").glob("*.parquet") if "@" not in path.name)
    return {path.name: parquet.read_table(path).to_pylist() for path in files}


def pairs(folder: Path) -> Path:
    """A continual file of two tasks that want opposite things; seven and five rows to judge by."""
    tasks = []
    for name, wants_more, held_out in (("less", False, 7), ("more", True, 5)):
        rows = []
        for i in range(8 + held_out):
            smaller, larger = f"{i} is it", f"{i + 1} is it then"
            chosen, rejected = (larger, smaller) if wants_more else (smaller, larger)
            rows.append({"prompt": f"{i % 7}?", "chosen": chosen, "rejected": rejected})
        about = {"domain": {name: {}}, "objective": "", "preference": name}
        tasks.append({"task": about, "train": rows[:8], "test": rows[8:]})
    path = folder / "tasks.json"
    path.write_text(json.dumps({"datasets": tasks}), encoding="utf-8")
    return path


def dpo(runs: Runs, *, adapter: bool) -> dict[str, Any]:
    return {
        "tasks": {"name": "dataset", "path": str(pairs(runs.folder))},
        "model": {"name_or_path": str(runs.world / "model"), **(PLAIN_LORA if adapter else {})},
        "method": "dpo",
        "training": {"learning_rate": 1e-2, "save_steps": 2},
    }


def change(folder: Path, **settings: Any) -> None:
    """Other settings of an adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def sft(runs: Runs, **training: Any) -> dict[str, Any]:
    """Two tasks without a reward, judged by their own answers, and a strategy that judges an average."""
    tasks = [{"name": n, "data": str(runs.world / f"{n}.jsonl"), "eval_size": 4} for n in ("sums", "doubles")]
    return {"tasks": tasks, "method": "sft", "strategies": [JUDGED], "training": {"learning_rate": 1e-3, **training}}


# --- a run of ours --------------------------------------------------------------------------------------------

FILLED = {
    "sft-average": {},
    "rloo-lora": {"lora": True},
    "rloo": {},
    "dpo": {"dpo": True},
    "dpo-lora": {"dpo": True, "lora": True},
}


@pytest.mark.parametrize("case", [c if c == "sft-average" else pytest.param(c, marks=pytest.mark.slow) for c in FILLED])
def test_a_run_that_judged_nothing_gets_the_numbers_of_training(case: str, runs: Runs) -> None:
    """In its own folder, row 0 included: scores, items and results of the run that judged as it went."""
    changes: dict[str, Any] = dict(FILLED[case])
    adapter = changes.pop("lora", False)
    if changes.pop("dpo", False):
        changes = dpo(runs, adapter=adapter)
    elif case == "sft-average":
        changes = sft(runs)
    elif adapter:
        changes["model"] = lora(runs.world)
    changes["training"] = {"learning_rate": 1e-2, "max_steps": 2, "save_strategy": "no"}
    whole = runs("whole", **changes)
    late = runs("late", **changes, evaluation={"max_new_tokens": 6, "tasks": "none"})
    assert not scores(late)
    assert not answers(late)
    assert not any(cell for row in results(late)["matrix"] for cell in row)
    assert evaluate(late) == 0
    assert scores(late) == scores(whole)
    assert answers(late) == answers(whole)
    assert results(late) == results(whole)
    before = (late / "scores.jsonl").read_bytes()
    assert evaluate(late) == 0
    assert (late / "scores.jsonl").read_bytes() == before


def test_checkpoints_within_a_stage_are_judged_beside_the_matrix(runs: Runs) -> None:
    """By the strategies' state that they saved; the last one is the end of the stage and has its numbers."""
    run = runs(**sft(runs, max_steps=4, save_steps=2, save_total_limit=3))
    before = scores(run), results(run)
    assert evaluate(run) == 0
    assert (scores(run), results(run)) == before
    records = read_records(run / "checkpoints.jsonl", ("stage", "step", "task", "metric"))
    found = {(r["stage"], r["step"], r["task"]): r["value"] for r in records}
    assert set(found) == {(k, step, task) for k in (1, 2) for step in (2, 4) for task in ("sums", "doubles")}
    for stage in (1, 2):
        for task in ("sums", "doubles"):
            assert found[stage, 4, task] == before[0][stage, task, "logp"][0]
            assert found[stage, 4, task] != found[stage, 2, task]


def test_other_rows_go_into_a_folder_of_their_own(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is not touched; its own configuration, method and strategies judge; rows have no task of these data."""
    run = runs(**sft(runs, max_steps=1))
    data = runs.folder / "others.jsonl"
    shutil.copy(runs.world / "sums.jsonl", data)
    before = (run / "scores.jsonl").read_bytes()
    words = ("--dataset_name", data, "--eval_size", 3, "--learning_rate", 0, "--bf16")
    assert evaluate(run, *words, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "without effect, since nothing is trained here: --bf16, --learning_rate" in said
    assert "3 models: 9 rows with their own answers" in said
    assert "row 2    stages/2-doubles/final (trained nothing of these tasks)" in said
    assert not (runs.folder / "run-eval").exists()
    assert evaluate(run, *words) == 0
    assert (run / "scores.jsonl").read_bytes() == before
    found = results(runs.folder / "run-eval")
    assert found["rows"] == ["start", "1-sums", "2-doubles"]
    assert found["trained"] == [[], [], []]
    assert found["tasks"] == ["others"]
    assert all(cell["n"] == 3 for row in found["matrix"] for cell in row)


# --- made elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_aif_gen_s_folders_give_what_training_logged(
    adapter: bool, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """AIF-Gen measured the base under LoRA and left the last batch out: the weights are the checkpoint's, n is whole.

    Killed in the middle and repeated, the command judges only what is missing.
    """
    run = runs("run", **dpo(runs, adapter=adapter))
    made = runs.folder / "elsewhere"
    stages = sorted((run / "stages").iterdir())
    for source, target in (
        (stages[0] / "checkpoint-2", "dataset-0/checkpoint-1000"),
        (stages[0] / "checkpoint-2", "dataset-0/checkpoint-50"),
        (stages[0] / "final", "dataset-0/last"),
        (stages[1] / "checkpoint-2", "dataset-1/checkpoint-50"),
        (stages[1] / "final", "dataset-1/checkpoint-1000"),
    ):
        shutil.copytree(source, made / target)
    words: tuple[Any, ...] = (
        *("--checkpoint_dir", made, "--dataset_name", runs.folder / "tasks.json"),
        *("--model_name_or_path", runs.world / "model", "--output_dir", runs.folder / "out"),
        *("--learning_rate", 0, "--use_peft", "--lora_r", 32, "--response_length", 6),
    )
    faults.arm("evaluation", 6)
    with pytest.raises(Killed):
        evaluate(*words)
    half = (runs.folder / "out" / "scores.jsonl").read_bytes()
    assert evaluate(*words) == 0
    out = runs.folder / "out"
    assert (out / "scores.jsonl").read_bytes().startswith(half)
    assert scores(out) == scores(run)
    assert answers(out) == answers(run)
    assert {n for _, n, _ in scores(out).values()} == {7, 5}
    assert scores(out)[1, "0-less", "accuracy"] != scores(out)[0, "0-less", "accuracy"]
    assert results(out)["matrix"] == results(run)["matrix"]
    assert results(out)["metrics"] == results(run)["metrics"]
    within = read_records(out / "checkpoints.jsonl", ("stage", "step", "task", "metric"))
    assert [(r["stage"], r["step"]) for r in within[::2]] == [(1, 50), (1, 1000), (2, 50)]
    manifest = read_manifest(out)
    assert manifest["kind"] == "evaluation"
    assert [row["folder"] for row in manifest["stages"]] == ["dataset-0/last", "dataset-1/checkpoint-1000"]
    capsys.readouterr()
    assert main(["resume", str(out)]) == 2
    assert "holds an evaluation of checkpoints and no run" in capsys.readouterr().err
    if adapter:
        change(made / "dataset-1" / "checkpoint-50", lora_alpha=99)
        assert evaluate(*words, "--overwrite_output_dir") == 2
        assert "another kind of adapter" in capsys.readouterr().err
        for path in made.glob("dataset-*/*"):
            change(path, lora_alpha=32, base_model_name_or_path=str(runs.folder / "gone"))
        assert evaluate(made, "--dataset_name", runs.folder / "tasks.json") == 2
        assert "is no folder on this machine" in capsys.readouterr().err


def test_plain_checkpoints_are_rows_judged_by_a_reward(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing says which task they were trained on: there is an average and no forgetting."""
    run = runs(training={"max_steps": 2})
    made = runs.folder / "elsewhere"
    for stage, step in ((1, 50), (2, 1000)):
        (source,) = (run / "stages").glob(f"{stage}-*/final")
        shutil.copytree(source, made / f"checkpoint-{step}")
    words: tuple[Any, ...] = (
        *(made, "--dataset_name", runs.world / "sums.jsonl", "--eval_size", 4, "--method", "sft"),
        *("--model_name_or_path", runs.world / "model", "--reward_funcs", "tests.plugins.digits"),
        *("--response_length", 6),
    )
    assert evaluate(*words) == 0
    out = runs.folder / "elsewhere-eval"
    found = results(out)
    assert found["rows"] == ["start", "1-checkpoint-50", "2-checkpoint-1000"]
    assert found["trained"] == [[], [], []]
    assert found["metrics"]["average"]["value"] is not None
    assert found["metrics"]["forgetting"]["value"] is None
    # The page, too, of rows without tasks.
    assert "checkpoint-1000" in build(out).read_text(encoding="utf-8")
    trained = {stage: value for (stage, task, _), value in scores(run).items() if task == "sums"}
    assert {stage: value for (stage, _, _), value in scores(out).items()} == trained
    # Other weights under the same name are not mixed with what was judged before.
    capsys.readouterr()
    shutil.copytree(made / "checkpoint-50", made / "checkpoint-1000", dirs_exist_ok=True)
    assert evaluate(*words) == 2
    assert "have changed since they were judged" in capsys.readouterr().err


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_words(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    model, made = runs.world / "model", runs.folder / "made"
    shutil.copytree(model, made / "dataset-3" / "last")
    other = runs.folder / "other"
    shutil.copytree(model, other / "checkpoint-1")
    data = ("--dataset_name", pairs(runs.folder))
    base = ("--model_name_or_path", model)
    rows = runs.world / "sums.jsonl"

    def error(*words: Any) -> str:
        assert evaluate(*words) == 2, words
        return capsys.readouterr().err

    assert "needs --checkpoint_dir" in error()
    assert "there is no folder" in error("nowhere", *data, *base)
    assert "needs --dataset_name" in error(other, *base)
    assert "needs --model_name_or_path" in error(other, *data)
    assert "no rows to judge sums by" in error(other, "--dataset_name", rows, *base, "--method", "sft")
    assert "belongs to task 3, counted from 0, and the data have 2 tasks" in error(made, *data, *base)
    assert "--method rloo" in error(other, *data, *base, "--method", "rloo")
    assert "did you mean --checkpoint_dir?" in error("--checkpoint_dr", other, *data, *base)
    assert "--checkpoints some" in error(other, *data, *base, "--checkpoints", "some")
    assert "do not fit the model" in error(other, *data, "--model_name_or_path", "tiny", "--output_dir", "x")
