"""Every online method learns what its reward says: a bandit with a known best answer, longer and shorter answers.

These are the tests that a wrong sign, a mask shifted by a token or a reward on the wrong completion cannot pass.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from toys import Setup, make_engine, policy, sft_rows

from contrl.methods.grpo import GRPO
from contrl.methods.ppo import PPO
from contrl.methods.rloo import RLOO
from contrl.models.embedded import character_tokenizer

METHODS: dict[str, Any] = {
    "rloo": RLOO(samples_per_prompt=8, max_new_tokens=1),
    "grpo": GRPO(samples_per_prompt=8, max_new_tokens=1),
    "ppo": PPO(samples_per_prompt=8, max_new_tokens=1, num_epochs=2, kl_coef=0.01),
}
TRAINING = {"learning_rate": 5e-3, "optim": "adamw_torch", "lr_scheduler_type": "constant"}
BEST = "7"


def bandit(*, completions: list[str], **columns: list) -> list[float]:
    """1 for one of a hundred arms, 0 for every other; a little for digits, so that the arm is found."""
    return [1.0 if text == BEST else 0.2 * text.isdigit() for text in completions]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_best_arm_of_a_bandit_is_found(name: str, tmp_path: Path) -> None:
    """Probability above 0.95 on prompts it was not trained on."""
    model, tokenizer = policy(), character_tokenizer()
    setup = Setup(METHODS[name], sft_rows(16), prompts_per_step=8, num_steps=120, reward=bandit, training=TRAINING)
    make_engine(model, tmp_path, setup).fit()
    best = tokenizer.convert_tokens_to_ids(BEST)
    probabilities = []
    for row in sft_rows(8, start=50):
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        with torch.no_grad():
            probabilities.append(float(model(input_ids=ids).logits[0, -1].softmax(-1)[best]))
    assert sum(probabilities) / len(probabilities) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_length_follows_the_sign_of_the_reward(name: str, tmp_path: Path) -> None:
    """From the same weights, a reward for longer and one for shorter answers move the mean length apart."""
    lengths: dict[int, list[float]] = {}
    for sign in (1, -1):

        def wanted(*, completions: list[str], sign: int = sign, **columns: list) -> list[float]:
            return [sign * len(text) / 10 for text in completions]

        method = dataclasses.replace(METHODS[name], max_new_tokens=16)
        model = policy()
        with torch.no_grad():
            # One token in about eight ends an answer, so that lengths differ from the start.
            tokenizer = character_tokenizer()
            model.lm_head.weight[tokenizer.eos_token_id] *= 4.0
        setup = Setup(method, sft_rows(16), prompts_per_step=8, num_steps=40, reward=wanted, training=TRAINING)
        engine = make_engine(model, tmp_path / f"{name}{sign}", setup)
        engine.fit()
        logs = [log for log in engine.state.log_history if "completions/mean_length" in log]
        lengths[sign] = [log["completions/mean_length"] for log in logs]
    first = lengths[1][0]
    assert lengths[-1][0] == first
    assert lengths[1][-1] > first + 2
    assert lengths[-1][-1] < first - 2
