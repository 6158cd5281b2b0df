"""TRL's helpers under their own names: what they give for TRL's options, and what a reference copy shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from contrl.config import ModelConfig as OwnConfig
from contrl.errors import UserError
from contrl.models.adapters import add_lora
from contrl.models.compat import (
    ModelConfig,
    create_reference_model,
    get_peft_config,
    get_quantization_config,
    settings,
)

Make = Callable[..., Any]


def test_options_become_contrls() -> None:
    given = ModelConfig("gpt2", torch_dtype="bfloat16", use_peft=True, lora_r=8, lora_target_modules=["c_attn", "c_fc"])
    assert settings(given) == OwnConfig(
        "gpt2", dtype="bfloat16", use_peft=True, lora_r=8, lora_target_modules=("c_attn", "c_fc")
    )
    assert settings(ModelConfig("gpt2", dtype="auto")) == OwnConfig("gpt2")
    assert settings(ModelConfig("gpt2", model_revision="v1", lora_task_type="SEQ_CLS", dtype="auto")) == OwnConfig(
        "gpt2", revision="v1", lora_task_type="SEQ_CLS"
    )
    with pytest.raises(UserError, match="no model is named"):
        settings(ModelConfig())


def test_both_widths_are_refused() -> None:
    with pytest.raises(UserError, match="both given"):
        ModelConfig("gpt2", load_in_4bit=True, load_in_8bit=True)


def test_the_adapter_of_the_options() -> None:
    assert get_peft_config(ModelConfig("gpt2")) is None
    config = get_peft_config(
        ModelConfig("gpt2", use_peft=True, lora_r=8, lora_alpha=16, lora_target_modules=["all-linear"], use_dora=True)
    )
    assert config is not None
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 16, 0.05, "none")
    assert (config.target_modules, config.use_dora, config.task_type) == ("all-linear", True, "CAUSAL_LM")


def test_contrls_own_options_serve_as_well() -> None:
    config = get_peft_config(OwnConfig("gpt2", use_peft=True, lora_target_modules=("c_attn", "c_fc")))
    assert config is not None
    assert config.target_modules == {"c_attn", "c_fc"}


def test_the_quantisation_of_the_options() -> None:
    assert get_quantization_config(ModelConfig("gpt2")) is None
    four = get_quantization_config(
        ModelConfig("gpt2", load_in_4bit=True, dtype="bfloat16", use_bnb_nested_quant=True, bnb_4bit_quant_type="fp4")
    )
    assert four is not None
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "fp4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    eight = get_quantization_config(ModelConfig("gpt2", load_in_8bit=True))
    assert eight is not None
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)


def move(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1


def test_a_reference_stays_when_the_model_moves(make_llama: Make, logits_of: Make) -> None:
    model = make_llama().train()
    reference = create_reference_model(model)
    wanted = logits_of(model.eval())
    move(model)
    assert torch.equal(logits_of(reference), wanted)
    assert not torch.equal(logits_of(model), wanted)
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_shared_layers_are_the_same_tensors_and_frozen_in_both(tied: bool, make_llama: Make) -> None:
    """Of two layers the first is shared, with the embeddings before it; a tied head is the embeddings."""
    model = make_llama(tie_word_embeddings=tied)
    reference = create_reference_model(model, num_shared_layers=1)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        is_shared = name.startswith(("model.embed_tokens", "model.layers.0."))
        assert (parameter is theirs[name]) == is_shared
        assert parameter.requires_grad == (not is_shared)
        assert torch.equal(parameter, theirs[name])
    with pytest.raises(UserError, match="num_shared_layers is 3, the model has 2 layers"):
        create_reference_model(make_llama(), num_shared_layers=3)


def test_a_reference_of_an_adapted_model_keeps_the_adapter(make_llama: Make, logits_of: Make) -> None:
    model = add_lora(make_llama(), OwnConfig("tiny", lora_dropout=0.0))
    move(model)
    wanted = logits_of(model.eval())
    reference = create_reference_model(model)
    move(model)
    assert torch.equal(logits_of(reference), wanted)
