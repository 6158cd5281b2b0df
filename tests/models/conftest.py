"""Tiny models to save, load, adapt and freeze."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# peft asks transformers for a property under its old name.
IGNORED = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "models":
            item.add_marker(pytest.mark.filterwarnings(IGNORED))


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., Any]:
    """``make_llama(seed=0, **changes)``: two layers whose logits are far from flat, in eval mode, float32."""

    def make(seed: int = 0, **changes: Any) -> Any:
        shape: dict[str, Any] = {
            "vocab_size": 31,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.4,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**shape | changes)).eval()

    return make


@pytest.fixture(scope="session")
def logits_of() -> Callable[..., torch.Tensor]:
    """``logits_of(model)`` ``[9, V]`` on fixed tokens."""

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = model(input_ids=torch.tensor([[2, 5, 7, 3, 9, 11, 4, 2, 8]])).logits[0]
        return out.clone()

    return logits
