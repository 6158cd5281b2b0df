"""GRPO against TRL 1.16's recorded losses, gradients, metrics and advantages, and against hand formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs, Pool
from contrl.methods.grpo import GRPO

with open(Path(__file__).parents[1] / "golden" / "online-trl-1.16.0.json", encoding="utf-8") as _file:
    GOLDEN = json.load(_file)
CASES = [(fixture, name) for fixture, cases in GOLDEN["losses"].items() for name in cases]


def rollout(rewards: list[float | None], row_id: str = "0") -> Group:
    return Group(row_id, "task", [1, 2], [Completion([3, 4], reward=reward) for reward in rewards])


def advantages_of(*groups: Group) -> list[float]:
    return [completion.advantage for group in groups for completion in group.completions]


def loss_of(method: GRPO, out: Outputs, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """The engine's reduction: sums over counts."""
    found = method.loss(out, batch)
    assert found.sums.keys() == method.count(batch.groups).keys() == {"policy"}
    metrics = {name: float(total) / float(count) for name, (total, count) in found.metrics.items()}
    return found.sums["policy"] / method.count(batch.groups)["policy"], metrics


# --- the loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fixture", "name"), CASES)
def test_loss_gradient_and_metrics_equal_trl(fixture: str, name: str, make_batch: Callable[..., Batch]) -> None:
    given, record = GOLDEN["fixtures"][fixture], GOLDEN["losses"][fixture][name]
    method = GRPO(max_new_tokens=given["max_new_tokens"], **record["fields"])
    batch = make_batch(given["mask"], given["advantages"], given["old_logps"])
    batch.reference_logps = torch.tensor(given["reference_logps"])
    logps = torch.tensor(given["logps"], requires_grad=True)
    loss, metrics = loss_of(method, Outputs(logps, torch.tensor(given["entropies"])), batch)
    assert loss.item() == pytest.approx(record["loss"], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(gradient, torch.tensor(record["gradient"]), atol=1e-6, rtol=0)
    logged = {"kl_per_token" if key == "kl" else key: value for key, value in record["metrics"].items()}
    assert metrics == pytest.approx(logged, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("grpo", 0.188057),
        ("bnpo", -0.056544),
        ("dapo", -0.056544),
        ("dr_grpo", -0.017670),
        ("sequence", 0.157982),
        ("delta", 0.049194),
        ("clip_high", 0.184490),
        ("kl", -0.056036),
        ("kl without correction", -0.056164),
    ],
)
def test_fixture_g_gives_the_numbers_of_the_issue(name: str, number: float) -> None:
    assert GOLDEN["losses"]["fixture_g"][name]["loss"] == pytest.approx(number, abs=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_gradient_of_the_kl_on_the_first_step(unbiased: bool, make_batch: Callable[..., Batch]) -> None:
    """At ratio 1, d = logp - reference: d k3 = 1 - exp(-d); times the ratio it is exactly d, the reverse KL's.

    No advantage, beta .5, tokens of one completion with d = .5 and -.3: the gradient is .5 x that.
    """
    batch = make_batch([[1, 1]])
    batch.reference_logps = torch.tensor([[-1.5, -0.7]], dtype=torch.float64)
    logps = torch.tensor([[-1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    total = GRPO(beta=0.5, unbiased_kl=unbiased).loss(Outputs(logps), batch).sums["policy"]
    (gradient,) = torch.autograd.grad(total, logps)
    d = torch.tensor([[0.5, -0.3]], dtype=torch.float64)
    torch.testing.assert_close(gradient, 0.5 * (d if unbiased else 1 - torch.exp(-d)))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_a_good_completion_becomes_likelier_and_only_its_trained_tokens(
    level: Any, loss_type: Any, make_batch: Callable[..., Batch]
) -> None:
    """Ratio 1: gradient -A / T_i per token for the mean over tokens, and -A for the sum over tokens.

    The sequence ratio's own gradient is 1 / T_i per token, summed over T_i tokens: the same on the first step.
    """
    batch = make_batch([[0, 1, 1, 1], [1, 0, 0, 0]], advantages=[2.0, -1.0])
    logps = torch.full((2, 4), -1.0, requires_grad=True)
    total = GRPO(level=level, loss_type=loss_type).loss(Outputs(logps), batch).sums["policy"]
    (gradient,) = torch.autograd.grad(total, logps)
    share = 3 if loss_type == "grpo" else 1
    wanted = torch.tensor([[0.0, -2 / share, -2 / share, -2 / share], [1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(gradient, wanted)


def test_what_the_sum_is_divided_by() -> None:
    """Completions of 2 and 2 tokens, one of them cut and masked: 2 completions, 2 trained tokens, 2 x 7 possible."""
    group = rollout([1.0, 0.0])
    group.completions[1].trained = [False, False]
    counts = {
        kind: GRPO(loss_type=kind, max_new_tokens=7).count([group]) for kind in ("grpo", "bnpo", "dapo", "dr_grpo")
    }
    assert [count["policy"] for count in counts.values()] == [2.0, 2.0, 2.0, 14.0]
    group.completions[0].ids.append(5)
    assert GRPO(loss_type="dapo").count([group]) == {"policy": 3.0}
    assert GRPO(loss_type="grpo").count([group]) == {"policy": 2.0}


def test_weights_multiply_the_terms(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch([[1, 1], [1, 0]], advantages=[1.0, 2.0], weights=[1.0, 0.5])
    assert GRPO().loss(Outputs(torch.zeros(2, 2)), batch).sums["policy"].item() == -3.0


@pytest.mark.parametrize(("level", "wanted"), [("token", -(0.5 + 2.0)), ("sequence", -(1.0 + 1.0))])
def test_another_programs_samples_are_weighted(level: Any, wanted: float, make_batch: Callable[..., Batch]) -> None:
    """Token weights .5 and 2 on the policy term; of a completion their product 1. The KL term is not weighted."""
    batch = replace(make_batch([[1, 1]], advantages=[1.0]), correction=torch.tensor([[0.5, 2.0]]))
    batch.reference_logps = torch.zeros(1, 2)
    method = GRPO(level=level, beta=1.0)
    assert method.loss(Outputs(torch.zeros(1, 2)), batch).sums["policy"].item() == pytest.approx(wanted)


def test_a_kl_without_the_reference_is_a_bug_and_not_silent(make_batch: Callable[..., Batch]) -> None:
    with pytest.raises(RuntimeError, match="reference"):
        GRPO(beta=0.1).loss(Outputs(torch.zeros(1, 1)), make_batch([[1]]))


# --- credit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GOLDEN["advantages"]))
def test_advantages_equal_trl(name: str) -> None:
    """One reward: groups, missing ones, the three scales. Two: their weighted sum, or each normalised first."""
    record = GOLDEN["advantages"][name]
    given = dict(record["fields"])
    weights = given.pop("reward_weights", [1.0])
    groups = []
    for group in record["scores"]:
        completions = []
        for scores in group:
            known = [weight * score for weight, score in zip(weights, scores, strict=True) if score is not None]
            completion = Completion([3], reward=sum(known) if known else None)
            completion.scores = {f"f{number}": score for number, score in enumerate(scores)}
            completions.append(completion)
        groups.append(Group("0", "t", [1], completions))
    if given.get("aggregate") == "normalize_then_sum":
        given["reward_weights"] = tuple(weights)
    metrics = GRPO(**given).credit(groups, Pool())
    assert advantages_of(*groups) == pytest.approx(record["advantages"], abs=1e-5)
    assert metrics["reward"][0] / metrics["reward"][1] == pytest.approx(record["reward"])


def test_the_unbiased_standard_deviation_of_the_group() -> None:
    """[1,0,0,1]: .5 / (sqrt(1/3) + 1e-4) = .86588; the biased one would give .99980. They sum to 0."""
    group = rollout([1, 0, 0, 1])
    GRPO().credit([group], Pool())
    assert advantages_of(group) == pytest.approx([0.86588, -0.86588, -0.86588, 0.86588], abs=1e-5)
    assert sum(advantages_of(group)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregate", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("rewards", [[0.1] * 8, [None, None, 1.0, None], [None] * 3, [0.3, None, 0.3]])
def test_groups_without_contrast_are_exactly_zero(rewards: list[float | None], scale: Any, aggregate: Any) -> None:
    """Also when the other group of the window has a standard deviation."""
    groups = [rollout(rewards), rollout([0.0, 1.0])]
    method = GRPO(scale_rewards=scale, aggregate=aggregate)
    method.credit(groups, Pool())
    assert advantages_of(groups[0]) == [0.0] * len(rewards)
    assert not method.teaches(groups[0])
    assert method.teaches(groups[1])


def test_a_kl_term_teaches_groups_whose_rewards_do_not_differ() -> None:
    group = rollout([1.0, 1.0])
    for completion in group.completions:
        completion.old_logps, completion.reference_logps = [-1.0, -1.0], [-1.5, -0.5]
    method = GRPO(beta=0.1)
    metrics = method.credit([group], Pool())
    assert advantages_of(group) == [0.0, 0.0]
    assert method.teaches(group)
    # k3 of d = .5 and -.5: .106531 + .148721, for each of the two completions.
    assert metrics["kl"] == (pytest.approx(2 * (0.106531 + 0.148721), abs=1e-5), 2.0)
    assert not GRPO().teaches(group)


def test_weights_of_the_wrong_number_are_refused_by_name() -> None:
    group = rollout([1.0, 0.0])
    for completion in group.completions:
        completion.scores = {"sum": 1.0, "length": 0.0}
    with pytest.raises(UserError, match="task task: grpo: reward_weights has 1 numbers for the rewards sum, length"):
        GRPO(aggregate="normalize_then_sum", reward_weights=(1.0,)).credit([group], Pool())


@pytest.mark.parametrize(
    "fields",
    [
        {"beta": -0.1},
        {"delta": 0.0},
        {"loss_type": "gspo"},
        {"level": "word"},
        {"scale_rewards": "all"},
        {"aggregate": "sum"},
        {"reward_weights": (1.0, 2.0)},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        GRPO(**fields)
