"""Whole runs of the offline methods: two tasks in order, killed and resumed, with references, adapters and heads.

The tasks want opposite things: the chosen answer of one is the rejected one of the other.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from contrl import faults
from contrl.continual.records import read_records
from contrl.continual.results import read
from contrl.errors import EnvironmentFault, UserError
from contrl.faults import Killed
from tests.runs import AVERAGE, REPLAY, Runs, lora, remains

pytestmark = pytest.mark.usefixtures("no_page")

CASES: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "training": {"eval_strategy": "steps", "eval_steps": 2}},
    "dpo": {"method": {"name": "dpo", "loss_type": ["sigmoid", "aot"]}, "strategies": [REPLAY, AVERAGE]},
    "dpo-moving": {"method": {"name": "dpo", "sync_ref_model": True, "ref_model_sync_steps": 2}},
    "dpo-ema-lora": {"method": {"name": "dpo", "reference": "ema"}, "lora": True},
    "dpo-bco": {"method": {"name": "dpo", "loss_type": "bco_pair", "bco_shift": True}},
    "kto": {"method": "kto", "strategies": [REPLAY]},
    "cpo": {"method": "cpo"},
    "orpo": {"method": "orpo", "lora": True},
    "reward": {"method": "reward", "strategies": [REPLAY]},
    "reward-lora": {"method": "reward", "lora": True},
}


def pairs(folder: Path, *, wants_more: bool, number: int = 12) -> str:
    """A file of pairs of a number and a larger one; the path."""
    rows = []
    for i in range(number):
        smaller, larger = f"{i} is it", f"{i + 1} is it then"
        chosen, rejected = (larger, smaller) if wants_more else (smaller, larger)
        rows.append({"prompt": f"{i % 7}?", "chosen": chosen, "rejected": rejected})
    path = folder / f"{'more' if wants_more else 'less'}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def settings(runs: Runs, case: str) -> dict[str, Any]:
    """The changes of a case to the standard configuration."""
    changes = {"strategies": [], **CASES[case]}
    model = {"model": lora(runs.world)} if changes.pop("lora", False) else {}
    tasks = [
        {"name": name, "data": pairs(runs.folder, wants_more=more), "eval_size": 4}
        for name, more in (("less", False), ("more", True))
    ]
    return {"tasks": tasks, **changes, **model}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_uninterrupted(case: str, runs: Runs) -> None:
    """A checkpoint after every second of 4 steps; killed in the second stage after step 3, in mid-epoch."""
    changes = settings(runs, case)
    whole = remains(runs("whole", **changes))
    faults.arm("training", 7)
    with pytest.raises(Killed):
        runs("run", **changes)
    folder = runs("run", **changes)
    assert "continuing from checkpoint-2" in runs.text
    assert remains(folder) == whole
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name: transformers")


def test_packed_rows_learn_what_they_learn_apart(runs: Runs) -> None:
    """Equal losses within 1e-5 at every step, and the log says that the packed layout was used."""
    losses = {}
    for packing in (False, True):
        changes = settings(runs, "sft") | {"method": {"name": "sft", "packing": packing}, "training": {"max_steps": 3}}
        folder = runs(f"run-{packing}", **changes)
        records = read_records(folder / "metrics.jsonl", ("stage", "step", "task", "name"))
        losses[packing] = [record["value"] for record in records if record["name"] == "loss"]
    events = read_records(folder / "metrics.jsonl", ("event", "stage"))
    reasons = [record["reason"] for record in events if record["event"] == "layout"]
    assert reasons == ["both layouts agree"] * 2
    assert len(losses[True]) == 6
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)


def test_preferences_are_judged_by_what_the_run_changed(runs: Runs) -> None:
    """One half before training; learnt, and turned round by a task that wants the opposite."""
    changes = settings(runs, "dpo") | {"method": "dpo", "strategies": []}
    training = {"max_steps": 12, "learning_rate": 1e-2}
    results = read(runs("run", **{**changes, "training": training}))
    assert [cell.value for cell in results.matrix[0]] == [0.5, 0.5]
    assert results.matrix[1][0].value == 1.0
    assert results.matrix[2][1].value == 1.0
    assert results.matrix[2][0].value is not None
    assert results.matrix[2][0].value < 0.5
    logged = {r["name"] for r in read_records(runs.folder / "run" / "metrics.jsonl", ("stage", "step", "task", "name"))}
    assert {"rewards/margins", "logps/chosen", "eval/margin", "eval/likelier"} <= logged


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("reference", "equal"), [("previous", True), ("base", False)])
def test_the_reference_of_the_second_task(reference: str, equal: bool, adapter: bool, runs: Runs) -> None:
    """The first loss of stage 2 is log 2 against the weights the stage starts from, and not against the run's first."""
    changes = settings(runs, "dpo") | {"method": {"name": "dpo", "reference": reference}, "strategies": []}
    if adapter:
        # Without dropout in it, or the policy of the first step would not be the reference.
        changes["model"] = {**lora(runs.world), "lora_dropout": 0.0}
    folder = runs("run", **{**changes, "training": {"learning_rate": 1e-2}})
    records = read_records(folder / "metrics.jsonl", ("stage", "step", "task", "name"))
    losses = {(r["stage"], r["step"]): r["value"] for r in records if r["name"] == "loss"}
    assert losses[1, 1] == pytest.approx(math.log(2), abs=1e-6)
    assert (abs(losses[2, 1] - math.log(2)) < 1e-6) is equal


def test_a_reward_model_scores_as_it_was_trained(runs: Runs) -> None:
    """The run folder loads as a plain classifier and ranks what the run ranked."""
    changes = settings(runs, "reward") | {"strategies": []}
    training = {"max_steps": 12, "learning_rate": 1e-2}
    folder = runs("run", **{**changes, "training": training})
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for text in ("3?4 is it then", "3?3 is it"):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        scores.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0].item())
    assert scores[0] > scores[1]
    assert read(folder).matrix[2][1].value == 1.0


def test_a_policy_is_judged_by_a_reward_model_of_each_task(runs: Runs) -> None:
    """``evaluation.reward_model`` takes PATH/<i> of the task, says so, and fails before training when there is none."""
    changes = settings(runs, "reward") | {"strategies": [], "training": {"max_steps": 1}}
    for index, task in enumerate(changes["tasks"]):
        runs(f"rewards/{index}", **{**changes, "tasks": [task]})
    changes |= {"method": "dpo", "evaluation": {"reward_model": str(runs.folder / "rewards"), "max_new_tokens": 4}}
    results = read(runs("run", **changes))
    assert results.matrix[2][1].value is not None
    assert "its own, of task 1" in runs.text
    changes["evaluation"] = {"reward_model": str(runs.folder / "nowhere")}
    with pytest.raises(UserError, match="there is no reward model for task 0"):
        runs("other", **changes)


def test_a_full_disk_leaves_the_checkpoint_before_it(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second checkpoint cannot be written: told in words, code 4; with space again the run ends the same."""
    changes = settings(runs, "dpo")
    whole = remains(runs("whole", **changes))
    sync, left = os.fsync, [0]

    def full(descriptor: int) -> None:
        if "checkpoint-4" in os.readlink(f"/proc/self/fd/{descriptor}"):
            left[0] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="the disk is full") as error:
        runs("run", **changes)
    monkeypatch.setattr(os, "fsync", sync)
    assert left[0] == 1
    assert error.value.exit_code == 4
    stage = runs.folder / "run" / "stages" / "1-less"
    assert load_file(stage / "checkpoint-2" / "model.safetensors")
    assert not (stage / "checkpoint-4").exists()
    assert remains(runs("run", **changes)) == whole


def test_unusable_rows_stop_the_run_before_a_model_is_loaded(runs: Runs) -> None:
    """Named with task, row and reason; as many as are allowed are left out, and the run is told so."""
    changes = settings(runs, "dpo") | {"strategies": []}
    path = Path(changes["tasks"][0]["data"])
    bad = {"prompt": "1?", "chosen": "same", "rejected": "same"}
    path.write_text(path.read_text(encoding="utf-8") + "\n" + json.dumps(bad), encoding="utf-8")
    changes["tasks"][0] |= {"eval_data": changes["tasks"][1]["data"], "eval_size": None}
    with pytest.raises(UserError, match="1 of 13 rows cannot be used") as error:
        runs("run", **changes)
    assert "task less, row 12: chosen and rejected are identical" in error.value.why
    assert not (runs.folder / "run").exists()
    runs("run", **changes, max_bad_rows=1)
    assert "1 of 13 rows cannot be used and are left out" in runs.text


def test_a_source_without_preferences_is_left_out_with_one_line(runs: Runs) -> None:
    changes = settings(runs, "dpo") | {"strategies": []}
    path = Path(changes["tasks"][0]["data"])
    rows = [{**json.loads(line), "source": "real"} for line in path.read_text(encoding="utf-8").splitlines()]
    rows += [{"prompt": "1?", "chosen": "a", "rejected": "a", "source": "imitation"} for _ in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    runs("run", **changes)
    assert sum("imitation" in line for line in runs.said) == 1


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_base_stage_imitates_only_what_is_preferred(method: str, runs: Runs) -> None:
    """The chosen answers of both tasks, 8 rows each; not the pairs, and not the answers KTO takes apart as bad."""
    changes = settings(runs, method) | {"method": method, "strategies": []}
    training = {"learning_rate": 1e-3, "num_train_epochs": 1}
    runs("run", **changes, base={"method": "sft", "training": training, "prompts_per_step": 4})
    (folder,) = (path for path in (runs.folder / "cache").glob("base-*") if path.is_dir())
    records = read_records(folder / "metrics.jsonl", ("stage", "step", "task", "name"))
    assert max(record["step"] for record in records) == 4  # 16 rows, 4 a step
