"""RLOO against TRL 1.16's recorded losses and advantages, and REINFORCE's closed form through a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs, Pool
from contrl.methods.rloo import RLOO

FOLDER = Path(__file__).parents[1] / "golden"
with open(FOLDER / "rloo-trl-1.16.0.json", encoding="utf-8") as _file:
    GOLDEN = json.load(_file)["losses"]
with open(FOLDER / "online-trl-1.16.0.json", encoding="utf-8") as _file:
    PENALISED = json.load(_file)["penalised"]


def rollout(rewards: list[float | None], row_id: str = "0") -> Group:
    return Group(row_id, "task", [1, 2], [Completion([3, 4], reward=reward) for reward in rewards])


def advantages_of(group: Group) -> list[float]:
    return [completion.advantage for completion in group.completions]


# --- the loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_loss_gradient_and_metrics_equal_trl(name: str, make_batch: Callable[..., Batch]) -> None:
    """Our sum over completions divided by ``count`` is TRL's mean: 0.358474 on Fixture G of its tests."""
    record = GOLDEN[name]
    given = record["input"]
    method = RLOO(clip=given["clip"])
    batch = make_batch(given["mask"], given["advantages"], given["old_logps"])
    logps = torch.tensor(given["logps"], dtype=torch.float32, requires_grad=True)
    out = method.loss(Outputs(logps, torch.tensor(given["entropies"], dtype=torch.float32)), batch)
    assert out.sums.keys() == method.count(batch.groups).keys() == {"policy"}
    loss = out.sums["policy"] / method.count(batch.groups)["policy"]
    assert loss.item() == pytest.approx(record["loss"], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(gradient, torch.tensor(record["gradient"]), atol=1e-6, rtol=0)
    metrics = {key: float(total) / float(count) for key, (total, count) in out.metrics.items()}
    assert metrics == pytest.approx(record["metrics"])


def test_fixture_g_is_the_number_of_the_issue() -> None:
    assert GOLDEN["fixture_g"]["loss"] == pytest.approx(0.358474, abs=1e-6)


def test_the_first_step_of_a_window_is_reinforce(make_batch: Callable[..., Batch]) -> None:
    """Without old log-probabilities the ratio is exactly 1: value -sum A, gradient -A for each trained token."""
    batch = make_batch([[1, 1, 1], [1, 0, 0]], advantages=[0.75, -1.5])
    logps = torch.tensor([[-0.3, -1.0, -2.0], [-0.7, 0.0, 0.0]], requires_grad=True)
    out = RLOO().loss(Outputs(logps), batch)
    (gradient,) = torch.autograd.grad(out.sums["policy"], logps)
    assert out.sums["policy"].item() == 0.75
    assert gradient.tolist() == [[-0.75, -0.75, -0.75], [1.5, 0.0, 0.0]]
    assert float(out.metrics["clip_ratio/region_mean"][0]) == 0
    assert "entropy" not in out.metrics


def test_the_weights_gradient_is_reinforce_through_a_model() -> None:
    """Through the engine's forward: d loss / d weights = -sum A_i d log p(y_i | x), and only completions count.

    The closed form is taken from the model's own logits, on the whole row; a mask shifted by one would differ.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config).double().eval()
    group = Group("0", "t", [2, 3, 4], [Completion([5, 6, 7], advantage=1.25), Completion([8], advantage=-1.25)])
    batch = to_batch([group], torch.device("cpu"))
    logps = score_batch(model, LMHead(model), batch, Routing("plain"))["logps"]
    mine = torch.autograd.grad(RLOO().loss(Outputs(logps), batch).sums["policy"], list(model.parameters()))
    wanted = torch.zeros((), dtype=torch.float64)
    for completion in group.completions:
        row = torch.tensor([group.prompt_ids + completion.ids])
        table = torch.log_softmax(model(row).logits[0], -1)
        for position, token in enumerate(completion.ids):
            wanted = wanted - completion.advantage * table[len(group.prompt_ids) - 1 + position, token]
    for got, expected in zip(mine, torch.autograd.grad(wanted, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


def test_weights_multiply_the_terms_and_not_the_count(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch([[1], [1]], advantages=[1.0, 2.0], weights=[1.0, 0.5])
    out = RLOO().loss(Outputs(torch.tensor([[-1.0], [-1.0]])), batch)
    assert out.sums["policy"].item() == -2.0
    assert RLOO().count(batch.groups) == {"policy": 2.0}


def test_clip_high_is_the_upper_bound_alone(make_batch: Callable[..., Batch]) -> None:
    """Ratio 1.5: clipped at 1.4, and an advantage below 0 is clipped at .8 as before: -(1.4) + .8."""
    batch = make_batch([[1], [1]], [1.0, -1.0], [[-1.0], [-1.0]])
    logps = torch.tensor([[1.5], [0.5]]).log() - 1.0
    out = RLOO(clip_high=0.4).loss(Outputs(logps), batch)
    assert out.sums["policy"].item() == pytest.approx(-1.4 + 0.8)


def test_another_programs_samples_are_weighted_by_the_capped_product(make_batch: Callable[..., Batch]) -> None:
    """Token weights .5 x .5 and 2 x 2, capped at 3: -(1 x .25) - (-1 x 3) = 2.75."""
    batch = replace(
        make_batch([[1, 1], [1, 1]], advantages=[1.0, -1.0]), correction=torch.tensor([[0.5, 0.5], [2.0, 2.0]])
    )
    out = RLOO(correction_cap=3.0).loss(Outputs(torch.zeros(2, 2)), batch)
    assert out.sums["policy"].item() == pytest.approx(2.75)


# --- credit ---------------------------------------------------------------------------------------------


def test_credit_sets_leave_one_out_advantages_and_logs_rewards() -> None:
    """Groups [1,0,0,1], [1,-,0,1] and a constant one; golden case 13."""
    groups = [rollout([1, 0, 0, 1]), rollout([1, None, 0, 1], "1"), rollout([1, 1, 1, 1], "2")]
    metrics = RLOO().credit(groups, Pool())
    assert advantages_of(groups[0]) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3], abs=1e-6)
    assert advantages_of(groups[1]) == [0.5, 0.0, -1.0, 0.5]
    assert advantages_of(groups[2]) == [0.0] * 4
    assert set(metrics) == {"reward", "reward_std", "frac_reward_zero_std"}


@pytest.mark.parametrize("name", sorted(PENALISED))
def test_penalised_clipped_and_normalised_advantages_equal_trl(name: str) -> None:
    """One step of TRL's trainer with a reference of other weights: its log-probabilities in, its advantages out."""
    record = PENALISED[name]
    given = dict(record["fields"])
    given |= {"reward_clip": tuple(given["reward_clip"])} if "reward_clip" in given else {}
    groups = []
    rows = iter(zip(record["logps"], record["reference_logps"], record["mask"], strict=True))
    for rewards in record["rewards"]:
        group = Group("0", "t", [1], [])
        for reward in rewards:
            logps, reference, mask = next(rows)
            length = sum(mask)
            completion = Completion([5] * length, reward=reward, old_logps=logps[:length])
            completion.reference_logps = reference[:length]
            group.completions.append(completion)
        groups.append(group)
    metrics = RLOO(**given).credit(groups, Pool())
    mine = [advantage for group in groups for advantage in advantages_of(group)]
    assert mine == pytest.approx(record["advantages"], abs=2e-5)
    assert metrics["kl_per_token"][0] / metrics["kl_per_token"][1] == pytest.approx(record["kl"], abs=1e-5)
    assert metrics["kl"] == (metrics["kl_per_token"][0], 12.0)


def test_what_the_reference_finds_less_likely_is_worth_less() -> None:
    """Equal rewards; sampled log-probabilities sum to -2 in both, the reference's to -3 and -1: KL 1 and -1.

    Rewards 1 - .1 x 1 = .9 and 1 + .1 = 1.1, advantages -.2 and .2. A swapped KL would turn the signs around.
    """
    group = rollout([1.0, 1.0])
    for completion, reference in zip(group.completions, ([-1.0, -2.0], [-0.5, -0.5]), strict=True):
        completion.old_logps, completion.reference_logps = [-1.0, -1.0], reference
    metrics = RLOO(beta=0.1).credit([group], Pool())
    assert advantages_of(group) == pytest.approx([-0.2, 0.2])
    assert metrics["kl"] == (0.0, 2.0)
    assert metrics["frac_reward_zero_std"] == (1.0, 1.0)
    assert RLOO(beta=0.1).teaches(group)


def test_normalised_advantages_have_the_window_in_common() -> None:
    """LOO of [0,1] and [0,3]: -1 1 -3 3, unbiased variance 20 / 3; a constant group stays exactly 0 and counts."""
    groups = [rollout([0, 1]), rollout([0, 3])]
    RLOO(normalize_advantages=True).credit(groups, Pool())
    scale = (20 / 3) ** 0.5 + 1e-4
    assert advantages_of(groups[1]) == pytest.approx([-3 / scale, 3 / scale])
    more = [*groups, rollout([0.1, 0.1])]
    RLOO(normalize_advantages=True).credit(more, Pool())
    assert advantages_of(more[2]) == [0.0, 0.0]
    assert advantages_of(more[1]) == pytest.approx([-3 / (2 + 1e-4), 3 / (2 + 1e-4)])  # variance 20 / 5


@pytest.mark.parametrize("rewards", [[0.1] * 8, [None, None, 1.0, None], [None] * 3, [0.3, None, 0.3]])
@pytest.mark.parametrize("normalised", [False, True])
def test_groups_without_contrast_are_not_taught(rewards: list[float | None], normalised: bool) -> None:
    group = rollout(rewards)
    method = RLOO(normalize_advantages=normalised)
    metrics = method.credit([group], Pool())
    assert advantages_of(group) == [0.0] * len(rewards)
    assert not method.teaches(group)
    assert metrics["frac_reward_zero_std"] == (1.0, 1.0)
    assert metrics["reward"][1] == sum(reward is not None for reward in rewards)


def test_a_second_credit_replaces_the_first() -> None:
    group = rollout([0.0, 1.0])
    RLOO().credit([group], Pool())
    assert RLOO().teaches(group)
    assert advantages_of(group) == [-1.0, 1.0]
    group.completions[0].reward = 1.0
    RLOO().credit([group], Pool())
    assert advantages_of(group) == [0.0, 0.0]


@pytest.mark.parametrize("fields", [{"beta": -0.1}, {"reward_clip": (1.0, 1.0)}, {"reward_clip": (2.0, -2.0)}])
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        RLOO(**fields)
