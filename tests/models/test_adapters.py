"""LoRA: a fresh adapter changes nothing yet, a second one is never put on top of the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.config import ModelConfig
from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.interfaces import Completion, Group
from contrl.models.adapters import add_lora, is_adapter, load_adapter, lora_config
from contrl.models.embedded import character_tokenizer
from contrl.models.load import load_policy

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


# --- continued, never nested --------------------------------------------------------------------------------


def shake(model: Any, seed: int = 0) -> None:
    """One step of training as far as weights go: every trained one is a random number now."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(make_llama: Make, tmp_path: Path) -> str:
    return saved(make_llama(vocab_size=100), tmp_path / "base")


def run(name: str, folder: Path, seed: int, **options: Any) -> tuple[Any, Any, Any]:
    """A run from ``name``: the policy at its start (a copy), at its end, and its source in words; saved to folder."""
    policy = load_policy(ModelConfig(name, **options), seed=seed)
    start = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    shake(policy.model, seed)
    saved(policy.model, folder)
    return start, policy.model, policy.source


LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_target_modules": ("q_proj", "v_proj")}


@pytest.mark.parametrize("options", [LORA, {}, {"use_peft": True, "lora_r": 32}])
def test_the_second_run_begins_where_the_first_ended(
    options: dict[str, Any], base: str, logits_of: Make, tmp_path: Path
) -> None:
    """SFT, then DPO on its folder: with the same flags, without any, and with others."""
    _, first, _ = run(base, tmp_path / "sft", 1, **LORA)
    wanted = logits_of(first.eval())
    begun = load_policy(ModelConfig(str(tmp_path / "sft"), **options), seed=2)
    assert torch.equal(logits_of(begun.model.eval()), wanted)
    _, second, source = run(str(tmp_path / "sft"), tmp_path / "dpo", 2, **options)
    assert "its adapter continued" in source
    assert ("not used: lora_r 32 (it has 4)" in source) == (options.get("lora_r") == 32)
    assert list(second.peft_config) == ["default"]
    third, _, _ = run(str(tmp_path / "dpo"), tmp_path / "third", 3)
    now = dict(second.named_parameters())
    assert third.keys() == now.keys() == dict(first.named_parameters()).keys()
    assert all(torch.equal(p, third[name]) for name, p in now.items())
    assert not any("lora_" in name.partition(".lora_")[2] for name in now)


def test_frozen_weights_stay_bit_equal_over_runs(base: str, make_llama: Make, tmp_path: Path) -> None:
    run(base, tmp_path / "sft", 1, **LORA)
    _, second, _ = run(str(tmp_path / "sft"), tmp_path / "dpo", 2, **LORA)
    with second.disable_adapter():
        untouched = second.get_base_model().state_dict()
    for name, weight in make_llama(vocab_size=100).state_dict().items():
        kept = untouched.get(name, untouched.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(kept, weight)


def test_an_adapter_on_an_adapter_is_put_on_the_merged_weights(base: str, logits_of: Make, tmp_path: Path) -> None:
    """Another program may save an adapter whose base is an adapter folder; nothing nests when it is loaded."""
    run(base, tmp_path / "first", 1, **LORA)
    merged = load_policy(ModelConfig(str(tmp_path / "first")), seed=0).model.merge_and_unload()
    saved(merged, tmp_path / "merged")
    _, upper, _ = run(str(tmp_path / "merged"), tmp_path / "second", 2, **LORA)
    wanted = logits_of(upper.eval())
    described = tmp_path / "second" / "adapter_config.json"
    text = described.read_text(encoding="utf-8")
    described.write_text(text.replace(str(tmp_path / "merged"), str(tmp_path / "first")), encoding="utf-8")
    loaded = load_policy(ModelConfig(str(tmp_path / "second")), seed=0).model
    assert torch.allclose(logits_of(loaded.eval()), wanted, atol=1e-5)
    assert list(loaded.peft_config) == ["default"]
    assert sum(".lora_A" in name for name, _ in loaded.named_parameters()) == 4


# --- what does not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_an_adapter_of_another_model_is_refused(changes: dict[str, int], make_llama: Make, tmp_path: Path) -> None:
    """Sizes that differ, layers the base lacks, layers the adapter lacks: peft only warns of the last two."""
    add_lora(make_llama(), CONFIG).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the adapter does not fit its base model"):
        load_adapter(make_llama(**changes), tmp_path)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_of_another_vocabulary_is_refused(make_llama: Make, tmp_path: Path) -> None:
    config = ModelConfig("tiny", use_peft=True, lora_r=4, lora_target_modules=("q_proj", "lm_head"))
    add_lora(make_llama(), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the adapter does not fit its base model") as error:
        load_adapter(make_llama(vocab_size=40), tmp_path)
    assert "vocabulary" in error.value.fix


def test_layers_that_are_not_there_are_named(make_llama: Make) -> None:
    with pytest.raises(UserError, match="no LoRA adapter can be put on LlamaForCausalLM") as error:
        add_lora(make_llama(), ModelConfig("tiny", use_peft=True, lora_target_modules=("c_attn",)))
    assert "all-linear" in error.value.fix


# --- options ------------------------------------------------------------------------------------------------


def test_all_linear_layers_get_an_adapter_but_the_head(make_llama: Make) -> None:
    model = add_lora(make_llama(), ModelConfig("tiny", use_peft=True, lora_target_modules=("all-linear",)))
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_options_reach_the_adapter() -> None:
    """rsLoRA scales by alpha / sqrt(r): 8 / 2 = 4 where alpha / r is 2."""
    config = ModelConfig(
        "tiny", lora_r=4, lora_alpha=8, use_rslora=True, use_dora=True, lora_modules_to_save=("embed_tokens",)
    )
    made = lora_config(config, classifier=False)
    assert (made.r, made.lora_alpha, made.use_rslora, made.use_dora) == (4, 8, True, True)
    assert made.modules_to_save == ["embed_tokens"]
    assert made.task_type == "CAUSAL_LM"


def test_rslora_scales_by_the_root(make_llama: Make) -> None:
    model = add_lora(make_llama(), ModelConfig("tiny", use_peft=True, lora_r=4, lora_alpha=8, use_rslora=True))
    assert model.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == 4.0


def test_lora_on_the_head_learns_through_the_engines_head(make_llama: Make) -> None:
    """The head is called as a module: gradients of its adapter equal those of the model's own logits."""
    config = ModelConfig("tiny", use_peft=True, lora_r=4, lora_dropout=0.0, lora_target_modules=("q_proj", "lm_head"))
    model = add_lora(make_llama(), config)
    shake(model)
    head = {name: p for name, p in model.named_parameters() if "lm_head.lora" in name}
    assert len(head) == 2
    prompt, completion = [5, 6, 7], [8, 9, 1]
    batch = to_batch([Group("a", "t", prompt, [Completion(completion)])], torch.device("cpu"))
    mine = score_batch(model, LMHead(model), batch, Routing("plain"))["logps"].sum()
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    theirs = sum(logits[2 + place, token] for place, token in enumerate(completion))
    torch.testing.assert_close(mine, theirs)
    mine_gradient = torch.autograd.grad(mine, list(head.values()))
    torch.testing.assert_close(mine_gradient, torch.autograd.grad(theirs, list(head.values())))
