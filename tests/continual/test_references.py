"""The reference over the tasks of a run: whose weights it has, and that nothing but its origin decides its numbers.

TRL 1.16 gets a second task wrong in four ways: the reference is read from the original files again, a second trainer on
one adapter fails, forwards nest, and precomputing the reference changes the objective. Each is a test here or in
``tests/trainers/test_given.py`` and ``tests/engine/test_upstream_contracts.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrl import faults
from contrl.continual.results import read
from contrl.faults import Killed
from tests.runs import REPLAY, Runs, lora, metric, remains

pytestmark = pytest.mark.usefixtures("no_page")

LOG2 = math.log(2)
BETA = 0.3


def pairs(folder: Path, *, wants_more: bool) -> str:
    """Twelve pairs of a number and a larger one; the other task wants the opposite."""
    rows = []
    for i in range(12):
        smaller, larger = f"{i} is it", f"{i + 1} is it then"
        chosen, rejected = (larger, smaller) if wants_more else (smaller, larger)
        rows.append({"prompt": f"{i % 7}?", "chosen": chosen, "rejected": rejected})
    path = folder / f"{'more' if wants_more else 'less'}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def dpo(runs: Runs, reference: str, *, adapter: bool, **changes: Any) -> dict[str, Any]:
    """DPO on two tasks that want opposite things; without dropout, so that equal weights give equal numbers."""
    tasks = [
        {"name": name, "data": pairs(runs.folder, wants_more=more), "eval_size": 4}
        for name, more in (("less", False), ("more", True))
    ]
    model = {**lora(runs.world), "lora_dropout": 0.0} if adapter else str(runs.world / "model")
    method = {"name": "dpo", "beta": BETA, "reference": reference}
    training = {"learning_rate": 1e-2, "max_steps": 2, **changes.pop("training", {})}
    return {"tasks": tasks, "model": model, "method": method, "strategies": [], "training": training, **changes}


def plain_logps(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Log-probability of an answer and the end token, by plain transformers, one row at a time."""
    asked, said = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
    said = [*said, tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*asked, *said]])).logits[0].float()
    table = logits.log_softmax(-1)[len(asked) - 1 : -1]
    return float(table.gather(-1, torch.tensor(said)[:, None]).sum())


def by_hand(run: Path, world: Path, *, adapter: bool) -> float:
    """The first loss of the second stage against the run's first weights, from the saved models alone."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    base = AutoModelForCausalLM.from_pretrained(world / "model").eval()
    place = run / "stages" / "1-less" / "final"
    whole = AutoModelForCausalLM.from_pretrained
    policy: Any = PeftModel.from_pretrained(whole(world / "model"), place) if adapter else whole(place)
    policy.eval()
    held_out = set(read(run).items[0, 1])
    losses = []
    for number, line in enumerate((run.parent / "more.jsonl").read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        if str(number) in held_out:
            continue
        gained = [
            plain_logps(policy, tokenizer, row["prompt"], row[side])
            - plain_logps(base, tokenizer, row["prompt"], row[side])
            for side in ("chosen", "rejected")
        ]
        losses.append(-torch.nn.functional.logsigmoid(torch.tensor(BETA * (gained[0] - gained[1]))).item())
    assert len(losses) == 8
    return sum(losses) / len(losses)


@pytest.mark.parametrize("adapter", [False, True])
def test_base_is_the_run_s_first_weights_by_hand(adapter: bool, runs: Runs) -> None:
    """A step of all rows: the loss of the second task is what plain transformers makes of the saved models."""
    run = runs("run", **dpo(runs, "base", adapter=adapter, prompts_per_step=8))
    found = metric(run, "loss")[2, 1]
    assert abs(found - LOG2) > 1e-3
    assert found == pytest.approx(by_hand(run, runs.world, adapter=adapter), abs=1e-5)


@pytest.mark.parametrize(
    ("reference", "adapter"),
    [
        ("base", False),
        pytest.param("base", True, marks=pytest.mark.slow),
        pytest.param("previous", False, marks=pytest.mark.slow),
    ],
)
def test_a_table_changes_no_number(reference: str, adapter: bool, runs: Runs) -> None:
    """One step of the second task sees 4 of 8 rows and asks a live reference, two steps look up a table: one loss."""
    losses = []
    for steps in (1, 2):
        changes = dpo(runs, reference, adapter=adapter)
        changes["tasks"][1]["training"] = {"max_steps": steps}
        losses.append(metric(runs(f"run-{steps}", **changes), "loss")[2, 1])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert (abs(losses[0] - LOG2) < 1e-6) is (reference == "previous")


@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_begins_its_second_task_at_log_2(adapter: bool, runs: Runs) -> None:
    """Killed between the stages: ``previous`` is then a model read from disk, and still the policy itself."""
    changes = dpo(runs, "previous", adapter=adapter)
    faults.arm("between_stages", 1)
    with pytest.raises(Killed):
        runs("run", **changes)
    assert metric(runs("run", **changes), "loss")[2, 1] == pytest.approx(LOG2, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "adapter", "strategies"),
    [
        pytest.param("base", False, [], id="base"),
        pytest.param("base", True, [REPLAY], id="base-lora-live"),
        pytest.param("previous", True, [REPLAY], id="previous-lora-live"),
        pytest.param("ema", False, [], id="ema"),
    ],
)
def test_killed_within_the_second_task_it_keeps_its_reference(
    reference: str, adapter: bool, strategies: list[Any], runs: Runs
) -> None:
    """The reference is that of the stage's beginning and not of the checkpoint: every loss and weight is the same."""
    changes = dpo(runs, reference, adapter=adapter, training={"max_steps": 4}) | {"strategies": strategies}
    whole = remains(runs("whole", **changes))
    faults.arm("training", 7)
    with pytest.raises(Killed):
        runs("run", **changes)
    assert remains(runs("run", **changes)) == whole
    first = metric(runs.folder / "run", "loss")[2, 1]
    # Rows of the first task that are replayed are not at log 2 either: their policy is the reference, too.
    assert (abs(first - LOG2) < 1e-6) is (reference != "base")


# --- methods that sample -----------------------------------------------------------------------------------

SAMPLED = {"samples_per_prompt": 2, "max_new_tokens": 5}
ONLINE: dict[str, dict[str, Any]] = {
    "rloo": {"name": "rloo", **SAMPLED, "beta": 0.1},
    "grpo": {"name": "grpo", **SAMPLED, "beta": 0.1},
    "ppo": {"name": "ppo", **SAMPLED, "kl_coef": 0.1, "num_epochs": 1},
}
CASES = [
    ("rloo", False, "ema"),
    ("ppo", True, "base"),
    pytest.param("rloo", True, "previous", marks=pytest.mark.slow),
    pytest.param("rloo", False, "base", marks=pytest.mark.slow),
    pytest.param("grpo", True, "base", marks=pytest.mark.slow),
    pytest.param("ppo", False, "ema", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "adapter", "reference"), CASES)
def test_the_kl_of_rollouts_is_to_the_reference_of_the_stage(
    method: str, adapter: bool, reference: str, runs: Runs
) -> None:
    """Nothing at the first rollouts of each stage to ``previous`` and ``ema``; to ``base`` only in the first stage."""
    model = {**lora(runs.world), "lora_dropout": 0.0} if adapter else str(runs.world / "model")
    changes = {"method": {**ONLINE[method], "reference": reference}, "model": model, "strategies": []}
    kl = metric(runs("run", **changes, training={"learning_rate": 1e-2, "max_steps": 2}), "kl")
    assert kl[1, 1] == pytest.approx(0, abs=1e-5)
    assert (abs(kl[2, 1]) < 1e-5) is (reference != "base")
    # The second rollouts of a stage come from weights that have moved.
    assert abs(kl[1, 2]) > 1e-5
    assert abs(kl[2, 2]) > 1e-5
