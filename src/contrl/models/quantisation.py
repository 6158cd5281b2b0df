"""Frozen weights in 4 or 8 bits under a LoRA adapter (QLoRA), by bitsandbytes, the extra ``quant``.

Refused without an adapter before anything is loaded: quantised weights have no gradient.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from contrl.config import ModelConfig
from contrl.errors import EnvironmentFault, UserError

HEADS = ["lm_head", "score", "classifier"]
"""Layers that stay whole: a small error there goes straight into every logit or score."""


def quantisation_of(config: ModelConfig, *, has_adapter: bool) -> BitsAndBytesConfig | None:
    """How the weights are quantised, or None.

    Args:
        config: the model's options.
        has_adapter: whether an adapter will be trained on the weights.

    Raises:
        UserError: for 4 and 8 bits at once, or without an adapter.
        EnvironmentFault: when bitsandbytes is not installed.
    """
    if not (config.load_in_4bit or config.load_in_8bit):
        return None
    flag = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
    if config.load_in_4bit and config.load_in_8bit:
        raise UserError("load_in_4bit and load_in_8bit are both given", fix="give one of them")
    if not has_adapter:
        raise UserError(
            f"{flag} without an adapter leaves nothing to train",
            why="quantised weights have no gradient; only an adapter on top of them can learn",
            fix="add use_peft, or load the weights in bfloat16 with dtype",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EnvironmentFault(f"{flag} needs the package bitsandbytes", fix="pip install 'contrl[quant]'")
    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=HEADS)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=HEADS,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        # Computed in the precision that the weights that stay whole are loaded in.
        bnb_4bit_compute_dtype=torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype),
    )


def keep_gradients(model: Any) -> None:
    """Keep 4-bit layers on a CPU in the layout that has a gradient.

    bitsandbytes 0.50 packs them anew at the first forward in eval mode where the processor has AVX512-BF16, and what
    runs on that layout is cut off from the graph: after an evaluation, training would go on with wrong gradients.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantised(model: Any) -> bool:
    """Whether a model's weights are quantised; such a model is not moved or cast."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return bool(getattr(inner, "is_quantized", False) or getattr(inner, "is_loaded_in_4bit", False))
