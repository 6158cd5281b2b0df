"""cppo: the five kinds on a constructed batch, weights with mean 1, a retention term that is zero at the anchor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Completion, Group, Setting
from contrl.methods.grpo import GRPO
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.models.reference import Reference
from contrl.strategies.cppo import CPPO
from contrl.strategies.naive import Naive
from tests.engine.toys import FROZEN, Setup, farthest, make_engine, policy, sft_rows, trace

# Reward and mean log-probability of a token: one of each kind, and ordinary ones that hold the means at 0 and -2.
SAMPLES = {
    "sure and right": (3.0, -0.1, (2.0, 2.0)),
    "lucky": (3.0, -3.9, (2.0, 1.0)),
    "sure and wrong": (-3.0, -0.1, (2.0, 0.2)),
    "noise": (-3.0, -3.9, (0.2, 0.2)),
    "ordinary": (0.1, -2.0, (1.0, 1.0)),
    "right, neither sure nor unsure": (3.0, -2.0, (1.0, 1.0)),
    "balance": (-3.0, -2.0, (1.0, 1.0)),
}


def step(rewards: list[float | None], likely: list[float]) -> list[Group]:
    """One group with a completion of two tokens for each."""
    completions = [
        Completion([5, 6], reward=reward, old_logps=[mean - 0.5, mean + 0.5])
        for reward, mean in zip(rewards, likely, strict=True)
    ]
    return [Group("a", "now", [1, 2], completions)]


def prepared(tmp_path: Path, strategy: CPPO, groups: list[Group]) -> Any:
    """The context of a second stage, whose step was looked at."""
    context = make_engine(policy(), tmp_path, Setup(RLOO(max_new_tokens=4), sft_rows(2))).work.context
    strategy.before_task(context)
    strategy.prepare_step(context, groups)
    return context


def test_all_kinds_are_reached(tmp_path: Path) -> None:
    """alpha is divided by its mean over the step, 9.2 / 7; beta is not."""
    rewards, likely = [r for r, _, _ in SAMPLES.values()], [p for _, p, _ in SAMPLES.values()]
    strategy, groups = CPPO(), step([*rewards], likely)
    context = prepared(tmp_path, strategy, groups)
    batch = context.services.batch(groups)
    wanted = torch.tensor([pair[0] for _, _, pair in SAMPLES.values()])
    torch.testing.assert_close(strategy.weights(context, batch), wanted / wanted.mean())
    assert strategy.count(context, groups) == {"cppo": pytest.approx(sum(p[1] for _, _, p in SAMPLES.values()))}


def test_the_batch_decides_and_not_the_sequence(tmp_path: Path) -> None:
    """Equal answers are all ordinary, whatever their tokens; a missing reward is ordinary too."""
    strategy, groups = CPPO(), step([1.0, 1.0, None], [-1.0, -1.0, -1.0])
    context = prepared(tmp_path, strategy, groups)
    assert strategy.weights(context, context.services.batch(groups)).tolist() == [1.0, 1.0, 1.0]


def test_the_retention_term(tmp_path: Path) -> None:
    """reg_coef sum_i beta_i mean_t (difference)^2: zero while the policy is the earlier one, then as by hand."""
    strategy, model = CPPO(reg_coef=0.5), policy()
    setup = Setup(GRPO(samples_per_prompt=4, max_new_tokens=5), sft_rows(4), strategy, training=FROZEN)
    done = trace(model, tmp_path / "still", setup)
    assert done.logs[0]["cppo/retention"] == pytest.approx(0.0, abs=1e-9)
    context = done.engine.work.context
    groups = done.engine.work.window.rollouts  # type: ignore[union-attr]
    other = Reference(policy(seed=4), "previous")
    strategy._earlier = other
    batch = context.services.batch(groups)
    out = context.services.read(Reference(model, "previous"), batch)
    found = strategy.loss(context, batch, out)
    assert found is not None
    difference = (out.logps - context.services.read(other, batch).logps).square()
    tokens = batch.mask.sum(-1)
    beta = torch.tensor([strategy._weights[id(c)][1] for group in groups for c in group.completions])
    wanted = 0.5 * (beta * (difference * batch.mask).sum(-1) / tokens).sum()
    torch.testing.assert_close(found.sums["cppo"], wanted)
    assert float(wanted) > 0


def test_weights_change_the_gradient(tmp_path: Path) -> None:
    """With all weights 1 and no retention it is naive."""
    found = []
    for name, strategy in {
        "naive": Naive(),
        "off": CPPO(reg_coef=0, upper=1.0, lower=1.0),
        "on": CPPO(reg_coef=0),
    }.items():
        setup = Setup(RLOO(samples_per_prompt=4, max_new_tokens=5), sft_rows(4), strategy, training=FROZEN)
        found.append(trace(policy(), tmp_path / name, setup).gradients[0])
    assert farthest(found[0], found[1]) < 1e-6
    assert farthest(found[0], found[2]) > 1e-2


def test_what_is_refused() -> None:
    refused = CPPO().refuses(Setting(SFT()))
    assert refused is not None
    assert "ppo, rloo or grpo" in refused.fix
    assert CPPO().refuses(Setting(RLOO())) is None
    with pytest.raises(UserError, match="lower <= 1"):
        CPPO(lower=1.5)
