"""A stage killed after a checkpoint and continued by a new engine ends with the bits of the one never stopped.

The second engine starts from other weights and another random state, as a new process would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Settled, Setup, identical, make_engine, policy, sft_rows, weights, with_lora

from contrl import faults
from contrl.engine.checkpoint import newest_checkpoint
from contrl.engine.trainer import Engine
from contrl.interfaces import Strategy
from contrl.methods.ppo import PPO
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.strategies.composite import Composite
from contrl.strategies.naive import Naive
from contrl.strategies.replay import Replay

ROLLOUTS = RLOO(samples_per_prompt=2, max_new_tokens=4, num_epochs=2, num_minibatches=2)
CRITIC = PPO(samples_per_prompt=2, max_new_tokens=4, num_epochs=2, num_minibatches=2, kl_coef=0.0)
TRAINING = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "linear"}


def random_gpt2(seed: int) -> Any:
    return policy("gpt2", seed, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)


def dropping_lora(seed: int) -> Any:
    # The base is the same; what a checkpoint holds is the adapter.
    return with_lora(policy(), seed, lora_dropout=0.3)


def plain_llama(seed: int) -> Any:
    return policy("llama", seed)


def replaying() -> Strategy:
    replay = Replay(share=0.5)
    replay.memory = {"earlier": [str(i) for i in range(100, 106)]}
    return Composite([Settled(coef=1e-3), replay])


@dataclasses.dataclass(frozen=True)
class Case:
    build: Callable[[int], Any]
    method: Any
    strategy: Callable[[], Strategy] = Naive
    training: tuple[tuple[str, Any], ...] = ()


CASES = {
    "sft with dropout": Case(random_gpt2, SFT()),
    "sft with dropout and accumulation": Case(random_gpt2, SFT(), training=(("gradient_accumulation_steps", 2),)),
    "lora with dropout": Case(dropping_lora, SFT()),
    "rloo mid-window": Case(plain_llama, ROLLOUTS),
    "rloo between windows": Case(plain_llama, dataclasses.replace(ROLLOUTS, num_epochs=3, num_minibatches=1)),
    "ppo mid-window": Case(plain_llama, CRITIC),
    "rloo with strategies": Case(plain_llama, ROLLOUTS, replaying),
}


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("training", 0)


def engine_of(case: Case, folder: Path, seed: int) -> Engine:
    setup = Setup(
        case.method,
        sft_rows(21),
        case.strategy(),
        sft_rows(6, 100),
        prompts_per_step=4,
        num_steps=6,
        training=TRAINING | dict(case.training),
    )
    return make_engine(case.build(seed), folder, setup)


def final(engine: Engine) -> dict[str, Any]:
    """Everything that a later stage or a later resume could see."""
    optimizer = torch.load(Path(engine.args.output_dir) / "checkpoint-6" / "optimizer.pt", weights_only=True)
    moments = {f"{index}/{name}": value for index, kept in optimizer["state"].items() for name, value in kept.items()}
    return {**weights(engine.work.context.model), **moments, "rng": torch.get_rng_state()}


def timeless(log: dict[str, float]) -> dict[str, float]:
    """What a step logs, without how long it took."""
    return {k: v for k, v in log.items() if not k.startswith(("seconds", "memory")) and k != "tokens_per_second"}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_resumed_stage_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """6 steps at once = 3 steps, a kill in the 4th, and 3 more from checkpoint-3."""
    case = CASES[name]
    whole = engine_of(case, tmp_path / "whole", seed=0)
    whole.fit()
    wanted = final(whole)

    faults.arm("training", 4)
    with pytest.raises(faults.Killed):
        engine_of(case, tmp_path / "parts", seed=0).fit()
    checkpoint = newest_checkpoint(tmp_path / "parts")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"

    resumed = engine_of(case, tmp_path / "parts", seed=5)
    torch.manual_seed(12345)
    assert not identical(weights(resumed.work.context.model), weights(whole.work.context.model))
    resumed.fit(checkpoint)
    assert resumed.state.global_step == 6
    assert identical(final(resumed), wanted)
    assert resumed.work.strategy.state_dict() == whole.work.strategy.state_dict()
    assert resumed.num_tokens == whole.num_tokens
    steps = {log["step"]: log for log in whole.state.log_history if "loss" in log}
    for log in resumed.state.log_history:
        if log.get("step", 0) > 3 and "loss" in log:
            assert timeless(log) == timeless(steps[log["step"]])


def test_dropout_makes_the_difference_that_resume_must_hide(tmp_path: Path) -> None:
    """Without the restored random state the weights would differ, so the case above tests something."""
    case = CASES["sft with dropout"]
    first, second = engine_of(case, tmp_path / "a", 0), engine_of(case, tmp_path / "b", 0)
    first.fit()
    torch.manual_seed(12345)
    second.fit()
    assert not identical(weights(first.work.context.model), weights(second.work.context.model))


def test_rows_are_read_without_the_global_random_state(tmp_path: Path) -> None:
    """On a mid-epoch resume Trainer reads the step's rows *before* it restores the random state (contract), so
    nothing random may happen there: neither in ``get_batch_samples`` nor in the strategies' draws. (torch's loader
    draws one number when it is opened, which is before the restore as well.)"""
    events: list[str] = []

    class Watched(Engine):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            opened = "rows" in events
            events.append("rows")
            before = torch.get_rng_state()
            found = super().get_batch_samples(*args, **kwargs)
            assert not opened or torch.equal(torch.get_rng_state(), before)
            return found

        def _drawn(self) -> Any:
            before = torch.get_rng_state()
            found = super()._drawn()
            assert torch.equal(torch.get_rng_state(), before)
            events.append("drawn")
            return found

        def _load_rng_state(self, checkpoint: Any) -> None:
            events.append("random state")
            super()._load_rng_state(checkpoint)

    setup = Setup(SFT(), sft_rows(12), replaying(), sft_rows(6, 100), prompts_per_step=4, num_steps=3)
    setup.training = {"save_strategy": "steps", "save_steps": 1}
    make_engine(policy(), tmp_path, setup).fit()
    make_engine(policy(), tmp_path, setup, Watched).fit(tmp_path / "checkpoint-1")
    assert events == ["rows", "random state", "drawn", "rows", "drawn"]
