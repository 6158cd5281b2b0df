"""Frozen 4-bit and 8-bit weights under an adapter: trained through the engine's forward, in both layouts."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.config import ModelConfig
from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.errors import ENVIRONMENT, EnvironmentFault, UserError
from contrl.interfaces import Completion, Group
from contrl.models.load import load_policy, load_weights
from contrl.models.quantisation import is_quantised, quantisation_of

Make = Callable[..., Any]
NEEDS = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra quant is not installed")
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ("q_proj", "v_proj")}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """bitsandbytes says for every layer that it casts to half precision."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@NEEDS
@pytest.mark.parametrize("layout", ["shared", "plain"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_adapter_on_4_bit_weights_learns_and_the_weights_stay(layout: Any, nested: bool) -> None:
    """Forward and backward of two groups; a step of plain descent on B raises the likelihood it was computed for."""
    config = ModelConfig("tiny", load_in_4bit=True, use_bnb_nested_quant=nested, **LORA)
    policy = load_policy(config, seed=0)
    assert is_quantised(policy.model)
    assert policy.source == "tiny, freshly initialised, with a new LoRA adapter, quantised"
    assert {type(m).__name__ for n, m in policy.model.named_modules() if n.endswith("o_proj")} == {"Linear4bit"}
    frozen = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    groups = [
        Group("a", "t", [5, 6, 7], [Completion([8, 9, 1]), Completion([10, 1])]),
        Group("b", "t", [11, 12], [Completion([13, 1]), Completion([14, 15, 16, 1])]),
    ]
    batch, head = to_batch(groups, torch.device("cpu")), LMHead(policy.model)

    def likelihood() -> torch.Tensor:
        return score_batch(policy.model, head, batch, Routing(layout))["logps"].sum()

    before = likelihood()
    before.backward()
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in trained.items() if "lora_B" in n)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.01 * parameter.grad
        assert likelihood() > before
    for name, parameter in policy.model.named_parameters():
        assert name in trained or torch.equal(parameter, frozen[name])


@NEEDS
def test_an_evaluation_in_between_leaves_the_gradient_as_it_was() -> None:
    """bitsandbytes packs the weights for inference in eval mode, and that layout has no gradient."""
    model = load_policy(ModelConfig("tiny", load_in_4bit=True, **LORA), seed=0).model
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    def gradient() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert before.abs().sum() > 0
    assert torch.equal(gradient(), before)


@NEEDS
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_model_is_near_the_whole_one_and_its_head_is_not_quantised(bits: str, logits_of: Make) -> None:
    whole = load_policy(ModelConfig("tiny"), seed=3).model.eval()
    quantised = load_policy(ModelConfig("tiny", **{bits: True}, **LORA), seed=3).model.eval()
    difference = (logits_of(whole) - logits_of(quantised)).abs().max()
    assert 0 < difference < 0.25 * logits_of(whole).abs().max()
    assert quantised.get_base_model().lm_head.weight.dtype == torch.float32
    scorer = load_policy(ModelConfig("tiny", **{bits: True}, **LORA), seed=3, classifier=True).model
    assert scorer.get_base_model().score.weight.dtype == torch.float32


@NEEDS
def test_an_adapter_of_a_quantised_model_is_saved_and_continued(tmp_path: Path, logits_of: Make) -> None:
    base = load_policy(ModelConfig("tiny"), seed=0)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    policy = load_policy(ModelConfig(str(tmp_path / "base"), load_in_4bit=True, **LORA), seed=0)
    for _, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    wanted = logits_of(policy.model.eval())
    policy.model.save_pretrained(tmp_path / "adapter")
    again = load_policy(ModelConfig(str(tmp_path / "adapter"), load_in_4bit=True), seed=5)
    assert torch.equal(logits_of(again.model.eval()), wanted)
    other = load_policy(ModelConfig(str(tmp_path / "base"), load_in_4bit=True, **LORA), seed=9).model
    load_weights(other, tmp_path / "adapter")
    assert torch.equal(logits_of(other.eval()), wanted)


def test_without_an_adapter_there_is_nothing_to_train() -> None:
    with pytest.raises(UserError, match="leaves nothing to train\n  quantised weights have no gradient"):
        load_policy(ModelConfig("tiny", load_in_4bit=True), seed=0)


def test_one_width_at_a_time() -> None:
    with pytest.raises(UserError, match="both given"):
        quantisation_of(ModelConfig("tiny", load_in_4bit=True, load_in_8bit=True), has_adapter=True)


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'contrl\[quant\]'") as error:
        load_policy(ModelConfig("tiny", load_in_8bit=True, **LORA), seed=0)
    assert error.value.exit_code == ENVIRONMENT


def test_nothing_is_quantised_unless_asked() -> None:
    assert quantisation_of(ModelConfig("tiny"), has_adapter=False) is None
    assert not is_quantised(load_policy(ModelConfig("tiny"), seed=0).model)
