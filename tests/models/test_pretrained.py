"""Tokenizers without weights, weights that are not there, vocabularies that do not fit, models already built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models.adapters import add_lora
from contrl.models.embedded import character_tokenizer, tiny
from contrl.models.load import load_policy, load_tokenizer, policy_from

Make = Callable[..., Any]
LORA = ModelConfig("tiny", use_peft=True, lora_r=4, lora_target_modules=("q_proj",))


@pytest.fixture
def folder(make_llama: Make, tmp_path: Path) -> Path:
    """A whole model and its tokenizer."""
    make_llama(vocab_size=100).save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- tokenizers ---------------------------------------------------------------------------------------------


def test_a_tokenizer_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tokenizer = load_tokenizer(ModelConfig(str(folder)))
    assert len(tokenizer) == 100
    assert tokenizer.chat_template == character_tokenizer().chat_template
    assert load_tokenizer(ModelConfig("tiny")).get_vocab() == tokenizer.get_vocab()


def test_an_adapter_without_a_tokenizer_takes_its_bases(folder: Path, make_llama: Make, tmp_path: Path) -> None:
    adapted = load_policy(ModelConfig(str(folder), use_peft=True, lora_target_modules=("q_proj",)), seed=0).model
    adapted.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "tokenizer_config.json").exists()
    assert len(load_tokenizer(ModelConfig(str(tmp_path / "adapter")))) == 100
    assert load_policy(ModelConfig(str(tmp_path / "adapter")), seed=0).tokenizer.pad_token == "<pad>"


def test_more_tokens_than_embeddings_are_refused_before_they_fail_in_a_run(make_llama: Make, tmp_path: Path) -> None:
    make_llama(vocab_size=90).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the tokenizer has 100 tokens, the model's vocabulary 90\n"):
        load_policy(ModelConfig(str(tmp_path)), seed=0)


def test_an_adapter_whose_tokenizer_has_grown_is_refused(folder: Path, tmp_path: Path) -> None:
    adapted = load_policy(ModelConfig(str(folder), use_peft=True, lora_target_modules=("q_proj",)), seed=0).model
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="the tokenizer has 102 tokens, the model's vocabulary 100"):
        load_policy(ModelConfig(str(tmp_path / "adapter")), seed=0)


# --- weights ------------------------------------------------------------------------------------------------


def test_a_weight_that_is_not_in_the_folder_is_never_random(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    dropped = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != dropped}, folder / "model.safetensors", {"format": "pt"})
    for classifier in (False, True):
        with pytest.raises(UserError, match=f"weights are missing: {dropped}"):
            load_policy(ModelConfig(str(folder)), seed=0, classifier=classifier)


def test_a_broken_file_of_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(ModelConfig(str(folder)), seed=0)


@pytest.mark.parametrize("name", ["tiny", "folder"])
def test_the_precision_asked_for_is_the_precision_got(name: str, folder: Path) -> None:
    config = ModelConfig("tiny" if name == "tiny" else str(folder), dtype="bfloat16", attn_implementation="eager")
    model = load_policy(config, seed=0).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"


# --- models already built -----------------------------------------------------------------------------------


def test_a_given_model_is_taken_as_it_is() -> None:
    model, tokenizer = tiny(0)
    model.to(torch.bfloat16)
    model.forward_was_patched = True
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    policy = policy_from(model, tokenizer, device="cpu")
    assert policy.model is model
    assert policy.tokenizer is tokenizer
    assert policy.source == "the given LlamaForCausalLM"
    assert {name: (p.data_ptr(), p.dtype) for name, p in policy.model.named_parameters()} == before


def test_a_given_adapter_is_continued(make_llama: Make) -> None:
    model = add_lora(make_llama(vocab_size=100), LORA)
    policy = policy_from(model, character_tokenizer(), LORA)
    assert policy.model is model
    assert policy.source == "the given PeftModelForCausalLM, its adapter continued"


def test_a_given_model_gets_an_adapter_when_asked(make_llama: Make) -> None:
    model = make_llama(vocab_size=100)
    policy = policy_from(model, character_tokenizer(), LORA, seed=3)
    assert policy.model.get_base_model() is model
    again = policy_from(make_llama(vocab_size=100), character_tokenizer(), LORA, seed=3)
    mine, theirs = policy.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_given_models_tokenizer_is_its_names(folder: Path) -> None:
    model = load_policy(ModelConfig(str(folder)), seed=0).model
    assert len(policy_from(model).tokenizer) == 100
    with pytest.raises(UserError, match="the model has no tokenizer"):
        policy_from(tiny(0)[0])
