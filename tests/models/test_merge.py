"""A merged model answers as its adapter does, and as nothing before it did; written exactly where it was asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models.embedded import character_tokenizer
from contrl.models.load import load_policy
from contrl.models.merge import merge

Make = Callable[..., Any]
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_target_modules": ("q_proj", "up_proj")}


def train(name: str, folder: Path, seed: int, *, classifier: bool = False, **options: Any) -> Any:
    """A run that ends with random trained weights, saved to ``folder``; returns its model."""
    policy = load_policy(ModelConfig(name, **options), seed=seed, classifier=classifier)
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return policy.model.eval()


@pytest.fixture
def base(make_llama: Make, tmp_path: Path) -> str:
    make_llama(vocab_size=100).save_pretrained(tmp_path / "base")
    character_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize("named", [True, False])
def test_sft_then_dpo_merged_onto_the_base_holds_both(named: bool, base: str, logits_of: Make, tmp_path: Path) -> None:
    """The base may be named or left to the adapter."""
    sft = logits_of(train(base, tmp_path / "sft", 1, **LORA))
    dpo = logits_of(train(str(tmp_path / "sft"), tmp_path / "dpo", 2))
    policy = merge(str(tmp_path / "dpo"), base if named else None)
    logits = logits_of(policy.model)
    torch.testing.assert_close(logits, dpo, atol=1e-4, rtol=1e-4)
    for other in (sft, logits_of(load_policy(ModelConfig(base), seed=0).model.eval())):
        assert (logits - other).abs().max() > 0.1
    assert not hasattr(policy.model, "peft_config")
    assert not any("lora" in name for name in policy.model.state_dict())


def test_a_classifier_keeps_its_head(base: str, tmp_path: Path) -> None:
    reward = train(base, tmp_path / "rm", 1, classifier=True, **LORA)
    ids = torch.tensor([[5, 6, 7]])
    model = merge(str(tmp_path / "rm")).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reward(ids).logits, atol=1e-5, rtol=1e-5)
    assert type(model).__name__ == "LlamaForSequenceClassification"


def test_the_precision_can_be_chosen(base: str, tmp_path: Path) -> None:
    train(base, tmp_path / "sft", 1, **LORA)
    model = merge(str(tmp_path / "sft"), dtype="bfloat16").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_another_models_adapter_is_refused(base: str, make_llama: Make, tmp_path: Path) -> None:
    train(base, tmp_path / "sft", 1, **LORA)
    make_llama(vocab_size=100, hidden_size=32).save_pretrained(tmp_path / "wider")
    character_tokenizer().save_pretrained(tmp_path / "wider")
    with pytest.raises(UserError, match="does not fit its base model") as error:
        merge(str(tmp_path / "sft"), str(tmp_path / "wider"))
    assert "name the base it was trained on" in error.value.fix


def test_there_must_be_something_to_merge(base: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a whole model and no adapter"):
        merge(base)
    with pytest.raises(UserError, match="there is no adapter folder"):
        merge(str(tmp_path / "missing"))
