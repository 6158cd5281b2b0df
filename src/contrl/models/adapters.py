"""LoRA adapters by peft: a new one, or the one a folder already holds, continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from contrl.config import ModelConfig


def add_lora(model: Any, config: ModelConfig) -> Any:
    """Wrap ``model`` with a fresh LoRA adapter; a model that already has one is returned as it is.

    Continuing the same adapter is what makes the weights of task k+1 start where task k ended; a second fresh
    adapter would start from the base again.
    """
    if isinstance(model, PeftModel):
        return model
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(config.lora_target_modules) if config.lora_target_modules else None,
            task_type=TaskType.CAUSAL_LM,
        ),
    )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / "adapter_config.json").exists()


def load_adapter(model: Any, folder: Path) -> Any:
    """The adapter in ``folder`` on top of its base, trainable."""
    adapted: Any = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    for config in adapted.peft_config.values():
        # Saved again it must name the base it was loaded on; the folder may have been moved since it was written.
        config.base_model_name_or_path = model.name_or_path
    return adapted
