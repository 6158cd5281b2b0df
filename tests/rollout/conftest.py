"""Tiny random models whose distributions are far from flat, in five architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

VOCABULARY = 23
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_CONFIGS: dict[str, Callable[[dict[str, Any]], PretrainedConfig]] = {
    "llama": lambda shape: LlamaConfig(**shape),
    "qwen2": lambda shape: Qwen2Config(**shape),
    "gpt2": lambda shape: GPT2Config(**{**shape, **_GPT2}),
    "gpt_neox": lambda shape: GPTNeoXConfig(**shape),
    # The window is shorter than most prompts, so its cache must slide while rows are dropped.
    "sliding": lambda shape: MistralConfig(**{"sliding_window": 4, **shape}),
}
FAMILIES = tuple(_CONFIGS)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """``make_model(family, seed=0, dtype=torch.float64, **changes of the config)``, in eval mode."""

    def make(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_CONFIGS[family](_SHAPE | changes))
        model.generation_config.eos_token_id = model.config.eos_token_id
        return model.to(dtype).eval()

    return make
