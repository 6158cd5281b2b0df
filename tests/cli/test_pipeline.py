"""`contrl run` of a pipeline: steps by flags and as whole experiments, their mistakes, kills and repeats."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from contrl import faults
from contrl.cli.main import main
from contrl.cli.steps import Steps, check
from contrl.errors import ConfigErrors
from contrl.pipeline.reading import read
from contrl.pipeline.steps import Step
from tests.runs import Runs, contrl, environment, remains, sha, weights, write_config


def pipeline(runs: Runs) -> dict[str, Any]:
    """SFT of an adapter by flags, the merged model, and a whole experiment that continues the adapter."""
    rows, model = runs.world / "sums.jsonl", str(runs.world / "model")
    experiment = runs.config(model="step:sft", method="sft", training={"max_steps": 2})
    del experiment["output_dir"]
    return {
        "kind": "pipeline",
        "output_dir": str(runs.folder / "out"),
        "defaults": {"model_name_or_path": model, "use_peft": True, "lora_r": 4},
        "steps": [
            {
                "name": "sft",
                "command": "sft",
                "dataset_name": str(rows),
                "eval_size": 4,
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.003,
                "save_steps": 1,
                "logging_steps": 1,
                "evaluation": {"max_new_tokens": 6},
            },
            {"name": "merged", "command": "merge", "adapter_model_name": "step:sft"},
            {"name": "more", **experiment},
        ],
    }


def steps_of(folder: Path, config: dict[str, Any], *overrides: str) -> dict[str, Step]:
    file = write_config(folder / "p.yaml", config)
    return {step.name: step for step in check(read(file, overrides, Steps()))}


def test_the_three_forms_of_a_step_are_one_pipeline(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_config(runs.folder / "p.yaml", pipeline(runs)))
    assert main(["run", file]) == 0
    said = capsys.readouterr().out
    out = runs.folder / "out"
    assert [line for line in said.splitlines() if line.startswith("step ")] == [
        "step 1/3 sft: sft, run",
        "step 2/3 merged: merge, using sft, run",
        "step 3/3 more: run, using sft, run",
    ] + [line for line in said.splitlines() if line.startswith("step  ")]
    assert (out / "sft" / "final" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")
    assert merged.num_parameters() == AutoModelForCausalLM.from_pretrained(runs.world / "model").num_parameters()
    for name, used in (("sft", str(runs.world / "model")), ("more", str(out / "sft" / "final"))):
        assert yaml.safe_load((out / name / "config.yaml").read_text(encoding="utf-8"))["model"]["name_or_path"] == used
    config = yaml.safe_load((out / "sft" / "config.yaml").read_text(encoding="utf-8"))
    assert config["evaluation"]["max_new_tokens"] == 6
    assert config["training"]["run_name"] == "sft_model_sums.jsonl"
    assert [line.split()[0] for line in said[said.index("step    method") :].splitlines()[1:4]] == [
        "sft",
        "merged",
        "more",
    ]

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["run", file]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:3] == [
        "step 1/3 sft: sft, finished",
        "step 2/3 merged: merge, using sft, finished",
        "step 3/3 more: run, using sft, finished",
    ]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "pipeline.json"} == {
        path: time for path, time in before.items() if path.name != "pipeline.json"
    }

    assert main(["run", file, "steps.merged.dtype=bfloat16"]) == 2
    assert "merged: its settings changed" in capsys.readouterr().err
    kept = sha(out / "more" / "final" / "adapter_model.safetensors")
    assert main(["run", file, "steps.merged.dtype=bfloat16", "--overwrite_output_dir"]) == 0
    assert "step 3/3 more: run, using sft, finished" in capsys.readouterr().out
    assert sha(out / "more" / "final" / "adapter_model.safetensors") == kept


def test_a_digest_follows_every_setting_and_every_step_before_but_no_place(runs: Runs) -> None:
    config = pipeline(runs)
    before = steps_of(runs.folder, config)

    def changed(*overrides: str) -> set[str]:
        now = steps_of(runs.folder, config, *overrides)
        return {name for name in now if now[name].digest != before[name].digest}

    assert changed() == set()
    assert changed("output_dir=elsewhere") == set()
    assert changed("steps.sft.learning_rate=1e-4") == {"sft", "merged", "more"}
    assert changed("steps.sft.training.weight_decay=0.5") == {"sft", "merged", "more"}
    assert changed("steps.merged.dtype=float16") == {"merged"}
    assert changed("steps.more.training.learning_rate=1e-5") == {"more"}
    assert changed("defaults.lora_r=8") == {"sft", "merged", "more"}


def test_an_evaluation_is_known_by_what_changes_it_and_never_by_a_key(runs: Runs) -> None:
    config = pipeline(runs)
    config["steps"].append(
        {"name": "sft/eval", "command": "evaluate", "model_path": "step:sft", "nemotron_api_key": "secret-key"}
    )
    before = steps_of(runs.folder, config)["sft/eval"]
    assert before.folder == runs.folder / "out" / "sft" / "eval"
    assert before.output is None

    def same(*overrides: str) -> bool:
        return steps_of(runs.folder, config, *overrides)["sft/eval"].digest == before.digest

    assert same("steps.sft/eval.nemotron_api_key=other", "steps.sft/eval.report_to=none")
    assert not same("steps.sft/eval.num_prompts=7")
    assert not same("steps.sft.learning_rate=1")


def test_every_mistake_of_all_steps_is_told_at_once_with_its_line(runs: Runs) -> None:
    text = """\
kind: pipeline
output_dir: out
steps:
  - name: sft
    command: sft
    model_name: MODEL
    dataset_name: ROWS
    learning_rat: 1
    max_steps: two
    evaluation: {max_new_token: 1}
    output_dir: mine
  - name: merged
    command: merge
    adapter_model_name: step:sft
    dtype: float64
    base: x
  - name: judged
    command: evaluate
    model_path: step:merged
    num_prompts: none at all
  - name: whole
    model: step:sft
    method: rolo
    tasks: [{name: a}]
"""
    file = runs.folder / "p.yaml"
    text = text.replace("MODEL", str(runs.world / "model")).replace("ROWS", str(runs.world / "sums.jsonl"))
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigErrors) as found:
        check(read(file, [], Steps()))
    told = [(error.where.rpartition(":")[2], str(error).partition(": ")[2]) for error in found.value.errors]
    assert [line for line, _ in told] == ["8", "11", "15", "16", "17", "20", "23", "24"]
    words = dict(told)
    assert words["8"] == "steps.sft: learning_rat: there is no such flag\n  did you mean learning_rate?"
    assert words["11"].startswith("steps.sft.output_dir: a step has no such key\n")
    assert words["15"].startswith("steps.merged: dtype: invalid choice: 'float64'")
    assert words["16"].startswith("steps.merged: base: contrl merge has no such flag")
    assert words["17"].startswith("steps.judged: nothing judges the answers")
    assert words["20"].startswith("steps.judged: --num_prompts is 'none at all'")
    assert "did you mean rloo?" in words["23"]
    assert words["24"].startswith("steps.whole: tasks.0.data: missing")

    # Of a step the values are checked once its flags are known.
    file.write_text(text.replace("    learning_rat: 1\n", "").replace("    output_dir: mine\n", ""), encoding="utf-8")
    with pytest.raises(ConfigErrors) as found:
        check(read(file, [], Steps()))
    lines = {error.where.rpartition(":")[2]: str(error) for error in found.value.errors}
    assert "max_steps: expected a whole number" in lines["8"]
    assert "did you mean max_new_tokens?" in lines["9"]


def test_hugging_face_flags_of_run_are_defaults_of_a_pipeline(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    config = pipeline(runs)
    del config["defaults"]["model_name_or_path"]
    config["steps"] = config["steps"][:1]
    file = str(write_config(runs.folder / "p.yaml", config))
    assert main(["run", file, "--dry_run"]) == 2
    assert "needs --model_name_or_path" in capsys.readouterr().err
    model = str(runs.world / "model")
    assert main(["run", file, "--dry_run", "--model_name_or_path", model, "--save_total_limit", "1"]) == 0
    said = capsys.readouterr().out
    assert "training.save_total_limit" in said
    assert "steps    2 in 1 stages (2)" in said
    assert not (runs.folder / "out").exists()


def test_files_of_an_unknown_kind_and_several_processes_are_refused(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = runs.folder / "p.yaml"
    file.write_text("kind: pipline\noutput_dir: x\n", encoding="utf-8")
    assert main(["run", str(file)]) == 2
    assert "kind: 'pipline' is nothing that can be run\n  write kind: pipeline" in capsys.readouterr().err
    write_config(file, pipeline(runs))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", str(file)]) == 2
    assert "a pipeline is started by one process" in capsys.readouterr().err


def left(out: Path) -> dict[str, Any]:
    """What a pipeline leaves that must not depend on interruptions."""
    return {
        "sft": remains(out / "sft"),
        "merged": weights(out / "merged"),
        "more": remains(out / "more"),
        "numbers": [
            step["numbers"] for step in json.loads((out / "pipeline.json").read_text(encoding="utf-8"))["steps"]
        ],
    }


@pytest.mark.slow
def test_killed_anywhere_and_repeated_it_leaves_the_same_files(runs: Runs) -> None:
    """True SIGKILLs in the first step, while it saves, while the adapter is merged, between steps, in the last one."""
    config = pipeline(runs)
    file = write_config(runs.folder / "p.yaml", config)
    assert main(["run", str(file), f"output_dir={runs.folder / 'whole'}"]) == 0
    whole = left(runs.folder / "whole")
    points = ("training:2", "saving:1", "evaluation:2", "between_steps:1", "saving:1", "between_steps:2", "training:2")
    codes = [contrl(["run", file], runs.folder, CONTRL_FAULT=point).returncode for point in points]
    assert codes[0] == codes[-1] == -signal.SIGKILL
    assert codes.count(-signal.SIGKILL) >= 5
    outcome = contrl(["run", file], runs.folder)
    assert outcome.returncode == 0, outcome.stderr
    assert left(runs.folder / "out") == whole


@pytest.mark.slow
def test_a_step_that_was_stopped_inside_is_continued_by_the_same_command(runs: Runs) -> None:
    file = str(write_config(runs.folder / "p.yaml", pipeline(runs)))
    faults.arm("between_steps", 1)
    with pytest.raises(faults.Killed):
        main(["run", file])
    assert not (runs.folder / "out" / "merged").exists()
    assert main(["run", file]) == 0
    assert (runs.folder / "out" / "more" / "results.json").exists()


@pytest.mark.parametrize("path", ["steps.sft/eval.nemotron_api_key", "defaults.nemotron_api_key"])
def test_a_key_on_the_command_line_is_recorded_nowhere(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    config = pipeline(runs)
    config["steps"] = [config["steps"][0], {"name": "sft/eval", "command": "evaluate", "model_path": "step:sft"}]
    file, key = str(write_config(runs.folder / "p.yaml", config)), f"{path}=a-very-secret-word"
    monkeypatch.setenv("NVIDIA_API_KEY", "")
    monkeypatch.setattr("sys.argv", ["contrl", "run", file, key])
    faults.arm("between_steps", 1)
    with pytest.raises(faults.Killed):
        main(["run", file, key])
    written = [path for path in runs.folder.rglob("*") if path.is_file()]
    assert any(path.name == "run.json" for path in written)
    assert not [path for path in written if b"secret" in path.read_bytes()]
    assert "secret" not in "".join(capsys.readouterr())


def test_a_launcher_that_fails_or_is_not_there_ends_the_pipeline(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pipeline(runs)
    file = str(write_config(runs.folder / "p.yaml", config))
    assert main(["run", file, "launcher=no-such-launcher --here"]) == 2
    assert "launcher: no-such-launcher cannot be started\n" in capsys.readouterr().err
    assert main(["run", file, "launcher=false"]) == 2
    said = capsys.readouterr()
    assert "the run ended with code 1\n  what went wrong is told above\n  this is step sft;" in said.err
    assert "         false -m contrl run " in said.out


@pytest.mark.slow
def test_runs_of_a_pipeline_under_torchrun(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of two rows each; the merge stays in this one. What is finished is skipped as ever."""
    config = pipeline(runs)
    config["launcher"] = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2"
    config["steps"] = config["steps"][:2]
    config["steps"][0]["per_device_train_batch_size"] = 2
    for name, value in environment(runs.folder / "cache").items():
        monkeypatch.setenv(name, value)
    file = str(write_config(runs.folder / "p.yaml", config))
    assert main(["run", file]) == 0
    out = runs.folder / "out"
    assert json.loads((out / "sft" / "run.json").read_text(encoding="utf-8"))["processes"] == 2
    assert (out / "merged" / "model.safetensors").exists()
    assert main(["run", file, "launcher=null"]) == 0


def test_a_request_to_stop_is_passed_on_to_the_launched_run(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """A launcher that asks the pipeline to stop, as a scheduler would, and ends once it is asked in turn."""
    file = str(write_config(runs.folder / "p.yaml", pipeline(runs)))
    script = 'trap "exit 3" TERM; kill -TERM $PPID; while true; do sleep 0.05; done'
    assert main(["run", file, f"launcher=bash -c '{script}'"]) == 143
    assert capsys.readouterr().err.startswith("stopped on request\n  what is finished is kept; continue with the same")
