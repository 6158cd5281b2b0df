"""RLOO against TRL 1.16's recorded loss and gradient, REINFORCE's closed form, and what it must refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs
from contrl.methods.rloo import RLOO

with open(Path(__file__).parents[1] / "golden" / "rloo-trl-1.16.0.json", encoding="utf-8") as _file:
    GOLDEN = json.load(_file)["losses"]


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
    assert metrics == {
        "clip_ratio": pytest.approx(record["metrics"]["clip_ratio/region_mean"]),
        "entropy": pytest.approx(record["metrics"]["entropy"]),
    }


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
    assert float(out.metrics["clip_ratio"][0]) == 0
    assert "entropy" not in out.metrics


def test_the_weights_gradient_is_reinforce_through_a_model() -> None:
    """Through the engine's forward: d loss / d weights = -sum A_i d log p(y_i | x), and only completions count.

    The closed form is taken from the model's own logits, on the whole row; a gradient on prompt tokens would differ.
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


# --- credit ---------------------------------------------------------------------------------------------


def test_credit_sets_leave_one_out_advantages_and_logs_rewards() -> None:
    """Group a [1,0,0,1], b [1,-,0,1], c constant: reward 5/7 over 11 known, spread per group, one silent of three.

    reward_std: unbiased, a sqrt(1/3) = .57735, b sqrt(1/3) = .57735, c 0; their mean is .3849.
    """
    groups = [rollout([1, 0, 0, 1]), rollout([1, None, 0, 1], "1"), rollout([1, 1, 1, 1], "2")]
    metrics = RLOO().credit(groups)
    assert advantages_of(groups[0]) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3], abs=1e-6)
    assert advantages_of(groups[1]) == [0.5, 0.0, -1.0, 0.5]
    assert advantages_of(groups[2]) == [0.0] * 4
    assert metrics == {
        "reward": (8.0, 11.0),
        "reward_std": (pytest.approx(2 * (1 / 3) ** 0.5), 3.0),
        "frac_reward_zero_std": (1.0, 3.0),
    }


@pytest.mark.parametrize("rewards", [[0.1] * 8, [None, None, 1.0, None], [None] * 3, [0.3, None, 0.3]])
def test_groups_without_contrast_are_not_taught(rewards: list[float | None]) -> None:
    group = rollout(rewards)
    metrics = RLOO().credit([group])
    assert advantages_of(group) == [0.0] * len(rewards)
    assert not RLOO().teaches(group)
    assert metrics["frac_reward_zero_std"] == (1.0, 1.0)
    assert metrics["reward"][1] == sum(reward is not None for reward in rewards)


def test_groups_with_contrast_are_taught() -> None:
    group = rollout([0.0, 1.0])
    RLOO().credit([group])
    assert RLOO().teaches(group)
    assert advantages_of(group) == [-1.0, 1.0]


def test_a_second_credit_replaces_the_first() -> None:
    group = rollout([0.0, 1.0])
    RLOO().credit([group])
    group.completions[0].reward = 1.0
    RLOO().credit([group])
    assert advantages_of(group) == [0.0, 0.0]


# --- rows and hyperparameters ---------------------------------------------------------------------------


def test_prepare_encodes_the_prompt_only(tokenizer: Any) -> None:
    row = {"id": "7", "task": "sums", "prompt": "1+2=", "completion": "3", "answer": "3"}
    group = RLOO().prepare(row, tokenizer)
    assert (group.row_id, group.task, group.completions, group.row) == ("7", "sums", [], row)
    assert tokenizer.decode(group.prompt_ids) == "1+2="


def test_a_conversation_gets_the_generation_prompt(tokenizer: Any) -> None:
    group = RLOO().prepare({"id": 0, "prompt": [{"role": "user", "content": "hi"}]}, tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "user: hi\nassistant: "


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 0, "question": "?", "answer": "!"}, "columns answer, id, question hold no prompt"),
        ({"id": 0, "prompt": None}, "columns id, prompt hold no prompt"),
        ({"id": 0, "prompt": ""}, "the prompt is empty"),
    ],
)
def test_rows_without_a_prompt_are_refused(row: dict[str, Any], message: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=message):
        RLOO().prepare(row, tokenizer)


@pytest.mark.parametrize(
    "fields",
    [
        {"samples_per_prompt": 1},
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"num_epochs": 0},
        {"num_minibatches": 0},
        {"clip": 0.0},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        RLOO(**fields)


def test_the_edges_of_the_fields_are_accepted() -> None:
    method = RLOO(samples_per_prompt=2, max_new_tokens=1, top_p=1.0, temperature=0.01, clip=0.01)
    with pytest.raises(FrozenInstanceError):
        method.__setattr__("clip", 0.5)


def test_dropout_is_off_and_the_forward_returns_what_is_logged() -> None:
    """The log-probabilities of sampling and of training must be those of one policy."""
    assert RLOO.dropout is False
    assert RLOO.needs == {"policy_logps", "entropy"}
