"""The pipelines of recipes/: their settings are the origins', and on ``tiny`` they run from end to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from contrl.cli.origins import ORIGINS
from contrl.cli.step_verbs import Trained, verbs_of
from contrl.cli.steps import Steps, check
from contrl.cli.training.command import parts_of, resolved_of
from contrl.cli.training.request import read as read_flags
from contrl.config import RunConfig
from contrl.pipeline.reading import read
from tests.continual.test_trackers import history, runs_in, wandb_records
from tests.runs import ROOT, environment, weights

DATA = ROOT / "tests" / "fixtures" / "data"
RL_LLM, SMALL = (ROOT / "recipes" / name / "pipeline.yaml" for name in ("rl_llm", "small_rlhf"))


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONTRL_DATA_DIR", str(DATA))
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def configured(file: Path, name: str) -> RunConfig:
    """The configuration of a step."""
    outline = read(file, [], Steps())
    steps = {step.name: step for step in check(outline)}
    verbs = verbs_of(next(draft for draft in outline.drafts if draft.name == name), outline.output_dir, steps)
    assert isinstance(verbs, Trained)
    return verbs.resolved("step-{}".format).config


def printed(origin: str, *more: str) -> RunConfig:
    """The configuration of an origin's own entry point."""
    entry = ORIGINS[origin]
    words = [*more, "--model_name_or_path", "any", "--output_dir", "out"]
    request = read_flags(entry.command, words, entry.defaults.split(), entry.extra(), needs_reward=False)
    return resolved_of(request, [*request.overrides, *parts_of(request)[0][1]]).config


def trained(config: RunConfig) -> dict[str, Any]:
    """The training arguments without what only trackers see."""
    return {key: value for key, value in config.training.items() if key not in ("report_to", "run_name")}


@pytest.mark.parametrize("method", ["sft", "dpo", "rloo"])
def test_the_settings_of_rl_llm_are_those_of_its_entry_point(method: str) -> None:
    ours, theirs = configured(RL_LLM, method), printed(f"rl_llm/train.py --method {method}")
    assert ours.method == theirs.method
    assert trained(ours) == trained(theirs)
    assert ours.prompts_per_step == theirs.prompts_per_step
    if method != "rloo":
        assert ours.tasks == theirs.tasks
    assert ours.training["run_name"] == f"{method}_Qwen2.5-0.5B_{'smoltalk' if method == 'sft' else 'ultrafeedback'}"


@pytest.mark.parametrize(
    ("step", "script"), [("sft", "sft_training"), ("reward", "reward_modeling"), ("dpo", "dpo_training")]
)
def test_the_settings_of_small_rlhf_are_those_of_its_entry_points(step: str, script: str) -> None:
    ours, theirs = configured(SMALL, step), printed(f"small_rlhf/{script}.py", "--dataset_names", "uc,ufb,hh,shp")
    assert ours.method == theirs.method
    assert trained(ours) == trained(theirs)
    assert ours.tasks == theirs.tasks
    assert ours.seed == theirs.seed == 42
    for field in ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
        assert getattr(ours.model, field) == getattr(theirs.model, field)


def test_ppo_of_small_rlhf_has_the_settings_of_its_entry_point() -> None:
    data = ("--dataset_names", "uc,ufb,hh,shp", "--reward_model_name_or_path", "step-reward")
    ours, theirs = configured(SMALL, "ppo"), printed("small_rlhf/ppo_training.py", *data)
    assert ours.method == theirs.method
    assert trained(ours) == trained(theirs)
    assert ours.rewards == theirs.rewards


def test_the_steps_of_both_pipelines() -> None:
    steps = {step.name: (step.command, step.uses) for step in check(read(RL_LLM, [], Steps()))}
    assert steps == {
        "sft": ("sft", ()),
        "dpo": ("dpo", ("sft",)),
        "reward": ("reward", ()),
        "rloo": ("rloo", ("reward",)),
        "sft/eval": ("evaluate", ("sft", "reward")),
        "dpo/eval": ("evaluate", ("dpo", "reward")),
        "rloo/eval": ("evaluate", ("rloo", "reward")),
    }
    small = {step.name: (step.command, step.uses) for step in check(read(SMALL, [], Steps()))}
    assert small == {
        "sft": ("sft", ()),
        "reward": ("reward", ()),
        "dpo": ("dpo", ("sft",)),
        "merged": ("merge", ("dpo",)),
        "ppo": ("ppo", ("sft", "reward")),
    }


# --- the scripts ----------------------------------------------------------------------------------------

SHORT = ("defaults.model_name_or_path=tiny", "defaults.max_steps=2", "defaults.eval_num_items=2")
RL_SHORT = (
    *("defaults.reference_model=tiny", "defaults.num_prompts=4", "steps.rloo.max_new_tokens=8"),
    *(f"steps.{name}/eval.max_new_tokens=8" for name in ("sft", "dpo", "rloo")),
)


def script(recipe: str, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """run_all.sh in a shell without anything of W&B's: no key, no login, no settings."""
    inherited = environment(
        folder / "cache", PYTHON=sys.executable, CONTRL_DATA_DIR=str(DATA), HOME=str(folder / "home")
    )
    given = {
        name: value for name, value in inherited.items() if not name.startswith(("WANDB_", "NVIDIA_", "NEMOTRON_"))
    }
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        given[name] = str(folder / "home")
    command = ["bash", str(ROOT / "recipes" / recipe / "run_all.sh"), *words, f"output_dir={folder / 'outputs'}"]
    return subprocess.run(
        command,
        cwd=folder,
        env={**given, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_with_a_key_nemotron_judges_and_the_key_is_told_nowhere(tmp_path: Path) -> None:
    outcome = script("rl_llm", tmp_path, *SHORT, *RL_SHORT, "--dry_run", NEMOTRON_API_KEY="a-very-secret-word")
    assert outcome.returncode == 0, outcome.stderr
    judged = [line for line in outcome.stdout.splitlines() if "contrl evaluate" in line]
    assert len(judged) == 3
    assert all(" --judge" in line and "--reward_model" not in line for line in judged)
    assert "secret" not in outcome.stdout + outcome.stderr
    assert not (tmp_path / "outputs").exists()


def wandb_runs(folder: Path) -> dict[str, Path]:
    """Name of each offline run below a folder -> its file; every one in the pipeline's project."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("wandb/offline-run-*/*.wandb")):
        for run in runs_in(path)[:1]:
            assert run.project == "cs224r_deeprl_final"
            found[run.display_name] = path
    return found


@pytest.mark.slow
def test_the_whole_rl_llm_pipeline(tmp_path: Path) -> None:
    """Killed before the evaluations, repeated, and repeated once more; what is in W&B is read from its files."""
    killed = script("rl_llm", tmp_path, *SHORT, *RL_SHORT, CONTRL_FAULT="between_steps:4")
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), killed.stderr
    outcome = script("rl_llm", tmp_path, *SHORT, *RL_SHORT)
    assert outcome.returncode == 0, outcome.stderr
    out = tmp_path / "outputs"
    assert "step 4/7 rloo: rloo, using reward, finished" in outcome.stdout
    assert "W&B runs offline (no API key" in killed.stdout + outcome.stdout
    for name in ("sft", "dpo", "rloo"):
        AutoModelForCausalLM.from_pretrained(out / name / "final")
        metrics = json.loads((out / name / "eval" / "evaluation_metrics.json").read_text(encoding="utf-8"))
        assert metrics["num_prompts"] == 4
        assert metrics["win_rate"] + metrics["tie_rate"] + metrics["loss_rate"] == pytest.approx(1)
        assert (out / name / "eval" / "detailed_results.parquet").exists()
    AutoModelForSequenceClassification.from_pretrained(out / "reward" / "final")
    assert weights(out / "sft" / "final") != weights(out / "dpo" / "final")

    rows = [line.split()[:3] for line in outcome.stdout.split("\nstep  ")[1].splitlines()[1:8]]
    assert [row[0] for row in rows] == ["sft", "dpo", "reward", "rloo", "sft/eval", "dpo/eval", "rloo/eval"]
    compared = json.loads((out / "comparison.json").read_text(encoding="utf-8"))["models"]
    assert [model["name"] for model in compared] == ["sft", "dpo", "rloo"]

    tracked = wandb_runs(out)
    assert set(tracked) == {
        *("sft_tiny_smoltalk", "dpo_tiny_ultrafeedback", "reward_tiny_ultrafeedback", "rloo_tiny_ultrafeedback"),
        *("eval_sft", "eval_dpo", "eval_rloo", "compare_outputs"),
    }
    assert any("train/loss" in record for record in history(tracked["dpo_tiny_ultrafeedback"]))
    assert b"learning_rate" in tracked["dpo_tiny_ultrafeedback"].read_bytes()
    for name in ("sft_tiny_smoltalk", "rloo_tiny_ultrafeedback"):
        kept = artifacts(tracked[name])
        assert [artifact.name for artifact in kept] == [f"model-{name}"]
        assert "final_model" in kept[0].aliases
    (place,) = (tracked["compare_outputs"].parent / "files" / "media" / "table").glob("models*.table.json")
    table = json.loads(place.read_text(encoding="utf-8"))
    assert [row[0] for row in table["data"]] == ["sft", "dpo", "rloo"]
    assert [row[table["columns"].index("win_rate")] for row in table["data"]] == [m["win_rate"] for m in compared]

    again = script("rl_llm", tmp_path, *SHORT, *RL_SHORT)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(", finished\n") == 7
    assert set(wandb_runs(out)) == set(tracked)


def artifacts(path: Path) -> list[Any]:
    """The artifacts that a W&B file records."""
    return [record.artifact for record in wandb_records(path) if record.HasField("artifact")]


@pytest.mark.slow
def test_the_whole_small_rlhf_pipeline(tmp_path: Path) -> None:
    """SFT, reward model, DPO, merge and PPO; the merged model is a whole one that holds SFT and DPO."""
    outcome = script("small_rlhf", tmp_path, *SHORT, "steps.ppo.max_new_tokens=8", "steps.ppo.batch_size=32")
    assert outcome.returncode == 0, outcome.stderr
    out = tmp_path / "outputs"
    assert (out / "merged" / "model.safetensors").exists()
    assert not (out / "merged" / "adapter_config.json").exists()
    assert weights(out / "sft" / "final") != weights(out / "dpo" / "final")
    assert (out / "ppo" / "final" / "adapter_config.json").exists()
    numbers = {
        step["name"]: step["numbers"]
        for step in json.loads((out / "pipeline.json").read_text(encoding="utf-8"))["steps"]
    }
    assert "accuracy" in numbers["reward"]
    assert "margin" in numbers["dpo"]
    assert "reward" in numbers["ppo"]
