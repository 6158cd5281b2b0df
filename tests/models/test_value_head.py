"""The value function inside a policy: where it sits, what it says, and how it is saved beside plain weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from contrl.errors import UserError
from contrl.models.value_head import (
    FILE,
    FOLDER,
    NAME,
    ValueHead,
    ValueModel,
    attach_head,
    attach_model,
    ensure_value,
    load_value,
    save_value,
    value_of,
    without_value,
)

Make = Callable[..., Any]


def classifier(like: Any, seed: int = 0, **changes: Any) -> Any:
    config = type(like.config)(**{**like.config.to_dict(), "num_labels": 1, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(config).eval()


def test_a_head_is_a_line_over_hidden_states_and_starts_at_zero() -> None:
    """With weight (1, 2) and bias 3 the state (4, 5) has the value 4 + 10 + 3."""
    head = ValueHead(2)
    assert head(torch.ones(3, 2)).tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        head.summary.weight.copy_(torch.tensor([[1.0, 2.0]]))
        head.summary.bias.fill_(3.0)
    assert head(torch.tensor([[4.0, 5.0]])).tolist() == [17.0]
    assert head(torch.tensor([[4.0, 5.0]], dtype=torch.bfloat16)).dtype == torch.float32


def test_a_head_sits_in_the_policy_under_its_name(make_llama: Make) -> None:
    policy = make_llama()
    assert value_of(policy) is None
    head = attach_head(policy)
    assert value_of(policy) is head is policy.value_head
    assert {name for name, _ in policy.named_parameters() if name.startswith(NAME)} == {
        "value_head.summary.weight",
        "value_head.summary.bias",
    }
    assert head.summary.weight.shape == (1, policy.config.hidden_size)


def test_a_head_is_trained_where_only_an_adapter_is(make_llama: Make) -> None:
    policy: Any = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    head = attach_head(policy)
    assert value_of(policy) is head
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {"lora_" in name or name.startswith(NAME) for name in trained} == {True}
    assert "value_head.summary.weight" in trained


def test_the_policy_alone_has_no_value(make_llama: Make) -> None:
    policy = make_llama()
    head = attach_head(policy)
    with without_value(policy):
        assert value_of(policy) is None
        assert not any(NAME in name for name in policy.state_dict())
    assert value_of(policy) is head


def test_a_value_model_reads_with_its_own_trunk(make_llama: Make) -> None:
    policy = make_llama()
    reader = classifier(policy).requires_grad_(False)
    value = attach_model(policy, reader, "there")
    assert value_of(policy) is value
    assert all(parameter.requires_grad for parameter in value.parameters())
    states = torch.randn(3, policy.config.hidden_size)
    assert torch.equal(value(states), reader.score(states)[:, 0])


def test_a_value_model_that_does_not_fit_is_refused(make_llama: Make) -> None:
    policy = make_llama()
    for changes, message in (({"num_labels": 2}, "2 labels"), ({"vocab_size": 7}, "7 tokens, the policy 31")):
        with pytest.raises(UserError, match=message):
            attach_model(policy, classifier(policy, **changes), "there")
    assert value_of(policy) is None


def test_a_head_lies_beside_the_weights(make_llama: Make, tmp_path: Path) -> None:
    policy, other = make_llama(), make_llama(seed=1)
    head = attach_head(policy)
    with torch.no_grad():
        head.summary.weight.normal_()
    with without_value(policy):
        policy.save_pretrained(tmp_path)
    save_value(policy, tmp_path)
    assert set(load_file(tmp_path / FILE)) == {"summary.weight", "summary.bias"}
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["unexpected_keys"]
    assert not load_value(other, tmp_path)  # it has no head to put it into
    attach_head(other)
    assert load_value(other, tmp_path)
    assert torch.equal(other.value_head.summary.weight, head.summary.weight)


def test_a_value_model_lies_in_a_folder_of_its_own(make_llama: Make, tmp_path: Path) -> None:
    policy, other = make_llama(), make_llama()
    attach_model(policy, classifier(policy, seed=1), "there")
    save_value(policy, tmp_path)
    assert (tmp_path / FOLDER / "config.json").exists()
    value = attach_model(other, classifier(policy, seed=2), "there")
    assert load_value(other, tmp_path)
    saved = LlamaForSequenceClassification.from_pretrained(tmp_path / FOLDER)
    assert torch.equal(value.classifier.score.weight, saved.score.weight)
    assert torch.equal(
        value.classifier.model.embed_tokens.weight, policy.value_head.classifier.model.embed_tokens.weight
    )


def test_nothing_is_written_or_read_where_there_is_nothing(make_llama: Make, tmp_path: Path) -> None:
    policy = make_llama()
    save_value(policy, tmp_path)
    assert not list(tmp_path.iterdir())
    attach_head(policy)
    assert not load_value(policy, tmp_path)


def test_a_saved_head_that_does_not_fit_is_refused(make_llama: Make, tmp_path: Path) -> None:
    policy = make_llama()
    attach_head(policy)
    for tensors, message in (
        ({"summary.weight": torch.zeros(1, 3), "summary.bias": torch.zeros(1)}, "does not fit"),
        ({"summary.weight": torch.zeros(1, 16)}, "summary.bias"),
        ({"summary.weight": torch.zeros(1, 16), "summary.bias": torch.zeros(1), "more": torch.zeros(1)}, "more"),
    ):
        save_file(tensors, tmp_path / FILE)
        with pytest.raises(UserError, match=message):
            load_value(policy, tmp_path)


def test_a_value_is_carried_on_or_begun_anew(make_llama: Make) -> None:
    policy = make_llama()

    def read() -> Any:
        return classifier(policy)

    ensure_value(policy, "head", read)
    head = value_of(policy)
    ensure_value(policy, "head", read)
    assert value_of(policy) is head
    ensure_value(policy, "head", read, keep=False)
    assert value_of(policy) is not head
    ensure_value(policy, "model", read)
    assert isinstance(value_of(policy), ValueModel)
    ensure_value(policy, "head", read)
    assert isinstance(value_of(policy), ValueHead)
