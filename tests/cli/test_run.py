"""`contrl run` and `contrl resume` as a user starts them: plugins of their own, kills, Ctrl-C, quiet output."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contrl import faults
from contrl.cli import run as run_command
from contrl.cli.main import main
from tests.runs import AVERAGE, REPLAY, Runs, contrl, remains, scores, write_config

PLUGINS = '''
from dataclasses import dataclass, field

import torch

from contrl.interfaces import LossOutput, Metric, Strategy, Task
from contrl.methods.sft import SFT


def length(*, prompts, completions, **columns):
    return [float(len(text)) for text in completions]


SHORT = Metric("short", lambda **columns: [1.0 / (1.0 + len(text)) for text in columns["completions"]], 0.5)


@dataclass(frozen=True)
class HalfSFT(SFT):
    """Supervised fine-tuning with half the loss."""

    factor: float = 0.5

    def loss(self, out, batch):
        whole = super().loss(out, batch)
        return LossOutput({"nll": whole.sums["nll"] * self.factor}, whole.metrics)


@dataclass
class Anchor(Strategy):
    """Pulls every weight towards where the stage began."""

    name = "anchor"
    coef: float = 1.0
    start: dict = field(default_factory=dict, init=False)

    def before_task(self, ctx):
        self.start = {name: p.detach().clone() for name, p in ctx.params()}

    def penalty(self, ctx):
        for name, p in ctx.params():
            p.grad.add_(p.detach() - self.start[name], alpha=self.coef)

    def state_dict(self):
        return {"start": self.start}

    def load_state_dict(self, state):
        self.start = dict(state["start"])


def tasks(number: int = 2):
    rows = [{"prompt": f"{i}=", "completion": str(i)} for i in range(8)]
    return [Task(f"task{i}", rows[:6], rows[6:], length, SHORT) for i in range(number)]
'''


@pytest.mark.slow
def test_everything_by_import_path_from_a_file_beside_the_configuration(runs: Runs) -> None:
    """A method, a strategy and a sequence with its reward and metric, from outside the package."""
    (runs.folder / "mine.py").write_text(PLUGINS, encoding="utf-8")
    changes: dict[str, Any] = {
        "tasks": {"name": "mine:tasks", "number": 2},
        "method": {"name": "mine:HalfSFT", "factor": 0.25},
        "strategies": [{"name": "mine:Anchor", "coef": 0.5}],
    }
    file = write_config(runs.folder / "my.yaml", {**runs.config(**changes), "output_dir": "out"})
    outcome = contrl(["run", file.name], runs.folder)
    assert outcome.returncode == 0, outcome.stderr
    run = runs.folder / "out"
    assert {metric for _, _, metric in scores(run)} == {"short"}
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["method"] == "mine:HalfSFT"
    # What the strategy remembers of the start of stage 2 is the end of stage 1.
    anchor = load_file(run / "stages" / "2-task1" / "final" / "strategy.safetensors")
    before = load_file(run / "stages" / "1-task0" / "final" / "model.safetensors")
    assert anchor
    assert all(torch.equal(anchor[f"start/{name}"], tensor) for name, tensor in before.items())


def test_a_reward_and_a_metric_of_single_tasks_by_import_path(runs: Runs) -> None:
    (runs.folder / "mine_too.py").write_text(PLUGINS, encoding="utf-8")
    config = runs.config("single", training={"max_steps": 1})
    for task in config["tasks"]:
        task |= {"reward": "mine_too:length", "metric": "mine_too:SHORT"}
    assert main(["run", str(write_config(runs.folder / "single.yaml", config))]) == 0
    assert {metric for _, _, metric in scores(runs.folder / "single")} == {"short"}


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run that nobody killed leaves."""
    return remains(Runs(world, tmp_path_factory.mktemp("whole"))(strategies=[REPLAY, AVERAGE]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "again"), [("training:3", "run"), ("saving:2", "resume"), ("evaluation:4", "resume")]
)
def test_a_killed_process_is_continued(runs: Runs, whole: dict[str, Any], fault: str, again: str) -> None:
    """A true SIGKILL, then the same command again or `contrl resume`; compared with a run that nobody killed."""
    config = runs.config(strategies=[REPLAY, AVERAGE])
    file = write_config(runs.folder / "my.yaml", config)
    killed = contrl(["run", file], runs.folder, CONTRL_FAULT=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = runs.folder / "run"
    continued = contrl(["run", file] if again == "run" else ["resume", "run"], runs.folder)
    assert continued.returncode == 0, continued.stderr
    assert "report: " in continued.stdout
    assert remains(run) == whole


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_command_to_continue(runs: Runs) -> None:
    config = runs.config()
    for task in config["tasks"]:
        task["reward"] = "tests.plugins:digits_asking_to_stop"
    file = write_config(runs.folder / "my.yaml", {**config, "output_dir": "out"})
    outcome = contrl(["run", file], runs.folder, ASK_AT="4", ASK_BY=str(int(signal.SIGINT)))
    assert outcome.returncode == 130
    assert outcome.stderr == (
        "stopped on request; everything computed so far is saved\n  continue with: contrl resume out\n"
    )
    assert "finishing the step and saving; once more stops at once\n" in outcome.stdout
    assert (runs.folder / "out" / "stages" / "1-sums" / "checkpoint-2").is_dir()


@pytest.mark.slow
def test_the_output_of_a_run_is_plain_where_there_is_no_terminal(runs: Runs) -> None:
    """No carriage return, no escape code, nothing on stderr; colours are not forced by a variable of CI systems."""
    file = write_config(runs.folder / "my.yaml", runs.config(model={"name_or_path": "tiny", "use_peft": True}))
    outcome = contrl(["run", file], runs.folder, NO_COLOR="1", TERM="xterm-256color")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert "\r" not in outcome.stdout
    assert "\x1b" not in outcome.stdout
    lines = outcome.stdout.splitlines()
    assert "weights  tiny, with a new LoRA adapter" in lines
    progress = [line for line in lines if line.startswith("stage 2/2 doubles  step 4/4  reward ")]
    assert len(progress) == 1
    assert "loss" not in progress[0]
    assert [
        line.partition(":")[0] for line in lines if line.startswith(("at the", "after stage 1", "after stage 2"))
    ] == [
        "at the start",
        "after stage 1",
        "after stage 2",
    ]


def test_the_same_command_on_a_finished_run_prints_its_results_again(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_config(runs.folder / "my.yaml", runs.config(method="sft", training={"max_steps": 1})))
    assert main(["run", file]) == 0
    first = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (runs.folder / "run").rglob("*")}
    assert main(["run", file]) == 0
    second = capsys.readouterr().out
    assert second.startswith(f"this run is finished: {runs.folder / 'run'}\n")
    table = first[first.index("\nrun · ") :]
    assert table.endswith(f"report: {runs.folder / 'run' / 'report.html'}\n")
    assert second.endswith(table)
    assert {path: path.stat().st_mtime_ns for path in (runs.folder / "run").rglob("*")} == before


def test_another_configuration_is_exit_2_unless_overwritten(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_config(runs.folder / "my.yaml", runs.config(method="sft", training={"max_steps": 1})))
    assert main(["run", file]) == 0
    assert main(["run", file, "seed=1"]) == 2
    said = capsys.readouterr().err
    assert "holds a run with another configuration\n  seed: 0 -> 1\n" in said
    assert main(["run", file, "seed=1", "--overwrite_output_dir"]) == 0
    assert json.loads((runs.folder / "run" / "run.json").read_text(encoding="utf-8"))["seed"] == 1


def test_the_manifest_holds_the_command_and_facts_of_the_rows(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(write_config(runs.folder / "my.yaml", runs.config(method="sft", training={"max_steps": 1})))
    monkeypatch.setattr("sys.argv", ["somewhere/contrl", "run", file, "rounds=1"])
    assert main(["run", file, "rounds=1"]) == 0
    manifest = json.loads((runs.folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert manifest["command"] == ["contrl", "run", file, "rounds=1"]
    sums = manifest["data_facts"]["sums"]
    assert {name: sums[name] for name in ("cut", "left_out", "repeated", "shared")} == {
        "cut": 0, "left_out": 0, "repeated": 0, "shared": 0,
    }  # fmt: skip
    assert sums["tokens"]["completion"]["most"] >= sums["tokens"]["completion"]["least"] >= 2  # a digit and its end


def test_resume_finishes_what_is_left(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    faults.arm("between_stages", 1)
    with pytest.raises(faults.Killed):
        runs(method="sft", training={"max_steps": 1})
    assert main(["resume", str(Path("run"))]) == 0
    said = capsys.readouterr().out
    assert said.startswith("config   run/config.yaml\n")
    assert "stage 2/2 doubles" in said
    assert "stage 1/2 sums" not in said


def test_flags_known_from_hugging_face_are_overrides() -> None:
    """They win over the file and over KEY=VALUE, because they come last."""
    parser = argparse.ArgumentParser()
    run_command.arguments(parser)
    flags = ["--model_name_or_path", "runs/a", "--use_peft", "--save_total_limit", "2"]
    options = parser.parse_args(["my.yaml", "seed=1", *flags])
    assert run_command._flags(options) == [
        "training.save_total_limit=2",
        "model.name_or_path=runs/a",
        "model.use_peft=true",
    ]
    assert run_command._flags(parser.parse_args(["my.yaml"])) == []
