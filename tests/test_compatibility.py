"""Pairs that cannot work are refused before a model is loaded, with the reason and what works."""

from __future__ import annotations

from typing import Any

import pytest

from contrl.compatibility import check_pairs
from contrl.config import load
from contrl.errors import UserError
from contrl.experiment import build_tasks, find
from tests import runs as small
from tests.runs import Runs

world, runs = small.world, small.runs


def check(config: dict[str, Any]) -> None:
    resolved = load(config, resolve=find).config
    check_pairs(resolved, build_tasks(resolved))


def test_an_online_method_needs_rewards(runs: Runs) -> None:
    config = runs.config()
    del config["tasks"][1]["reward"]
    with pytest.raises(UserError, match="rloo needs a reward, and doubles has none"):
        check(config)
    check({**config, "method": "sft"})


def test_every_task_needs_rows_to_judge_by(runs: Runs) -> None:
    config = runs.config()
    del config["tasks"][0]["eval_size"]
    with pytest.raises(UserError, match="nothing to evaluate sums on"):
        check(config)


@pytest.mark.parametrize("where", ["run", "task"])
def test_a_penalty_is_refused_in_half_precision(runs: Runs, where: str) -> None:
    """fp16 hides whole gradients; bf16 and strategies on rows are fine."""
    config = runs.config(strategies=["tests.plugins:Pull"], training={"fp16": True} if where == "run" else {})
    if where == "task":
        config["tasks"][1]["training"] = {"fp16": True}
    with pytest.raises(UserError, match=r"the strategy pull does not go with this run") as caught:
        check(config)
    assert "fp16 scales the loss" in caught.value.why
    assert "replay, kl or averaging" in caught.value.fix
    check(runs.config(strategies=["tests.plugins:Pull"], training={"bf16": True}))
    check(runs.config(strategies=["replay"], training={"fp16": True}))


def test_a_penalty_is_refused_where_accelerate_launches_half_precision(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``accelerate launch --mixed_precision fp16`` says so in the environment alone; bf16 of every stage wins."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    config = runs.config(strategies=["tests.plugins:Pull"])
    with pytest.raises(UserError, match=r"the strategy pull does not go with this run") as caught:
        check(config)
    assert "fp16 scales the loss" in caught.value.why
    check(runs.config(strategies=["replay"]))
    config["training"] = {**config.get("training", {}), "bf16": True}
    check(config)
    config["tasks"][1]["training"] = {"bf16": False}
    with pytest.raises(UserError, match="the strategy pull"):
        check(config)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check(config)


def test_it_is_refused_before_a_model_is_loaded(runs: Runs) -> None:
    """The model does not exist, and the pair is what is told."""
    config = runs.config(strategies=["tests.plugins:Pull"], training={"fp16": True}, model="nobody/nothing")
    with pytest.raises(UserError, match="the strategy pull does not go with this run"):
        runs.start(config)


def test_a_base_stage_is_offline(runs: Runs) -> None:
    with pytest.raises(UserError, match="a base stage cannot learn by rloo"):
        check(runs.config(base={"method": "rloo"}))


@pytest.mark.parametrize("strategies", [["ewc", "adapters"], ["independent", "ewc"], ["joint", "replay"]])
def test_strategies_that_contradict_each_other(runs: Runs, strategies: list[str]) -> None:
    """Told before a model is loaded, with the reason."""
    model = {"name_or_path": "nobody/nothing", "use_peft": True}
    with pytest.raises(UserError, match=r"cannot be combined") as caught:
        runs.start(runs.config(strategies=strategies, model=model))
    assert caught.value.why


def test_every_refused_strategy_is_named_at_once(runs: Runs) -> None:
    with pytest.raises(UserError, match="the strategy cppo, copr") as caught:
        check(runs.config(method="sft", strategies=["cppo", "copr"]))
    assert "ppo, rloo or grpo" in caught.value.fix
    assert "dpo, cpo or orpo" in caught.value.fix
