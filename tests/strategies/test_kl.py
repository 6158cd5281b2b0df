"""kl: the divergence of whole distributions, by hand; on which rows; nothing where there is nothing earlier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.engine import lm_head
from contrl.errors import UserError
from contrl.interfaces import Group, Setting
from contrl.methods.dpo import DPO
from contrl.methods.reward_model import RewardModel
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.models.reference import Reference
from contrl.strategies.kl import KL, _preference_kl
from contrl.strategies.naive import Naive
from tests import runs as small
from tests.engine.toys import (
    FROZEN,
    Setup,
    farthest,
    identical,
    make_engine,
    pair_rows,
    policy,
    sft_rows,
    trace,
    weights,
    with_lora,
)
from tests.runs import Runs, metric

world, runs = small.world, small.runs
MOVING = {"learning_rate": 2e-2, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
OLD = sft_rows(8, 300)


def by_hand(model: Any, teacher: Any, groups: list[Group], direction: str) -> torch.Tensor:
    """Mean over the trained tokens of the KL divergence, from whole logits of one row after the other."""
    total, number = torch.zeros(()), 0
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([group.prompt_ids + completion.ids])
            start = len(group.prompt_ids) - 1
            places = range(start, start + len(completion.ids))
            mine = model(ids).logits[0, list(places)].log_softmax(-1)
            theirs = teacher(ids).logits[0, list(places)].log_softmax(-1).detach()
            first, second = (theirs, mine) if direction == "forward" else (mine, theirs)
            total, number = total + (first.exp() * (first - second)).sum(), number + len(completion.ids)
    return total / number


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_on_current_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: Any, adapter: bool
) -> None:
    """The gradient with it less the one without is coef times that of the mean KL; also in chunks of the head."""
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", 4 * 98 * 5)
    model = with_lora(policy()) if adapter else policy()
    teacher = with_lora(policy(), seed=8) if adapter else policy(seed=9)
    strategy = KL(coef=2.0, direction=direction)
    engine = make_engine(model, tmp_path / "x", Setup(SFT(), sft_rows(5), strategy, training=FROZEN))
    wanted_model = with_lora(policy()) if adapter else policy()
    value = 2.0 * by_hand(wanted_model, teacher, engine.work.groups, direction)
    named = {name: p for name, p in wanted_model.named_parameters() if p.requires_grad}
    wanted = dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))
    gradients = []
    for used in (strategy, Naive()):
        setup = Setup(SFT(), sft_rows(5), used, training=FROZEN, tokens_per_pass=40)
        engine = make_engine(model, tmp_path / used.name, setup)
        reference = Reference(model, "previous")
        trained = {name: p.detach() for name, p in teacher.named_parameters() if p.requires_grad}
        reference.load_state_dict({"weights": trained if adapter else teacher.state_dict()})
        engine.work.context.services._frozen["previous"] = reference
        used.before_task(engine.work.context)
        with engine.ready():
            engine.create_optimizer()
            model.zero_grad()
            engine.train_on(model, engine.work.groups, False)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    difference = {name: gradients[0][name] - gradients[1][name] for name in wanted}
    assert farthest(wanted, difference) < 1e-4


@pytest.mark.parametrize(
    "method", [SFT(), DPO(), RLOO(samples_per_prompt=2, max_new_tokens=5)], ids=["sft", "dpo", "rloo"]
)
def test_on_old_prompts_only_the_strategy_sees_them(tmp_path: Path, method: Any) -> None:
    """Answers of the earlier policy; the method's own loss and counts stay what they were; at first it is 0."""
    rows = pair_rows(8) if isinstance(method, DPO) else sft_rows(8)
    found = {}
    for strategy in (KL(coef=1.0, on="old", num_prompts=4, max_new_tokens=6), Naive()):
        setup = Setup(method, rows, strategy, OLD, training=FROZEN)
        found[strategy.name] = trace(policy(), tmp_path / strategy.name, setup)
    logs = {name: done.logs[0] for name, done in found.items()}
    assert logs["kl"]["kl/divergence"] == pytest.approx(0.0, abs=1e-6)
    assert logs["kl"]["loss"] == pytest.approx(logs["naive"]["loss"], abs=1e-6)
    assert farthest(found["naive"].gradients[0], found["kl"].gradients[0]) < 1e-4


def test_it_holds_the_policy_back(tmp_path: Path) -> None:
    """After some steps the policy is nearer to the earlier one on the old prompts than without."""
    distance = {}
    for coef in (0.0, 3.0):
        strategy = KL(coef=coef, on="old", num_prompts=8, max_new_tokens=6)
        model = policy()
        trace(model, tmp_path / str(coef), Setup(SFT(), sft_rows(16), strategy, OLD, num_steps=10, training=MOVING))
        first = policy()
        probe = make_engine(first, tmp_path / "probe", Setup(SFT(), OLD)).work.groups
        distance[coef] = float(by_hand(model, first, probe, "forward").detach())
    assert distance[3.0] < 0.7 * distance[0.0]


def test_coefficient_zero_is_naive_to_the_bit(tmp_path: Path) -> None:
    found = []
    for strategy in (KL(coef=0.0), Naive()):
        model = policy()
        trace(model, tmp_path / strategy.name, Setup(SFT(), sft_rows(12), strategy, OLD, training=MOVING))
        found.append(weights(model))
    assert identical(*found)


def test_of_preferences_it_is_that_of_two_answers() -> None:
    """KL of Bernoulli(0.8) from Bernoulli(0.5): 0.8 ln 1.6 + 0.2 ln 0.4 = 0.19274."""
    eight, even = torch.tensor([0.8]).logit(), torch.tensor([0.5]).logit()
    assert float(_preference_kl(eight, even, "forward")) == pytest.approx(0.19274, abs=1e-4)
    assert float(_preference_kl(even, eight, "reverse")) == pytest.approx(0.19274, abs=1e-4)
    assert float(_preference_kl(eight, eight, "forward")) == pytest.approx(0.0, abs=1e-7)


def test_a_run_with_generic_prompts_and_a_resumed_one(runs: Runs) -> None:
    """From a file, in both stages; killed in the middle and continued it ends the same."""
    (runs.folder / "generic.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(6)), encoding="utf-8"
    )
    strategies = [{"name": "kl", "on": "generic", "prompts": str(runs.folder / "generic.jsonl"), "max_new_tokens": 4}]
    whole = runs("whole", method="sft", strategies=strategies)
    assert set(metric(whole, "kl/divergence")) == {(stage, step) for stage in (1, 2) for step in (1, 2, 3, 4)}
    from contrl import faults

    faults.arm("training", 6)
    with pytest.raises(faults.Killed):
        runs("again", method="sft", strategies=strategies)
    again = runs("again", method="sft", strategies=strategies)
    assert small.weights(again) == small.weights(whole)


def test_what_is_refused() -> None:
    refused = KL(on="generic", prompts="x").refuses(Setting(RewardModel()))
    assert refused is not None
    assert "on: old" in refused.fix
    assert KL(on="old").refuses(Setting(RewardModel())) is None
    with pytest.raises(UserError, match="prompts names the file"):
        KL(on="generic")
    with pytest.raises(UserError, match="coef >= 0"):
        KL(coef=-1)


def test_without_an_earlier_task_there_is_nothing(at: Any) -> None:
    strategy = KL(on="old")
    strategy.before_task(at(1))
    assert strategy.teachers(at(1)) == {}
    assert strategy.anchors(at(1), 8) == []
