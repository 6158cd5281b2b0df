"""A llama of a few thousand weights with a character tokenizer, and a dozen pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from contrl.models.embedded import character_tokenizer

Rows = list[dict[str, Any]]


def _make(kind: Any, seed: int = 0, **changes: Any) -> Any:
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """``make_model(seed=0)``: a new language model, always with the same weights."""
    return lambda seed=0: _make(LlamaForCausalLM, seed)


@pytest.fixture
def make_scorer() -> Callable[..., Any]:
    """``make_scorer(seed=0)``: a classifier with one label."""
    return lambda seed=0: _make(LlamaForSequenceClassification, seed, num_labels=1)


@pytest.fixture
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def model_folder(tmp_path: Path, make_model: Callable[..., Any], tokenizer: Any) -> str:
    """The language model and its tokenizer in a folder."""
    place = tmp_path / "models" / "llama"
    make_model().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture
def supervised() -> Rows:
    """Ten rows of prompt and completion."""
    return [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(10)]


@pytest.fixture
def pairs() -> Rows:
    """Ten preference pairs."""
    return [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": str(2 * i + 1)} for i in range(10)]


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
