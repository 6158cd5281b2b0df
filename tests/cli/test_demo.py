"""The main job: the shipped recipe, and one shortened arm of it from the command line to the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from contrl.cli.demo import config_file
from contrl.cli.main import main
from contrl.config import load
from contrl.experiment import find
from tests.runs import remains, weights

GROUPS = ["plus", "plus_minus", "plus_minus_mul", "plus_minus_mul_div"]
SHORT = [
    "base.training.max_steps=12",
    "base.prompts_per_step=32",
    "tasks.train_size=300",
    "tasks.test_size=40",
    "prompts_per_step=6",
    "method.samples_per_prompt=4",
    "training.max_steps=3",
    "training.logging_steps=1",
]


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path / "cache"))


def test_the_printed_file_is_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert load(printed, resolve=find).config == load(config_file(), resolve=find).config


def test_with_dpo_it_is_another_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--method", "dpo", "--print_config"]) == 0
    config = load(capsys.readouterr().out, resolve=find).config
    assert config == load(config_file("dpo"), resolve=find).config
    assert (config.method.name, config.tasks.name) == ("dpo", "opposite_preferences")


@pytest.mark.parametrize("method", ["rloo", "dpo"])
def test_both_arms_differ_in_the_strategy_alone(method: str) -> None:
    """Learning rate, steps and prompts of the current task are the same, or the comparison would mean nothing."""
    naive = load(config_file(method), ["strategies=[naive]"], resolve=find)
    replay = load(config_file(method), ["strategies=[replay]"], resolve=find)
    assert naive.config.strategies != replay.config.strategies
    assert replace(naive.config, strategies=()) == replace(replay.config, strategies=())


def test_the_tasks_hold_500_problems_out_of_four_groups() -> None:
    config = load(config_file(), resolve=find).config
    tasks = find("sequence", config.tasks.name)(**config.tasks.fields).tasks()
    assert [task.name for task in tasks] == GROUPS
    assert {len(task.eval) for task in tasks} == {500}
    trained = {row["id"].partition(":")[2] for task in tasks for row in task.train}
    held_out = {row["id"].partition(":")[2] for task in tasks for row in task.eval}
    assert not trained & held_out, "no instance may be trained on in one group and tested in another"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"output_dir": "runs/demo"}),
        (["--strategies", "replay"], {"output_dir": "runs/demo-replay", "strategies.0.name": "replay"}),
        (
            ["--strategies", "replay(share=0.25)", "naive", "rounds=2"],
            {
                "output_dir": "runs/demo-replay-share-0.25-naive",
                "strategies.0.name": "replay",
                "strategies.0.share": "0.25",
                "strategies.1.name": "naive",
                "rounds": "2",
            },
        ),
        (["--seed", "2", "--rounds", "2"], {"output_dir": "runs/demo-2rounds-seed2", "seed": "2", "rounds": "2"}),
        (["--method", "sft"], {"output_dir": "runs/demo-sft", "method.name": "sft"}),
        (
            ["--method", "dpo", "--order", "random", "--order_seed", "3"],
            {"output_dir": "runs/demo-dpo-random3", "method.name": "dpo", "order": "random", "order_seed": "3"},
        ),
        (
            ["--method", "dpo", "--order", "no_first,longer,shorter,yes_first"],
            {
                "output_dir": "runs/demo-dpo-no_first-longer-shorter-yes_first",
                "method.name": "dpo",
                "order": "[no_first, longer, shorter, yes_first]",
            },
        ),
        (
            ["--strategies", "naive,replay", "--output_dir", "mine"],
            {"output_dir": "mine", "strategies.1.name": "replay"},
        ),
    ],
)
def test_flags_are_overrides_of_the_file(
    flags: list[str], expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *flags, "--dry_run"]) == 0
    lines = re.findall(r"^(\S+) += (.*?)  +(\S.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    told = {path: (value, origin) for path, value, origin in lines}
    usual = {"seed": "0", "rounds": "1", "strategies.0.name": "naive", "method.name": "rloo"}
    assert {path: told[path][0] for path in usual | expected} == usual | expected
    origins = {origin for _, origin in told.values()}
    assert not [origin for origin in origins if "/" in origin], "no path of an installation"
    assert told["training.learning_rate"][1].startswith(("demo.yaml:", "demo_dpo.yaml:"))
    assert not Path("runs").exists()


@pytest.mark.slow
def test_one_arm_from_the_command_to_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *SHORT]) == 0
    out = capsys.readouterr().out
    run = Path("runs/demo")
    assert "after stage" in out
    assert "forgetting" in out
    assert f"report: {run / 'report.html'}" in out
    assert "next:   contrl demo --strategies replay" in out
    assert "\r" not in out
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["tasks"] == GROUPS
    assert [row is None for line in results["matrix"] for row in line] == [False] * 20
    assert {cell["n"] for line in results["matrix"] for cell in line} == {40}
    assert (run / "figures" / "matrix.png").stat().st_size > 1000
    page = (run / "report.html").read_text(encoding="utf-8").lower()
    assert "<script src" not in page
    assert '<link rel="stylesheet"' not in page
    AutoModelForCausalLM.from_pretrained(run, local_files_only=True)
    assert main(["demo", *SHORT]) == 0
    assert "this run is finished" in capsys.readouterr().out
    (base,) = Path("cache").glob("base-*/stages/1-base/final")
    assert weights(run / "base") == weights(base)


@pytest.mark.slow
def test_dpo_forgets_and_replay_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe on fewer rows, two of its tasks: the first is undone by its opposite, and kept by replay."""
    short = ["tasks.names=[longer,shorter]", "tasks.train_size=300", "tasks.eval_size=40", "prompts_per_step=16"]
    kept = {}
    for strategy in ("naive", "replay"):
        assert main(["demo", "--method", "dpo", "--strategies", strategy, *short]) == 0
        folder = "runs/demo-dpo" if strategy == "naive" else "runs/demo-dpo-replay"
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        start, first, last = results["matrix"]
        assert [cell["value"] for cell in start] == [0.5, 0.5]
        assert min(first[0]["value"], last[1]["value"]) > 0.9, "both are learnt"
        kept[strategy] = last[0]["value"]
    assert kept["naive"] < 0.2
    assert kept["replay"] > 0.8
    assert "next:   contrl demo --method dpo --strategies replay" in capsys.readouterr().out


@pytest.mark.slow
def test_the_printed_file_runs_as_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    """And is the same run, bit for bit; its base stage comes from the cache."""
    short = [*SHORT, "tasks.groups=[plus,plus_minus]"]
    assert main(["demo", *short]) == 0
    assert main(["demo", "--print_config"]) == 0
    printed = capsys.readouterr().out.partition("# contrl demo")
    Path("mine.yaml").write_text("".join(printed[1:]), encoding="utf-8")
    assert main(["run", "mine.yaml", *short, "output_dir=mine"]) == 0
    assert "base stage" not in capsys.readouterr().out
    assert remains(Path("mine")) == remains(Path("runs/demo"))


@pytest.mark.slow
def test_the_other_method_and_strategy_over_two_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    sft = [part for part in SHORT if not part.startswith("method.")]
    command = ["demo", "--method", "sft", "--strategies", "replay", "--rounds", "2", "--seed", "3"]
    assert main([*command, *sft, "tasks.groups=[plus,plus_minus]"]) == 0
    run = Path("runs/demo-sft-replay-2rounds-seed3")
    stages = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]
    assert [(stage["task"], stage["round"]) for stage in stages] == [
        ("plus", 1),
        ("plus_minus", 1),
        ("plus", 2),
        ("plus_minus", 2),
    ]
    assert (run / "stages" / "4-plus_minus" / "final" / "model.safetensors").exists()
    assert "report:" in capsys.readouterr().out
