"""Drift: zero where nothing moved, the exact KL where it can be summed, equal afterwards, null for classifiers."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contrl.continual.drift import Drift, summarise
from contrl.continual.plan import Plan
from contrl.continual.records import read_records
from contrl.continual.run_folder import RunFolder
from contrl.interfaces import LIKELIHOOD, Stage, Task, TaskSequence
from contrl.methods.reward_model import RewardModel
from contrl.methods.sft import SFT
from contrl.models.embedded import character_tokenizer
from contrl.models.load import Policy
from tests.engine import toys
from tests.runs import Runs

TOKENIZER = character_tokenizer()


def plan_of(number: int, method: Any = None, limit: int = 1, **changes: Any) -> Plan:
    rows = [{"id": f"{i}", "prompt": "12+3="[: 1 + i % 4], "completion": "5"} for i in range(number)]
    sequence = TaskSequence.in_order(
        [Task("a", rows, rows, metric=LIKELIHOOD), Task("b", rows, rows, metric=LIKELIHOOD)]
    )
    made = method or SFT()
    return Plan(
        sequence, lambda stage: made, lambda stage: {}, 4, 0, 2048, 2048, limit, drift_prompts=number, **changes
    )


def moved(model: Any, by: float) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        noise = torch.randn(other.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
        other.lm_head.weight.add_(by * noise)
    return other


@pytest.fixture(scope="module")
def model() -> Any:
    return toys.policy().eval()


def test_it_is_the_kl_that_summing_over_all_tokens_gives(model: Any, tmp_path: Path) -> None:
    """Answers of one token: KL = sum over the vocabulary of p0 log(p0 / p), averaged over the prompts; the sampled one
    lies within four standard errors of it, and an unchanged policy has exactly 0."""
    plan = plan_of(300)
    policy = Policy(model, TOKENIZER, "")
    drift = Drift(plan, RunFolder(tmp_path), policy)
    drift.sample()
    task = plan.sequence.tasks[0]
    same = drift.measure(Stage(1, ("a",)), task)
    assert same is not None
    assert (same["kl"], same["kl_sequence"], same["n"]) == (0.0, 0.0, 300)
    other = moved(model, 0.1)
    after = Drift(plan, RunFolder(tmp_path), Policy(other, TOKENIZER, ""))
    after.sample()  # found on disk: the weights that are there now are not asked
    found = after.measure(Stage(1, ("a",)), task)
    assert found is not None
    exact = []
    for row in task.eval[:4]:
        ids = torch.tensor([TOKENIZER(row["prompt"])["input_ids"]])
        with torch.no_grad():
            first, second = (each(ids).logits[0, -1].double().log_softmax(-1) for each in (model, other))
        exact.append(float((first.exp() * (first - second)).sum()))
    wanted = sum(exact) / 4
    assert wanted > 0.05
    assert abs(found["kl"] - wanted) < 4 * found["se"]
    assert found["se"] < wanted / 2
    assert (found["kl"], found["se"]) == pytest.approx((found["kl_sequence"], found["se_sequence"]))


def test_ranks_have_their_shares_and_the_same_answers(model: Any, tmp_path: Path) -> None:
    plan, policy = plan_of(5, limit=4), Policy(model, TOKENIZER, "")
    alone = Drift(plan, RunFolder(tmp_path / "one"), policy)
    alone.sample()
    parts = [Drift(plan, RunFolder(tmp_path / "two"), policy, rank, 2) for rank in range(2)]
    for part in parts:
        part.sample()
    answers = {group.row_id: group.completions[0].ids for part in parts for group in part.probes["a"]}
    assert answers == {group.row_id: group.completions[0].ids for group in alone.probes["a"]}
    assert [len(part.probes["a"]) for part in parts] == [3, 2]


def test_per_token_and_per_answer_by_hand() -> None:
    """Two answers, log-ratios 3 over 2 tokens and 1 over 6: 4/8 a token, 4/2 an answer. Residuals of the ratio 2 and
    -2 over a mean length of 4: sqrt(8 / 1 / 2) / 4 = 0.5; of the mean 1 and -1: sqrt(2 / 1 / 2) = 1."""
    found = summarise([(3.0, 2.0), (1.0, 6.0)])
    assert found == {"kl": 0.5, "kl_sequence": 2.0, "n": 2, "se": pytest.approx(0.5), "se_sequence": pytest.approx(1.0)}


def test_what_cannot_be_had_is_null() -> None:
    nothing = {"kl": None, "kl_sequence": None, "n": 0, "se": None, "se_sequence": None}
    assert summarise([]) == summarise([(math.inf, 3.0)]) == nothing
    assert summarise([(1.0, 2.0)])["se"] is None


@pytest.mark.parametrize(
    "changes", [{"method": RewardModel()}, {"evaluates": False}, {"number": 0}], ids=["classifier", "base", "off"]
)
def test_nothing_is_measured_where_there_is_no_kl(model: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = plan_of(**{"number": 2, **changes})
    drift = Drift(plan, RunFolder(tmp_path), Policy(model, TOKENIZER, ""))
    drift.sample()
    assert drift.measure(Stage(1, ("a",)), plan.sequence.tasks[0]) is None
    assert not list(tmp_path.iterdir())
    assert not Drift(plan_of(2), RunFolder(tmp_path), _encoder_decoder()).measures


def _encoder_decoder() -> Policy:
    return Policy(SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True)), TOKENIZER, "")


def test_a_run_records_its_drift_and_results_tell_it(runs: Runs) -> None:
    run = runs(method="sft", training={"max_steps": 2})
    records = read_records(run / "drift.jsonl", ("stage", "task"))
    assert [(r["stage"], r["task"], r["n"]) for r in records] == [
        (stage, task, 4) for stage in (1, 2) for task in ("sums", "doubles")
    ]
    assert all(r["kl"] != 0 for r in records)
    told = json.loads((run / "results.json").read_text(encoding="utf-8"))["drift"]["stages"]
    by_place = {(r["stage"], r["task"]): r["kl"] for r in records}
    assert [stage["row"] for stage in told] == ["1-sums", "2-doubles"]
    assert (told[0]["new"]["kl"], told[0]["old"]["kl"]) == (by_place[1, "sums"], None)
    assert (told[1]["new"]["kl"], told[1]["old"]["kl"]) == (by_place[2, "doubles"], by_place[2, "sums"])
