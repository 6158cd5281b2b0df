"""LoRA: a fresh adapter changes nothing yet, a second one is never put on top of the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from contrl.config import ModelConfig
from contrl.models.adapters import add_lora, is_adapter, load_adapter

Make = Callable[..., Any]
CONFIG = ModelConfig("tiny", use_peft=True, lora_r=4, lora_alpha=8, lora_target_modules=("q_proj", "v_proj"))


def test_a_fresh_adapter_is_trained_alone_and_changes_no_logit(make_llama: Make, logits_of: Make) -> None:
    plain = logits_of(make_llama())
    model = add_lora(make_llama(), CONFIG)
    assert torch.equal(logits_of(model.eval()), plain)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if "lora_A" in name}
    assert shapes == {(4, 16)}
    assert model.peft_config["default"].lora_alpha == 8


def test_an_existing_adapter_is_continued(make_llama: Make) -> None:
    model = add_lora(make_llama(), CONFIG)
    before = {name: p.clone() for name, p in model.named_parameters()}
    again = add_lora(model, ModelConfig("tiny", use_peft=True, lora_r=32))
    assert again is model
    assert list(model.peft_config) == ["default"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_saved_adapter_comes_back_trainable(make_llama: Make, logits_of: Make, tmp_path: Path) -> None:
    model = add_lora(make_llama(), CONFIG)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    wanted = logits_of(model.eval())
    model.save_pretrained(tmp_path)
    assert is_adapter(tmp_path)
    loaded = load_adapter(make_llama(), tmp_path)
    assert torch.equal(logits_of(loaded.eval()), wanted)
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_model_folder_is_no_adapter(make_llama: Make, tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    assert not is_adapter(tmp_path)
