"""Whole runs of the online methods: two tasks in order, killed in the middle of a rollout window and resumed.

Two minibatches and two epochs make windows of four steps; a checkpoint after every second one lies inside a window.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from contrl import faults
from contrl.continual.records import read_records
from contrl.errors import GuardStop, UserError
from contrl.faults import Killed
from tests.runs import AVERAGE, REPLAY, Runs, lora, metric, remains

pytestmark = pytest.mark.usefixtures("no_page")

WINDOW: dict[str, Any] = {"samples_per_prompt": 2, "max_new_tokens": 5, "num_epochs": 2, "num_minibatches": 2}

CASES: dict[str, dict[str, Any]] = {
    "ppo": {"method": {"name": "ppo", **WINDOW, "target_kl": 0.5, "kl_horizon": 100}, "strategies": [REPLAY]},
    "ppo-value-model": {"method": {"name": "ppo", **WINDOW, "value": "model"}},
    "ppo-lora": {"method": {"name": "ppo", **WINDOW, "reference": "base", "keep_value": False}, "lora": True},
    "grpo": {"method": {"name": "grpo", **WINDOW, "beta": 0.1}, "strategies": [REPLAY, AVERAGE]},
    "grpo-lora": {"method": {"name": "grpo", **WINDOW, "beta": 0.1, "level": "sequence"}, "lora": True},
    "rloo": {"method": {"name": "rloo", **WINDOW, "beta": 0.1, "reference": "base", "normalize_advantages": True}},
}


def settings(runs: Runs, case: str) -> dict[str, Any]:
    """The changes of a case to the standard configuration."""
    changes = {"strategies": [], **CASES[case]}
    model = {"model": lora(runs.world)} if changes.pop("lora", False) else {}
    return {**changes, **model}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_in_a_window_and_resumed_equals_uninterrupted(case: str, runs: Runs) -> None:
    """Killed in the second stage after step 3: the window's rollouts, values and coefficient come back."""
    changes = settings(runs, case)
    whole = remains(runs("whole", **changes))
    faults.arm("training", 7)
    with pytest.raises(Killed):
        runs("run", **changes)
    folder = runs("run", **changes)
    assert "continuing from checkpoint-2" in runs.text
    assert remains(folder) == whole


@pytest.mark.parametrize("value", ["head", "model"])
def test_a_ppo_run_leaves_plain_models_with_the_value_function_beside_them(value: str, runs: Runs) -> None:
    """``final/`` loads as a language model without a word; the value function has moved and is carried to stage 2."""
    changes = {"method": {"name": "ppo", **WINDOW, "value": value}, "strategies": []}
    folder = runs("run", **changes, training={"learning_rate": 1e-2})
    stages = sorted((folder / "stages").iterdir())
    values = []
    for stage in stages:
        _, info = AutoModelForCausalLM.from_pretrained(stage / "final", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        if value == "head":
            values.append(load_file(stage / "final" / "value_head.safetensors")["summary.weight"])
        else:
            values.append(AutoModelForSequenceClassification.from_pretrained(stage / "final" / "value").score.weight)
    assert values[0].abs().max() > 0
    assert not torch.equal(*values)
    logged = {r["name"] for r in read_records(folder / "metrics.jsonl", ("stage", "step", "task", "name"))}
    assert {"objective/kl", "loss/value_avg", "policy/clipfrac_avg", "seconds/sampling", "tokens_per_second"} <= logged
    # Carried on: the first values of stage 2 already know something, so their loss does not start from scratch.
    assert metric(folder, "loss/value_avg")[2, 1] < metric(folder, "loss/value_avg")[1, 1]


def test_the_reference_of_rollouts_is_that_of_the_stage(runs: Runs) -> None:
    """``previous``: the KL of the first window of stage 2 is 0; ``base``: it is not."""
    kls = {}
    for reference in ("previous", "base"):
        method = {"name": "grpo", **WINDOW, "beta": 0.1, "reference": reference}
        folder = runs(reference, method=method, strategies=[], training={"learning_rate": 1e-2})
        kls[reference] = metric(folder, "kl")
    assert kls["previous"][1, 1] == pytest.approx(0, abs=1e-5)
    assert kls["previous"][2, 1] == pytest.approx(0, abs=1e-5)
    assert kls["base"][2, 1] > 1e-3


def test_a_policy_that_runs_away_stops_the_run(runs: Runs) -> None:
    """Exit code 5, the number, the limit, and what to look at; the last checkpoint stays."""
    method = {"name": "rloo", **WINDOW, "num_minibatches": 1, "beta": 1e-6, "max_kl": 0.05}
    with pytest.raises(GuardStop, match="nats per completion from its reference") as error:
        runs("run", method=method, strategies=[], training={"learning_rate": 0.1, "max_steps": 12})
    assert error.value.exit_code == 5
    assert "learning rate" in error.value.fix
    assert "beta" in error.value.fix
    assert list((runs.folder / "run" / "stages").glob("1-*/checkpoint-*"))


def test_a_run_without_any_reward_stops(runs: Runs) -> None:
    config = runs.config("run", strategies=[])
    for task in config["tasks"]:
        task |= {"reward": "tests.plugins:nothing", "metric": "tests.plugins:digits"}
    with pytest.raises(GuardStop, match="none of 12 completions has a reward"):
        runs.start(config)


def test_prompts_that_leave_no_room_are_named_before_anything_is_sampled(runs: Runs) -> None:
    """The model has 64 positions and prompts of 5 and 6 tokens: of 59 new tokens only some leave room."""
    method = {"name": "rloo", "samples_per_prompt": 2, "max_new_tokens": 59}
    with pytest.raises(UserError, match=r"\d of 8 prompts, the first of row .* no room for 59 new tokens") as error:
        runs("run", method=method, strategies=[])
    assert error.value.fix == "max_prompt_tokens: 5 leaves them out"


def test_a_value_model_must_read_the_policys_tokens(runs: Runs) -> None:
    method = {"name": "ppo", **WINDOW, "value": "model", "value_model": "nowhere/at/all"}
    with pytest.raises(UserError, match="nowhere/at/all"):
        runs("run", method=method, strategies=[])


def test_the_log_holds_every_rollouts_facts(runs: Runs, tmp_path: Path) -> None:
    """Several rewards with their own means, and the verifier beside them."""
    config = runs.config("run", strategies=[], method={"name": "grpo", **WINDOW})
    for task in config["tasks"]:
        task |= {"reward": ["tests.plugins:digits", "length(target=3)"], "reward_weights": [1.0, 0.5]}
        task |= {"metric": "exact_match"}
    folder = runs.start(config)
    logged = {r["name"]: r["value"] for r in read_records(folder / "metrics.jsonl", ("stage", "step", "task", "name"))}
    table = pq.read_table(folder / "samples" / "1-0.parquet").to_pylist()
    assert {"digits", "length"} == set(json.loads(table[0]["scores"]))
    assert {"rewards/digits/mean", "rewards/length/mean", "verifier/exact_match", "reward"} <= logged.keys()
    resolved = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "length" in resolved
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))
