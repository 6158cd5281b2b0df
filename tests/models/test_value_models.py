"""Models with a value head: TRL's calls, the engine's head, and folders that other programs read and wrote."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from contrl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, create_reference_model
from contrl.errors import EnvironmentFault, UserError
from contrl.models.value_head import FILE, attach_model, value_of
from contrl.models.value_models import language_model

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
LORA = LoraConfig(r=2, target_modules="all-linear")


def decoder(seed: int = 0) -> Any:
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def encoder_decoder(name: str = "t5", seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "t5":
            sizes: Any = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
            return T5ForConditionalGeneration(T5Config(vocab_size=31, decoder_start_token_id=0, **sizes)).eval()
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
        sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
        return BartForConditionalGeneration(BartConfig(vocab_size=31, **sizes)).eval()


def with_head(model: Any, seed: int = 0, **options: Any) -> Any:
    """A model whose head says something, in eval mode."""
    encodes = model.config.is_encoder_decoder
    kind = AutoModelForSeq2SeqLMWithValueHead if encodes else AutoModelForCausalLMWithValueHead
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = kind.from_pretrained(model, v_head_init_strategy="normal", **options)
    with torch.no_grad():
        whole.v_head.summary.bias.fill_(0.5)
    return whole.eval()


def said(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    further = {"decoder_input_ids": IDS} if model.has_encoder else {}
    with torch.no_grad():
        logits, _, values = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **further)
    return logits, values


def agree(a: Any, b: Any) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(said(a), said(b), strict=True))


# --- one forward ----------------------------------------------------------------------------------------


def test_forward_gives_logits_loss_and_values() -> None:
    """A value is the head's weight times the last state, plus its bias."""
    policy = decoder()
    model = with_head(policy)
    logits, loss, values = model(IDS, attention_mask=torch.ones_like(IDS), labels=IDS)
    plain = policy(IDS, labels=IDS, output_hidden_states=True)
    head = model.v_head.summary
    wanted = plain.hidden_states[-1] @ head.weight[0] + 0.5
    assert torch.equal(logits, plain.logits)
    assert loss.item() == plain.loss.item()
    torch.testing.assert_close(values, wanted, atol=1e-6, rtol=0)
    assert values.std() > 0
    assert model(IDS)[1] is None
    (loss + values.sum()).backward()
    assert head.weight.grad is not None
    assert policy.model.layers[0].mlp.up_proj.weight.grad is not None


def test_the_cache_comes_when_it_is_asked_for() -> None:
    model = with_head(decoder())
    whole = model(IDS)[2]
    _, _, values, cache = model(IDS[:, :3], use_cache=True, return_past_key_values=True)
    torch.testing.assert_close(values, whole[:, :3], atol=1e-5, rtol=0)
    last = model(IDS[:, 3:], past_key_values=cache)[2]
    torch.testing.assert_close(last, whole[:, 3:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_values_of_an_encoder_decoder_are_its_decoders(name: str) -> None:
    policy = encoder_decoder(name)
    model = with_head(policy)
    labels = IDS[:, :3].contiguous()
    logits, loss, values = model(input_ids=IDS, labels=labels)
    plain = policy(input_ids=IDS, labels=labels, output_hidden_states=True)
    assert values.shape == (2, 3)
    torch.testing.assert_close(
        values, plain.decoder_hidden_states[-1] @ model.v_head.summary.weight[0] + 0.5, atol=1e-6, rtol=0
    )
    assert torch.equal(logits, plain.logits)
    assert loss.item() == plain.loss.item()


def test_a_new_head_says_zero() -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(decoder())
    assert not said(model)[1].any()


def test_half_precision_gives_float_logits_and_values() -> None:
    model = with_head(decoder().to(torch.bfloat16))
    logits, values = said(model)
    assert (logits.dtype, values.dtype) == (torch.float32, torch.float32)


def test_everything_else_is_the_language_models() -> None:
    policy = decoder()
    model = with_head(policy)
    assert model.config is policy.config
    assert model.device == torch.device("cpu")
    assert torch.equal(
        model.generate(IDS[:1], max_new_tokens=4, do_sample=False),
        policy.generate(IDS[:1], max_new_tokens=4, do_sample=False),
    )
    assert value_of(policy) is model.v_head
    assert language_model(model) is policy
    assert language_model(policy) is policy
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing


def test_a_copy_is_another_model() -> None:
    model = with_head(decoder())
    twin = copy.deepcopy(model)
    assert agree(model, twin)
    with torch.no_grad():
        twin.v_head.summary.bias.add_(1)
        twin.pretrained_model.lm_head.weight.mul_(2)
    assert not torch.equal(said(model)[1], said(twin)[1])
    assert not torch.equal(said(model)[0], said(twin)[0])


def test_a_reference_is_frozen_and_unaffected() -> None:
    model = with_head(decoder())
    reference = create_reference_model(model)
    before = said(reference)
    assert agree(model, reference)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, said(reference), strict=True))


def test_a_reference_runs_its_own_weights() -> None:
    """Also where the model's forward was replaced by a closure over the model, as accelerate does."""
    model = with_head(decoder())
    own = model.pretrained_model.forward
    model.pretrained_model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    reference, before = create_reference_model(model), said(model)
    with torch.no_grad():
        model.pretrained_model.lm_head.weight.mul_(2)
    assert torch.equal(said(reference)[0], before[0])
    assert not torch.equal(said(model)[0], before[0])


def test_a_reference_may_share_its_first_layers() -> None:
    model = with_head(decoder())
    reference = create_reference_model(model, num_shared_layers=1)
    pairs = list(zip(model.named_parameters(), reference.parameters(), strict=True))
    shared = {name for (name, mine), theirs in pairs if mine is theirs}
    assert any("layers.0." in name for name in shared)
    assert not any("layers.1." in name or "value_head" in name for name in shared)


# --- folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["decoder", "t5", "bart"])
def test_a_saved_model_comes_back_with_its_head(name: str, tmp_path: Path) -> None:
    model = with_head(decoder() if name == "decoder" else encoder_decoder(name))
    model.save_pretrained(tmp_path / "saved")
    assert agree(model, type(model).from_pretrained(str(tmp_path / "saved")).eval())
    # The folder is a plain model, without anything that it does not know.
    plain: Any = AutoModelForCausalLM if name == "decoder" else AutoModelForSeq2SeqLM
    _, loading = plain.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not loading["unexpected_keys"]
    assert set(load_file(tmp_path / "saved" / FILE)) == {"summary.weight", "summary.bias"}


@pytest.mark.parametrize("name", ["decoder", "t5"])
def test_a_saved_adapter_comes_back_with_its_head(name: str, tmp_path: Path) -> None:
    base = decoder() if name == "decoder" else encoder_decoder(name)
    base.save_pretrained(tmp_path / "base")
    kind: Any = AutoModelForCausalLMWithValueHead if name == "decoder" else AutoModelForSeq2SeqLMWithValueHead
    model = kind.from_pretrained(str(tmp_path / "base"), peft_config=LORA).eval()
    assert model.is_peft_model
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name or "value_head" in parameter_name:
                parameter.normal_(0.0, 0.3)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {"lora_" in n or "value_head" in n for n in trained} == {True}
    model.save_pretrained(tmp_path / "saved")
    again = kind.from_pretrained(tmp_path / "saved").eval()
    assert isinstance(again.pretrained_model, PeftModel)
    assert agree(model, again)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trained
    frozen = kind.from_pretrained(tmp_path / "saved", is_trainable=False)
    assert {n for n, p in frozen.named_parameters() if p.requires_grad} == {n for n in trained if "value_head" in n}


def test_a_folder_of_trl_has_the_head_among_its_tensors(tmp_path: Path) -> None:
    model = with_head(decoder())
    model.pretrained_model.config.save_pretrained(tmp_path)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert agree(model, AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path).eval())


def test_an_adapter_of_trl_has_the_head_in_a_file_of_torch(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path / "base")
    model = with_head(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft_config=LORA)
    model.pretrained_model.save_pretrained(tmp_path / "saved")
    torch.save({k: v for k, v in model.state_dict().items() if "v_head" in k}, tmp_path / "saved" / "pytorch_model.bin")
    assert agree(model, AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "saved").eval())


def test_a_plain_folder_gets_a_new_head(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert not said(model.eval())[1].any()
    torch.testing.assert_close(said(model)[0], decoder()(IDS).logits, atol=0, rtol=0)


def test_the_embedded_model_has_a_name() -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained("tiny", torch_dtype=torch.bfloat16, seed=3)
    assert model.dtype == torch.bfloat16
    assert model.config.hidden_size == 128


def test_a_state_comes_back() -> None:
    one, other = with_head(decoder(0), 0), with_head(decoder(1), 1)
    state = one.state_dict()
    assert {name for name in state if "head" in name} == {
        "lm_head.weight",
        "v_head.summary.weight",
        "v_head.summary.bias",
    }
    other.load_state_dict(state)
    assert agree(one, other)
    third = with_head(decoder(0), 2)
    head = {name: value for name, value in one.state_dict().items() if name.startswith("v_head.")}
    third.post_init(head)
    assert agree(one, third)


def test_a_head_that_a_model_has_is_kept() -> None:
    model = with_head(decoder())
    again = AutoModelForCausalLMWithValueHead(model.pretrained_model)
    assert again.v_head is model.v_head


# --- what is refused --------------------------------------------------------------------------------------


def test_the_wrong_kind_of_model_is_refused(tmp_path: Path) -> None:
    causal, seq2seq = AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
    with pytest.raises(UserError, match="use AutoModelForSeq2SeqLMWithValueHead"):
        causal.from_pretrained(encoder_decoder())
    with pytest.raises(UserError, match="use AutoModelForCausalLMWithValueHead"):
        seq2seq.from_pretrained(decoder())
    with pytest.raises(UserError, match="use AutoModelForCausalLMWithValueHead"):
        seq2seq.from_pretrained("tiny")
    with pytest.raises(UserError, match="no language model"):
        causal.from_pretrained(LlamaForSequenceClassification(decoder().config))
    decoder().save_pretrained(tmp_path / "decoder")
    encoder_decoder().save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match="no encoder-decoder"):
        seq2seq.from_pretrained(tmp_path / "decoder")
    with pytest.raises(UserError, match="cannot be read"):
        causal.from_pretrained(tmp_path / "t5")


def test_options_that_mean_nothing_are_refused() -> None:
    kind = AutoModelForCausalLMWithValueHead
    with pytest.raises(UserError, match="reward_adapter"):
        kind.from_pretrained(decoder(), reward_adapter="there")
    with pytest.raises(UserError, match="use normal"):
        kind.from_pretrained(decoder(), v_head_init_strategy="uniform")
    with pytest.raises(UserError, match="'width'"):
        kind(decoder(), width=3)
    adapted = kind.from_pretrained(decoder(), peft_config=LORA)
    with pytest.raises(UserError, match="an adapter already"):
        kind.from_pretrained(adapted.pretrained_model, peft_config=LORA)
    with pytest.raises(UserError, match="no adapter can be put"):
        kind.from_pretrained(decoder(), peft_config=LoraConfig(target_modules=["nowhere"]))


def test_names_that_mean_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for kind in (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead):
        with pytest.raises(EnvironmentFault, match="no-such/model"):
            kind.from_pretrained("no-such/model")
        with pytest.raises(UserError, match="no model"):
            kind.from_pretrained(tmp_path)


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    with_head(decoder()).save_pretrained(tmp_path)
    save_file({"summary.weight": torch.zeros(1, 3), "summary.bias": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(UserError, match="does not fit"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    model = with_head(decoder())
    with pytest.raises(UserError, match="does not fit"):
        model.post_init({"v_head.summary.weight": torch.zeros(1, 3), "v_head.summary.bias": torch.zeros(1)})


def test_nothing_is_pushed(tmp_path: Path) -> None:
    model = with_head(decoder())
    with pytest.raises(UserError, match="hf upload"):
        model.push_to_hub("name")
    with pytest.raises(UserError, match="hf upload"):
        model.save_pretrained(tmp_path / "there", push_to_hub=True)
    assert not (tmp_path / "there").exists()


def test_a_value_model_gives_way_to_a_head() -> None:
    policy = decoder()
    classifier = LlamaForSequenceClassification(LlamaConfig(**{**policy.config.to_dict(), "num_labels": 1}))
    attach_model(policy, classifier, "there")
    assert AutoModelForCausalLMWithValueHead(policy).v_head is value_of(policy)
