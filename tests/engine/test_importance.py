"""Importance of weights: exact per-sample gradients, by hand; whatever the batches, nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import CPU, Setup, build, gradients, make_engine, pair_rows, policy, sft_rows, with_lora

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, head_of, score_batch
from contrl.engine.importance import importance
from contrl.interfaces import Method, Outputs
from contrl.methods.dpo import DPO
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT

NUM = 4


def services(model: Any, folder: Path, method: Method, rows: list[dict[str, Any]]) -> Any:
    return make_engine(model, folder, Setup(method, rows)).work.context.services


def likelihood(model: Any, group: Any, method: Method) -> torch.Tensor:
    batch = to_batch([group], CPU)
    out = Outputs(**score_batch(model, head_of(model), batch, Routing("plain")))
    return method.log_likelihood(out, batch)[0]


def by_hand(model: Any, groups: list[Any], method: Method) -> dict[str, torch.Tensor]:
    """Mean over samples of the squared gradient, divided by its mean over all entries."""
    sums: dict[str, torch.Tensor] = {}
    for group in groups:
        for name, gradient in gradients(model, likelihood(model, group, method)).items():
            sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient.square()
    mean = sum(float(x.double().sum()) for x in sums.values()) / sum(x.numel() for x in sums.values())
    return {name: value / mean for name, value in sums.items()}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("method", [SFT(), DPO()], ids=["sft", "dpo"])
def test_fisher_is_the_mean_of_squared_gradients_of_single_samples(
    tmp_path: Path, method: Method, adapter: bool
) -> None:
    model = with_lora(policy()) if adapter else policy()
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    rows = sft_rows(NUM) if isinstance(method, SFT) else pair_rows(NUM)
    asked = services(model, tmp_path, method, rows)
    found = asked.importance("fisher", NUM, "weights")
    wanted = by_hand(model, asked.groups, method)
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)
    entries = torch.cat([value.flatten() for value in found.values()])
    assert float(entries.double().mean()) == pytest.approx(1.0, abs=1e-5)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert all(p.grad is None for p in model.parameters())


def test_squares_of_batch_gradients_would_be_something_else(tmp_path: Path) -> None:
    """The known mistake: the gradient of the sum, squared."""
    model, method = policy(), SFT()
    asked = services(model, tmp_path, method, sft_rows(NUM))
    exact = asked.importance("fisher", NUM, "weights")["lm_head.weight"]
    total = torch.stack([likelihood(model, group, method) for group in asked.groups]).sum()
    batched = gradients(model, total)["lm_head.weight"].square()
    assert float((exact / exact.mean() - batched / batched.mean()).abs().max()) > 0.5


def test_shares_of_ranks_add_up(tmp_path: Path) -> None:
    """Each of two ranks takes every second sample; together they have the sums of one."""
    model, method = policy(), SFT()
    asked = services(model, tmp_path, method, sft_rows(NUM))
    one, two = (importance("fisher", asked.groups[i::2], method, asked.settings()) for i in (0, 1))
    whole = importance("fisher", asked.groups, method, asked.settings())
    name = "lm_head.weight"
    # Each is scaled to mean 1 by itself; the sum has the same direction up to those two factors.
    stacked = torch.stack([one[name].flatten(), two[name].flatten()], dim=1).double()
    fit = torch.linalg.lstsq(stacked, whole[name].flatten().double()[:, None]).solution
    torch.testing.assert_close(stacked @ fit, whole[name].flatten().double()[:, None], rtol=1e-4, atol=1e-6)


def test_of_sampling_methods_it_is_that_of_the_policys_own_answers(tmp_path: Path) -> None:
    method = RLOO(samples_per_prompt=2, max_new_tokens=5)
    asked = services(policy(), tmp_path, method, sft_rows(NUM))
    first, second = (asked.importance("fisher", NUM, "weights")["lm_head.weight"] for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.max()) > 0


def test_sensitivity_by_hand(tmp_path: Path) -> None:
    """Mean absolute gradient of the squared length of the logits at trained positions."""
    model, method = policy(), SFT()
    asked = services(model, tmp_path, method, sft_rows(2))
    found = asked.importance("sensitivity", 2, "weights")
    sums: dict[str, torch.Tensor] = {}
    for group in asked.groups:
        ids = torch.tensor([group.prompt_ids + group.completions[0].ids])
        trained = group.completions[0].trained or [True] * len(group.completions[0].ids)
        places = [len(group.prompt_ids) - 1 + i for i, flag in enumerate(trained) if flag]
        value = model(ids).logits[0, places].square().sum()
        for name, gradient in gradients(model, value).items():
            sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient.abs()
    mean = sum(float(x.double().sum()) for x in sums.values()) / sum(x.numel() for x in sums.values())
    torch.testing.assert_close(found["lm_head.weight"], sums["lm_head.weight"] / mean, rtol=1e-3, atol=1e-5)


def test_delta_w_is_the_importance_of_the_frozen_weight(tmp_path: Path) -> None:
    """As if the frozen weights below the adapter were trained, which they are not afterwards."""
    model, method = with_lora(build("llama", spread=0.1, vocab_size=98)), SFT()
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    asked = services(model, tmp_path, method, sft_rows(2))
    found = asked.importance("fisher", 2, "delta_w")
    assert all(name.endswith("base_layer.weight") for name in found)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    name = next(iter(found))
    weight = model.get_parameter(name)
    weight.requires_grad_(True)
    total = torch.zeros_like(weight)
    for group in asked.groups:
        (gradient,) = torch.autograd.grad(likelihood(model, group, method), [weight])
        total += gradient.square()
    weight.requires_grad_(False)
    torch.testing.assert_close(found[name] / found[name].mean(), total / total.mean(), rtol=1e-3, atol=1e-5)
