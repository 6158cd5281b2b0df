"""PPO's credit and losses against hand arithmetic: token rewards, whitening, GAE, clips, the adaptive coefficient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from contrl.engine.batching import to_batch
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs, Pool
from contrl.methods.ppo import KL_COEF, PPO

PLAIN = PPO(kl_coef=0.0, whiten_advantages=False, gae_lambda=1.0)
"""No KL, no whitening, and returns that are sums of rewards."""


def completion(
    values: list[float],
    reward: float | None = 1.0,
    kl: list[float] | None = None,
    *,
    ended: bool = True,
) -> Completion:
    """``kl`` is log p - log p_ref of each token, where log p is -1."""
    length = len(values)
    made = Completion([5] * length, reward=reward, ended=ended, old_logps=[-1.0] * length, values=values)
    made.reference_logps = [-1.0 - gap for gap in (kl or [0.0] * length)]
    return made


def groups_of(*completions: Completion) -> list[Group]:
    return [Group(str(number), "t", [1], [one]) for number, one in enumerate(completions)]


# --- credit ---------------------------------------------------------------------------------------------


def test_the_golden_case_through_credit() -> None:
    """Rewards 0 0 1, values .5 .4 .3, gamma 1, lambda .95; the score stands on the last token and nowhere else."""
    one = completion([0.5, 0.4, 0.3])
    PPO(kl_coef=0.0, whiten_advantages=False).credit(groups_of(one), Pool())
    assert one.token_advantages == pytest.approx([0.43675, 0.565, 0.7])
    assert one.returns == pytest.approx([0.93675, 0.965, 1.0])


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        # -.1 x the KL of each token, d = .5 and -.2, and the score 2 on the last one; returns sum from the right.
        ("k1", [2.0 - 0.05 + 0.02, 2.0 + 0.02]),
        ("k2", [2.0 - 0.0125 - 0.002, 2.0 - 0.002]),
        ("k3", [2.0 - 0.0106531 - 0.0021403, 2.0 - 0.0021403]),
    ],
)
def test_every_token_pays_for_its_own_kl(estimator: Any, wanted: list[float]) -> None:
    """A token the policy likes more than the reference does costs: a swapped KL would pay for it."""
    one = completion([0.0, 0.0], 2.0, kl=[0.5, -0.2])
    metrics = replace(PLAIN, kl_coef=0.1, kl_estimator=estimator).credit(groups_of(one), Pool())
    assert one.returns == pytest.approx(wanted, abs=1e-6)
    assert metrics["kl"] == metrics["objective/kl"]
    assert metrics["objective/non_score_reward"][0] == pytest.approx(wanted[0] - 2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "reward", "ended", "wanted"),
    [
        ({}, 3.0, False, 3.0),
        ({"missing_eos_penalty": 1.0}, 3.0, False, 2.0),
        ({"missing_eos_penalty": 1.0}, 3.0, True, 3.0),
        ({"reward_clip": (-1.0, 2.0)}, 3.0, True, 2.0),
        ({"reward_clip": (-1.0, 2.0)}, -3.0, True, -1.0),
        ({"reward_clip": (-1.0, 2.0), "missing_eos_penalty": 1.5}, 3.0, False, 0.5),  # the penalty comes after
    ],
)
def test_clips_and_penalties_of_the_score(fields: dict[str, Any], reward: float, ended: bool, wanted: float) -> None:
    one = completion([0.0, 0.0], reward, ended=ended)
    metrics = replace(PLAIN, **fields).credit(groups_of(one), Pool())
    assert one.returns == [wanted, wanted]
    assert metrics["objective/scores"] == (wanted, 1.0)
    assert metrics["reward"] == (reward, 1.0)


def test_advantages_are_whitened_over_all_tokens_of_the_window() -> None:
    """Lambda 0, values 0: advantages are the token rewards 0 2 | 5: mean 7/3, unbiased variance 19/3."""
    first, second = completion([0.0, 0.0], 2.0), completion([0.0], 5.0)
    PPO(kl_coef=0.0, gae_lambda=0.0, gamma=0.0).credit(groups_of(first, second), Pool())
    scale = (19 / 3) ** -0.5
    assert first.token_advantages == pytest.approx([-7 / 3 * scale, -1 / 3 * scale])
    assert second.token_advantages == pytest.approx([8 / 3 * scale])
    assert first.returns == [0.0, 2.0]


def test_whitened_rewards_keep_their_mean() -> None:
    """Token rewards 0 2: mean 1, variance 2: 1 -+ 1 / sqrt(2); returns without discount sum them."""
    one = completion([0.0, 0.0], 2.0)
    replace(PLAIN, whiten_rewards=True).credit(groups_of(one), Pool())
    assert one.returns == pytest.approx([2.0, 1 + 0.5**0.5])


def test_a_missing_reward_takes_no_part_anywhere() -> None:
    """The others get what they get without it; it has no trained token, so neither term sees it."""
    first, second, missing = completion([0.1, 0.2]), completion([0.3], 0.5), completion([9.0, 9.0], None)
    alone = [completion([0.1, 0.2]), completion([0.3], 0.5)]
    method = PPO(kl_coef=0.0, whiten_rewards=True)
    groups = groups_of(first, second, missing)
    method.credit(groups, Pool())
    method.credit(groups_of(*alone), Pool())
    assert first.token_advantages == alone[0].token_advantages
    assert second.returns == alone[1].returns
    assert missing.num_trained() == 0
    assert [method.teaches(group) for group in groups] == [True, True, False]
    assert method.count(groups) == {"policy": 3.0, "value": 3.0}


def test_equal_rewards_still_teach_values() -> None:
    groups = groups_of(completion([0.0], 1.0), completion([0.0], 1.0))
    PLAIN.credit(groups, Pool())
    assert all(PLAIN.teaches(group) for group in groups)


def test_the_adaptive_coefficient_is_used_by_the_next_window() -> None:
    """KL per completion (.5 - .2, 1) -> .65, target 1.3: error -.2 clipped, 2 completions of horizon 100."""
    method = replace(PLAIN, kl_coef=0.1, target_kl=1.3, kl_horizon=100.0)
    pool = Pool()

    def window() -> dict[str, tuple[float, float]]:
        return method.credit(groups_of(completion([0.0] * 2, kl=[0.5, -0.2]), completion([0.0], kl=[1.0])), pool)

    assert window()["objective/kl_coef"] == (0.1, 1.0)
    assert pool.memory[KL_COEF] == pytest.approx(0.1 * (1 - 0.2 * 2 / 100))
    metrics = window()
    assert metrics["objective/kl_coef"][0] == pytest.approx(0.0996)
    assert metrics["objective/non_score_reward"] == (pytest.approx(-0.0996 * 1.3), 2.0)
    assert replace(PLAIN, kl_coef=0.1).credit(groups_of(completion([0.0])), fixed := Pool())["objective/kl_coef"]
    assert fixed.memory == {}


def test_metrics_by_hand() -> None:
    """Two completions: 2 tokens with d = .5 -.2 and score 2, 1 token with d = 1, cut, no score."""
    groups = groups_of(completion([0.0] * 2, 2.0, [0.5, -0.2]), completion([0.0], None, [1.0], ended=False))
    metrics = replace(PLAIN, kl_coef=0.1).credit(groups, Pool())
    assert metrics == {
        "reward": (2.0, 1.0),
        "reward_std": (0.0, 1.0),
        "kl": (pytest.approx(1.3), 2.0),
        "objective/kl": (pytest.approx(1.3), 2.0),
        "objective/entropy": (3.0, 2.0),
        "objective/non_score_reward": (pytest.approx(-0.13), 2.0),
        "objective/rlhf_reward": (pytest.approx(2.0 - 0.03), 1.0),
        "objective/scores": (2.0, 1.0),
        "objective/kl_coef": (0.1, 1.0),
        "val/num_eos_tokens": (1.0, 1.0),
    }
    assert {"kl", "objective/kl"}.isdisjoint(PLAIN.credit(groups, Pool()))


def test_credit_without_what_the_engine_measures_is_a_bug_and_not_silent() -> None:
    with pytest.raises(RuntimeError, match="values"):
        PLAIN.credit([Group("0", "t", [1], [Completion([5], reward=1.0, old_logps=[-1.0])])], Pool())


# --- loss -----------------------------------------------------------------------------------------------


def prepared(make_batch: Callable[..., Batch], old: list[list[float]] | None = None) -> Batch:
    """Tokens: advantages 1 -2 | .5, returns 1 0 | 2, old values .4 .3 | 1.9."""
    batch = make_batch([[1, 1], [1, 0]], None, old)
    batch.token_advantages = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    batch.returns = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    batch.old_values = torch.tensor([[0.4, 0.3], [1.9, 0.0]])
    return batch


def test_surrogate_and_value_loss_by_hand(make_batch: Callable[..., Batch]) -> None:
    """Ratios 1.5 (A 1, clipped at 1.2), .5 (A -2, clipped at .8), 1.1 (A .5): -1.2 + 1.6 - .55 = -.15.

    Values .5 (error .5), .8 (moved by .5: near .5, but .8^2 is larger), 2.5 (error .5; near 2.1 has .1):
    (.25 + .64 + .25) / 2 = .57. Three trained tokens divide both, value_coef is .1.
    """
    batch = prepared(make_batch, [[-1.0, -1.0], [-1.0, 0.0]])
    logps = (torch.tensor([[1.5, 0.5], [1.1, 1.0]]).log() + torch.tensor([[-1.0, -1.0], [-1.0, 0.0]])).requires_grad_()
    values = torch.tensor([[0.5, 0.8], [2.5, 7.0]], requires_grad=True)
    out = PPO().loss(Outputs(logps, entropy=torch.tensor([[1.0, 2.0], [3.0, 9.0]]), values=values), batch)
    assert out.sums["policy"].item() == pytest.approx(-0.15, abs=1e-6)
    assert out.sums["value"].item() == pytest.approx(0.057)
    gradient, of_values = torch.autograd.grad(out.sums["policy"] + out.sums["value"], [logps, values])
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [-0.55, 0.0]]))
    torch.testing.assert_close(of_values, torch.tensor([[-0.05, 0.08], [0.05, 0.0]]))
    log_ratios = torch.tensor([1.5, 0.5, 1.1]).log()
    assert {name: float(total) / float(count) for name, (total, count) in out.metrics.items()} == {
        "policy/approxkl_avg": pytest.approx(float(log_ratios.square().mean()) / 2),
        "policy/clipfrac_avg": pytest.approx(2 / 3),
        "policy/entropy_avg": 2.0,
        "loss/policy_avg": pytest.approx(-0.05),
        "loss/value_avg": pytest.approx(0.19),
        "val/clipfrac_avg": 0.0,
        "val/ratio": pytest.approx(3.1 / 3),
        "val/ratio_var": pytest.approx((0.25 + 0.25 + 0.01) / 3),
    }


def test_a_value_that_moved_enough_is_not_pulled_further(make_batch: Callable[..., Batch]) -> None:
    """Old .4, return 1, value .9: near is .6, (.4)^2 / 2 instead of (.1)^2 / 2, without gradient."""
    batch = prepared(make_batch)
    values = torch.tensor([[0.9, 0.3], [1.9, 0.0]], requires_grad=True)
    out = PPO(value_coef=1.0).loss(Outputs(torch.zeros(2, 2), values=values), batch)
    (gradient,) = torch.autograd.grad(out.sums["value"], values)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.3], [-0.1, 0.0]]))
    assert float(out.metrics["val/clipfrac_avg"][0]) == 1.0
    free = PPO(value_coef=1.0, clip_value=None).loss(Outputs(torch.zeros(2, 2), values=values), batch)
    assert torch.autograd.grad(free.sums["value"], values)[0][0, 0].item() == pytest.approx(-0.1)


def test_the_first_step_of_a_window_has_ratio_exactly_one(make_batch: Callable[..., Batch]) -> None:
    """Gradient -A at each trained token: good tokens become likelier; the masked one is not touched."""
    batch = prepared(make_batch)
    logps = torch.tensor([[-0.3, -1.0], [-0.7, -5.0]], requires_grad=True)
    out = PPO().loss(Outputs(logps, values=torch.zeros(2, 2)), batch)
    (gradient,) = torch.autograd.grad(out.sums["policy"], logps)
    assert gradient.tolist() == [[-1.0, 2.0], [-0.5, 0.0]]
    assert float(out.metrics["val/ratio"][0]) == 3.0
    assert float(out.metrics["policy/approxkl_avg"][0]) == 0.0


def test_weights_and_importance_weights(make_batch: Callable[..., Batch]) -> None:
    """Importance weights on the policy term alone, a completion's weight on both."""
    batch = replace(prepared(make_batch), correction=torch.tensor([[0.5, 2.0], [1.0, 9.0]]))
    batch.weights = torch.tensor([1.0, 0.5])
    out = PPO(value_coef=1.0, clip_value=None).loss(Outputs(torch.zeros(2, 2), values=torch.zeros(2, 2)), batch)
    assert out.sums["policy"].item() == pytest.approx(-(0.5 * 1.0 + 2.0 * -2.0 + 0.5 * 0.5))
    assert out.sums["value"].item() == pytest.approx((1.0 + 0.0 + 0.5 * 4.0) / 2)


def test_credit_and_loss_speak_of_the_same_tokens() -> None:
    """Through ``to_batch``: the gradient of each token is minus its own advantage, not its neighbour's."""
    groups = groups_of(completion([0.1, 0.4, -0.2], 1.0, [0.5, 0.0, 0.1]), completion([0.3], 0.2, [0.2]))
    method = PPO()
    method.credit(groups, Pool())
    batch = to_batch(groups, torch.device("cpu"))
    logps = torch.zeros(2, 3, requires_grad=True)
    values = torch.zeros(2, 3, requires_grad=True)
    out = method.loss(Outputs(logps, values=values), batch)
    (gradient,) = torch.autograd.grad(out.sums["policy"], logps)
    for row, group in zip(gradient.tolist(), groups, strict=True):
        advantages = group.completions[0].token_advantages or []
        assert row[: len(advantages)] == pytest.approx([-advantage for advantage in advantages])
        assert not any(row[len(advantages) :])


def test_a_loss_without_values_is_a_bug_and_not_silent(make_batch: Callable[..., Batch]) -> None:
    with pytest.raises(RuntimeError, match="values"):
        PPO().loss(Outputs(torch.zeros(2, 2)), prepared(make_batch))


@pytest.mark.parametrize(
    "fields",
    [
        {"kl_coef": -0.1},
        {"kl_estimator": "k4"},
        {"target_kl": 0.0},
        {"target_kl": 6.0, "kl_coef": 0.0},
        {"kl_horizon": 0.0},
        {"clip_value": 0.0},
        {"value_coef": -1.0},
        {"gamma": 1.1},
        {"gae_lambda": -0.1},
        {"value": "trunk"},
        {"value_model": "folder"},
        {"reward_clip": (1.0, 0.0)},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        PPO(**fields)


def test_one_sample_per_prompt_is_enough() -> None:
    assert PPO(samples_per_prompt=1, value="model", value_model="folder").needs == {"policy_logps", "entropy", "values"}
