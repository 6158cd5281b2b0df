"""What RLOO, GRPO and PPO share: fields, rows, reward metrics, and that passes, ranks and order change nothing."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch

from contrl.engine.batching import to_batch
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs, Pool, Rollouts
from contrl.losses.policy import clipped_surrogate
from contrl.methods.grpo import GRPO
from contrl.methods.ppo import PPO
from contrl.methods.rloo import RLOO
from contrl.methods.rollouts import SampledMethod, clip_metrics, moments, reward_metrics
from tests.methods.test_pages import defaults, tabled

METHODS: dict[str, SampledMethod] = {
    "rloo": RLOO(beta=0.3, normalize_advantages=True),
    "grpo": GRPO(beta=0.3, scale_rewards="batch"),
    "grpo of means": GRPO(beta=0.3, loss_type="grpo"),
    "gspo": GRPO(level="sequence", aggregate="normalize_then_sum"),
    "dr_grpo": GRPO(loss_type="dr_grpo", scale_rewards="none"),
    "ppo": PPO(whiten_rewards=True, target_kl=0.5, kl_coef=0.3),
}


def rollouts(number: int = 5, samples: int = 3, seed: int = 0) -> Rollouts:
    """Groups as the engine hands them to ``credit``: ragged, a reward missing, some cut, one group without contrast."""
    draw = torch.Generator().manual_seed(seed)

    def numbers(length: int) -> list[float]:
        return (torch.rand(length, generator=draw) * -1.5 - 0.1).tolist()

    groups = []
    for index in range(number):
        completions = []
        for sample in range(samples):
            length = 1 + (3 * index + 2 * sample) % 4
            reward = None if (index, sample) == (1, 0) else 2.0 if index == 2 else numbers(1)[0]
            completion = Completion([5] * length, reward=reward, ended=(index + sample) % 3 > 0)
            completion.old_logps, completion.reference_logps = numbers(length), numbers(length)
            completion.values = numbers(length)
            completion.scores = {"a": reward, "b": numbers(1)[0]}
            completions.append(completion)
        groups.append(Group(str(index), "task", [1, 2], completions))
    return groups


def results(groups: Sequence[Group]) -> list[tuple[float, ...]]:
    """What credit wrote, completion by completion."""
    return [
        (c.advantage, *(c.token_advantages or ()), *(c.returns or ())) for group in groups for c in group.completions
    ]


def approximately(values: Sequence[tuple[float, ...]]) -> list[Any]:
    return [pytest.approx(value, abs=1e-12) for value in values]


class Ranks:
    """Pools of several ranks, each in a thread of its own."""

    def __init__(self, number: int) -> None:
        self.barrier, self.slots = threading.Barrier(number, timeout=20), [torch.zeros(0)] * number

    def pool(self, rank: int) -> Pool:
        def gather(values: torch.Tensor) -> torch.Tensor:
            self.slots[rank] = values
            self.barrier.wait()
            everything = torch.cat(list(self.slots))
            self.barrier.wait()
            return everything

        return Pool(gather)


def credited_on_ranks(method: SampledMethod, shares: Sequence[Rollouts]) -> list[Pool]:
    ranks = Ranks(len(shares))
    pools = [ranks.pool(rank) for rank in range(len(shares))]
    threads = [threading.Thread(target=method.credit, args=pair) for pair in zip(shares, pools, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return pools


# --- passes, ranks and order ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cut", [2, 5])
def test_ranks_change_no_advantage(name: str, cut: int) -> None:
    """Two ranks, also one of which has nothing: the same numbers as one rank with everything."""
    method, whole, split = METHODS[name], rollouts(), rollouts()
    alone = Pool()
    method.credit(whole, alone)
    pools = credited_on_ranks(method, [split[:cut], split[cut:]])
    assert results(split) == approximately(results(whole))
    for pool in pools:
        assert pool.memory == pytest.approx(alone.memory)
    assert any(value for row in results(whole) for value in row)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_groups_and_samples_changes_no_advantage(name: str) -> None:
    method, first, second = METHODS[name], rollouts(), rollouts()
    shuffled = [replace(group, completions=group.completions[::-1]) for group in second[::-1]]
    method.credit(first, Pool())
    method.credit(shuffled, Pool())
    assert results(second) == approximately(results(first))


@pytest.mark.parametrize("name", METHODS)
def test_the_split_into_passes_changes_neither_sums_nor_gradient(name: str) -> None:
    """Parts of 2, 1 and 2 groups, of other widths, against one pass of all; weights and importance weights included."""
    method, groups = METHODS[name], rollouts()
    method.credit(groups, Pool())
    torch.manual_seed(0)
    completions = [c for group in groups for c in group.completions]
    shift = {id(c): torch.rand(len(c.ids)) - 0.5 for c in completions}
    for number, completion in enumerate(completions):
        completion.weight = 0.5 + number / 7
        completion.correction = (0.5 + shift[id(completion)].abs()).tolist()

    def total(parts: list[Rollouts]) -> tuple[dict[str, float], dict[int, torch.Tensor]]:
        sums: dict[str, float] = {}
        gradients: dict[int, torch.Tensor] = {}
        for part in parts:
            batch = to_batch(part, torch.device("cpu"), use_old_logps=True)
            rows = [c for group in part for c in group.completions]
            table = torch.nn.utils.rnn.pad_sequence([shift[id(c)] for c in rows], batch_first=True)
            assert batch.old_logps is not None
            logps = (batch.old_logps + table).requires_grad_()
            values = None if batch.old_values is None else batch.old_values + table
            out = method.loss(Outputs(logps, values=values), batch)
            (gradient,) = torch.autograd.grad(sum(out.sums.values()), logps)
            gradients |= {id(c): row[: len(c.ids)] for c, row in zip(rows, gradient, strict=True)}
            for key, value in out.sums.items():
                sums[key] = sums.get(key, 0.0) + value.item()
        return sums, gradients

    whole, split = total([groups]), total([groups[:2], groups[2:3], groups[3:]])
    assert split[0] == pytest.approx(whole[0], abs=1e-5)
    assert whole[0].keys() == method.count(groups).keys()
    for key, gradient in whole[1].items():
        torch.testing.assert_close(split[1][key], gradient, atol=1e-6, rtol=1e-5)
    assert any(gradient.abs().sum() > 0 for gradient in whole[1].values())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_counted_adds_up_over_groups(name: str) -> None:
    method, groups = METHODS[name], rollouts()
    method.credit(groups, Pool())
    parts = [method.count([group]) for group in groups]
    assert method.count(groups) == {term: sum(part[term] for part in parts) for term in parts[0]}


# --- truncated completions ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_cut_completion_counts_for_the_others_and_is_not_learnt(name: str) -> None:
    """Its reward stays in the baseline (advantages of RLOO and GRPO are the same), its tokens have no gradient."""
    method = replace(METHODS[name], mask_truncated=True)
    groups, plain = rollouts(), rollouts()
    method.credit(groups, Pool())
    METHODS[name].credit(plain, Pool())
    if not isinstance(method, PPO):
        assert results(groups) == approximately(results(plain))
    batch = to_batch(groups, torch.device("cpu"))
    logps = torch.randn(batch.mask.shape).masked_fill(~batch.mask, 0.0).requires_grad_()
    values = torch.zeros_like(logps, requires_grad=True)
    sums = method.loss(Outputs(logps, values=values), batch).sums
    table, of_values = torch.autograd.grad(sum(sums.values()), [logps, values], allow_unused=True)
    for row, completion in enumerate(c for group in groups for c in group.completions):
        if not completion.ended:
            assert completion.num_trained() == 0
            assert not table[row].any()
            assert of_values is None or not of_values[row].any()
    assert table.any()


@pytest.mark.parametrize("name", METHODS)
def test_a_group_of_cut_completions_teaches_nothing(name: str) -> None:
    method = replace(METHODS[name], mask_truncated=True)
    (group,) = rollouts(1)
    for completion in group.completions:
        completion.ended = False
    method.credit([group], Pool())
    assert not method.teaches(group)
    batch = to_batch([group], torch.device("cpu"))
    zeros = torch.zeros(batch.mask.shape)
    sums = method.loss(Outputs(zeros, values=zeros), batch).sums
    assert {float(total) for total in sums.values()} == {0.0}


# --- numbers of the window ------------------------------------------------------------------------------


def test_moments_are_the_mean_and_the_unbiased_variance() -> None:
    """1 2 3 4: 2.5 and 5 / 3; over two ranks the same; nothing at all is 0 and 0; no digits are lost far from 0."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert moments(values, Pool()) == pytest.approx((2.5, 5 / 3))
    assert moments(torch.zeros(0), Pool()) == (0.0, 0.0)
    assert moments(torch.tensor([3.0]), Pool()) == (3.0, 0.0)
    far = values.double() + 1e8
    assert moments(far, Pool())[1] == pytest.approx(5 / 3)


def test_reward_metrics_of_groups_and_of_single_samples() -> None:
    """Group a [1,0,0,1], b [1,-,0,1], c constant: 9 / 11; spread sqrt(1/3) twice and 0; one silent of three.

    Single samples 1, 3, -: the spread is that of 1 and 3, sqrt(2); there is no share of silent prompts.
    """

    def group(rewards: list[float | None]) -> Group:
        return Group("0", "t", [1], [Completion([2], reward=reward) for reward in rewards])

    assert reward_metrics([group([1, 0, 0, 1]), group([1, None, 0, 1]), group([1, 1, 1, 1])]) == {
        "reward": (8.0, 11.0),
        "reward_std": (pytest.approx(2 * (1 / 3) ** 0.5), 3.0),
        "frac_reward_zero_std": (1.0, 3.0),
    }
    assert reward_metrics([group([1]), group([3]), group([None])]) == {
        "reward": (4.0, 2.0),
        "reward_std": (pytest.approx(2**0.5), 1.0),
    }
    assert reward_metrics([]) == {"reward": (0.0, 0.0)}


def test_clip_shares_leave_out_completions_without_trained_tokens() -> None:
    """Tokens: 1 low of 4, 2 high of 4. Completions: low shares 1/2 and 0, high 0 and 1; the third has no token."""
    log_ratio = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 0]]).bool()
    found = clip_metrics(clipped_surrogate(log_ratio, torch.tensor([[-1.0], [1.0], [1.0]]), 0.2), mask)
    assert {name: float(total) / float(count) for name, (total, count) in found.items()} == {
        "clip_ratio/low_mean": 0.25,
        "clip_ratio/high_mean": 0.5,
        "clip_ratio/region_mean": 0.75,
        "clip_ratio/low_min": 0.0,
        "clip_ratio/high_max": 1.0,
    }


# --- fields and rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RLOO, GRPO, PPO])
@pytest.mark.parametrize(
    "given",
    [
        {"samples_per_prompt": 0},
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
        {"num_epochs": 0},
        {"num_minibatches": 0},
        {"clip": 0.0},
        {"clip_high": 0.0},
        {"max_kl": 0.0},
        {"correction_cap": 0.0},
    ],
)
def test_impossible_fields_are_refused(kind: type[SampledMethod], given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__.lower()}: .*{next(iter(given))}"):
        kind(**given)


@pytest.mark.parametrize("kind", [RLOO, GRPO, PPO])
def test_all_that_is_wrong_is_said_at_once(kind: type[SampledMethod]) -> None:
    with pytest.raises(UserError) as caught:
        kind(top_p=2.0, num_epochs=0, clip=-1.0)
    assert all(name in str(caught.value) for name in ("top_p is 2.0", "num_epochs is 0", "clip is -1.0"))


@pytest.mark.parametrize("kind", [RLOO, GRPO])
def test_one_sample_has_nothing_to_be_compared_with(kind: type[SampledMethod]) -> None:
    with pytest.raises(UserError, match=r"samples_per_prompt is 1, use at least 2: .*(others|mean)"):
        kind(samples_per_prompt=1)
    assert kind(samples_per_prompt=2).samples_per_prompt == 2


@pytest.mark.parametrize("method", [RLOO(), GRPO(), PPO()])
def test_frozen_without_dropout_and_what_the_forward_returns(method: SampledMethod) -> None:
    """Sampling and training must see one policy."""
    with pytest.raises(FrozenInstanceError):
        method.__setattr__("clip", 0.5)
    assert method.dropout is False
    assert {"policy_logps", "entropy"} <= method.needs
    assert "measures" not in {field.name for field in fields(method)}


def test_the_reference_is_asked_for_only_where_it_is_used() -> None:
    assert RLOO().measures == GRPO().measures == frozenset()
    assert RLOO(beta=0.1).measures == GRPO(beta=0.1).measures == {"reference_logps"}
    assert PPO().measures == {"reference_logps", "values"}
    assert PPO(kl_coef=0.0).measures == {"values"}
    assert replace(RLOO(), beta=0.1).measures == {"reference_logps"}


@pytest.mark.parametrize("kind", [RLOO, GRPO, PPO])
def test_prepare_encodes_the_prompt_only(kind: type[SampledMethod], tokenizer: Any) -> None:
    row = {"id": "7", "task": "sums", "prompt": "1+2=", "completion": "3", "answer": "3"}
    group = kind().prepare(row, tokenizer)
    assert (group.row_id, group.task, group.completions, group.row) == ("7", "sums", [], row)
    assert tokenizer.decode(group.prompt_ids) == "1+2="


def test_a_conversation_gets_the_generation_prompt(tokenizer: Any) -> None:
    group = GRPO().prepare({"id": 0, "prompt": [{"role": "user", "content": "hi"}]}, tokenizer)
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
        PPO().prepare(row, tokenizer)


# --- their pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), [("rloo", RLOO()), ("grpo", GRPO()), ("ppo", PPO())])
def test_every_field_stands_on_its_page_with_its_default(name: str, method: SampledMethod) -> None:
    written = defaults(f"methods/{name}.md")
    for field in fields(method):
        value = getattr(method, field.name)
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        assert written[field.name] == text.replace("()", ""), field.name


@pytest.mark.parametrize("name", METHODS)
def test_every_metric_stands_on_its_page(name: str, make_batch: Callable[..., Batch]) -> None:
    method, groups = METHODS[name], copy.deepcopy(rollouts())
    logged = set(method.credit(groups, Pool()))
    batch = to_batch(groups, torch.device("cpu"), use_old_logps=True)
    zeros = torch.zeros(batch.mask.shape)
    logged |= set(method.loss(Outputs(zeros, entropy=zeros, values=zeros), batch).metrics)
    assert {"reward", "reward_std", "frac_reward_zero_std"} <= logged
    assert logged <= tabled(f"methods/{'grpo' if isinstance(method, GRPO) else name}.md")
