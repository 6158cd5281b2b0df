"""From a name to weights: which folder it means, that they are exact, and what the errors say to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from contrl.config import ModelConfig
from contrl.errors import ENVIRONMENT, EnvironmentFault, UserError
from contrl.models.adapters import add_lora
from contrl.models.embedded import character_tokenizer, tiny
from contrl.models.load import count_parameters, end_tokens, load_policy, load_weights

Make = Callable[..., Any]
LORA = ModelConfig("tiny", use_peft=True, lora_r=4, lora_dropout=0.0, lora_target_modules=("q_proj", "v_proj"))


def model_folder(path: Path) -> Path:
    """A folder that counts as holding a model."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    return path


def adapter_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}", encoding="utf-8")
    return path


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Every trained weight a random number, so that none equals the initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- names ----------------------------------------------------------------------------------------------------


def test_tiny_is_the_seeds_and_says_so() -> None:
    policy = load_policy(ModelConfig("tiny"), seed=4)
    assert same_weights(policy.model, tiny(4)[0])
    assert policy.source == "tiny, freshly initialised"


def test_a_run_is_loaded_and_named(tmp_path: Path) -> None:
    model, tokenizer = tiny(1)
    place = tmp_path / "run" / "stages" / "2-b" / "final"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    policy = load_policy(ModelConfig(str(tmp_path / "run")), seed=0)
    assert same_weights(policy.model, model)
    assert policy.source == str(place)
    assert count_parameters(ModelConfig(str(tmp_path / "run"))) == count_parameters(ModelConfig("tiny"))


def test_a_path_that_does_not_exist_is_the_users_mistake(tmp_path: Path) -> None:
    for name in (str(tmp_path / "missing"), "./missing", "runs/nowhere/stages"):
        with pytest.raises(UserError, match="there is no model folder") as error:
            load_policy(ModelConfig(name), seed=0)
        assert not isinstance(error.value, EnvironmentFault)


def test_a_hub_that_cannot_be_reached_is_the_environments_fault() -> None:
    """HF_HUB_OFFLINE is set for all tests: no call leaves the machine, and the answer is quick and short."""
    started = time.perf_counter()
    with pytest.raises(EnvironmentFault, match="could not be had from the hub") as error:
        load_policy(ModelConfig("nobody/nothing-of-this-name"), seed=0)
    assert time.perf_counter() - started < 10
    assert error.value.exit_code == ENVIRONMENT
    assert "embedded model (tiny, smollm2)" in str(error.value)
    assert len(str(error.value).splitlines()) == 3


def test_a_folder_that_only_looks_like_a_model_is_named(tmp_path: Path) -> None:
    model_folder(tmp_path / "website")
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(ModelConfig(str(tmp_path / "website")), seed=0)


def test_a_tokenizer_without_padding_pads_with_its_end_token(make_llama: Make, tmp_path: Path) -> None:
    make_llama(vocab_size=100).save_pretrained(tmp_path)
    tokenizer = character_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_policy(ModelConfig(str(tmp_path)), seed=0).tokenizer.pad_token == "<eos>"


# --- adapters -----------------------------------------------------------------------------------------------------


def saved_run_with_adapter(run: Path) -> Any:
    """A run folder as an interrupted LoRA run leaves it: ``base`` and one stage's adapter. Returns the model."""
    model, tokenizer = tiny(0)
    model.save_pretrained(run / "base")
    tokenizer.save_pretrained(run / "base")
    policy = load_policy(ModelConfig(str(run / "base"), **_lora_fields()), seed=0).model
    randomise(policy)
    policy.save_pretrained(run / "stages" / "1-a" / "final")
    tokenizer.save_pretrained(run / "stages" / "1-a" / "final")
    return policy


def _lora_fields() -> dict[str, Any]:
    return {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ("q_proj", "v_proj")}


def test_an_adapter_folder_is_continued_and_finds_its_base(logits_of: Make, tmp_path: Path) -> None:
    """Also after the run folder was moved: its base moved with it."""
    run = tmp_path / "run"
    wanted = logits_of(saved_run_with_adapter(run).eval())
    moved = run.rename(tmp_path / "moved")
    policy = load_policy(ModelConfig(str(moved), **_lora_fields()), seed=9)
    assert torch.equal(logits_of(policy.model.eval()), wanted)
    assert list(policy.model.peft_config) == ["default"]
    assert policy.source == f"{moved / 'stages' / '1-a' / 'final'}, its adapter continued"
    trained = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_finished_run_that_is_an_adapter_finds_its_base(logits_of: Make, tmp_path: Path) -> None:
    """The adapter's files lie in the run folder itself, beside ``base``."""
    run = tmp_path / "run"
    wanted = logits_of(saved_run_with_adapter(run).eval())
    for path in (run / "stages" / "1-a" / "final").iterdir():
        path.rename(run / path.name)
    policy = load_policy(ModelConfig(str(run.rename(tmp_path / "moved"))), seed=0)
    assert torch.equal(logits_of(policy.model.eval()), wanted)


def test_an_adapter_without_its_base_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in the working directory is not mistaken for the base of an adapter that names none."""
    adapter_folder(tmp_path / "adapter")
    model_folder(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="put the base model there, or merge the adapter"):
        load_policy(ModelConfig(str(tmp_path / "adapter")), seed=0)


def test_a_new_adapter_is_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, again, other = (load_policy(LORA, seed=seed).model for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_weights(one, again)
    adapters = [{n: p for n, p in model.named_parameters() if "lora_A" in n} for model in (one, other)]
    assert all(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_parameters_are_counted_without_loading() -> None:
    """tiny: 100 x 128 embeddings, 4 layers of 4 x 128^2 + 3 x 128 x 512 + 2 x 128, and a last norm of 128.

    LoRA of rank 4 on two projections of 128 x 128: 2 x 4 x (128 + 128) in each of 4 layers.
    """
    whole = 100 * 128 + 4 * (4 * 128**2 + 3 * 128 * 512 + 2 * 128) + 128
    adapter = 4 * 2 * 4 * (128 + 128)
    assert count_parameters(ModelConfig("tiny")) == (whole, whole)
    assert count_parameters(LORA) == (whole + adapter, adapter)
    assert count_parameters(ModelConfig("nobody/nothing")) is None


# --- loading into a live model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "4KB"])
def test_whole_models_come_back_exactly(tied: bool, shard: str, make_llama: Make, tmp_path: Path) -> None:
    saved, model = make_llama(0, tie_word_embeddings=tied), make_llama(1, tie_word_embeddings=tied)
    saved.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "4KB")
    assert not same_weights(model, saved)
    load_weights(model, tmp_path)
    assert same_weights(model, saved)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_adapters_come_back_exactly_and_the_base_stays(make_llama: Make, tmp_path: Path) -> None:
    saved, model = add_lora(make_llama(0), LORA), add_lora(make_llama(0), LORA)
    randomise(saved, 1)
    randomise(model, 2)
    saved.save_pretrained(tmp_path)
    load_weights(model, tmp_path)
    assert same_weights(model, saved)


def test_an_adapter_that_lacks_a_layer_is_refused(make_llama: Make, tmp_path: Path) -> None:
    """Loading what is there would leave the rest as it happened to be: not the weights that were saved."""
    saved = add_lora(make_llama(), LORA)
    saved.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    dropped = next(name for name in tensors if "v_proj" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, path)
    with pytest.raises(UserError, match=f"do not fit the model: {dropped}"):
        load_weights(add_lora(make_llama(), LORA), tmp_path)


def test_an_adapter_with_a_foreign_tensor_is_refused(make_llama: Make, tmp_path: Path) -> None:
    add_lora(make_llama(), LORA).save_pretrained(tmp_path)
    fewer = ModelConfig("tiny", use_peft=True, lora_r=4, lora_target_modules=("q_proj",))
    with pytest.raises(UserError, match=r"do not fit the model: .*v_proj"):
        load_weights(add_lora(make_llama(), fewer), tmp_path)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_weights_of_another_model_are_refused(changes: dict[str, int], make_llama: Make, tmp_path: Path) -> None:
    """Tensors too many, too few, and of another shape."""
    make_llama(**changes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: the weights do not fit the model"):
        load_weights(make_llama(), tmp_path)


def test_an_adapter_of_another_rank_is_refused(make_llama: Make, tmp_path: Path) -> None:
    add_lora(make_llama(), LORA).save_pretrained(tmp_path)
    wider = ModelConfig("tiny", use_peft=True, lora_r=8, lora_target_modules=("q_proj", "v_proj"))
    with pytest.raises(UserError, match="do not fit the model"):
        load_weights(add_lora(make_llama(), wider), tmp_path)


def test_adapters_and_whole_models_do_not_mix(make_llama: Make, tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "whole")
    add_lora(make_llama(), LORA).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="the folder holds an adapter, the run trains a whole model"):
        load_weights(make_llama(), tmp_path / "adapter")
    with pytest.raises(UserError, match="the folder holds a whole model, the run trains an adapter"):
        load_weights(add_lora(make_llama(), LORA), tmp_path / "whole")


def test_a_folder_without_tensors_is_refused(make_llama: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"do not fit the model: lm_head\.weight"):
        load_weights(make_llama(), tmp_path)


# --- end tokens ---------------------------------------------------------------------------------------------------


def test_end_tokens_come_from_the_generation_config_first(make_llama: Make) -> None:
    model = make_llama()
    assert end_tokens(model) == [1]
    model.generation_config.eos_token_id = [1, 7]
    assert end_tokens(model) == [1, 7]
    model.generation_config.eos_token_id = None
    assert end_tokens(model) == [1]
    model.config.eos_token_id = None
    assert end_tokens(model) == []
