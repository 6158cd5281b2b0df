"""contrl: one engine for post-training language models on a sequence of tasks.

The public names, nothing else. They are loaded when first used, so that importing the package (and
`contrl --help`) loads neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "run": "contrl.api",
    "resume": "contrl.api",
    **dict.fromkeys(
        (
            "Batch",
            "Completion",
            "Context",
            "Group",
            "LossOutput",
            "Method",
            "Metric",
            "OnlineMethod",
            "Outputs",
            "Reward",
            "Strategy",
            "Task",
        ),
        "contrl.interfaces",
    ),
    "UserError": "contrl.errors",
    **dict.fromkeys(
        (
            "CPOTrainer",
            "DPOTrainer",
            "KTOTrainer",
            "ORPOTrainer",
            "RewardTrainer",
            "SFTTrainer",
        ),
        "contrl.trainers.faces",
    ),
    **dict.fromkeys(("GRPOTrainer", "PPOTrainer", "RLOOTrainer"), "contrl.trainers.online_faces"),
    **dict.fromkeys(("GRPOConfig", "RLOOConfig"), "contrl.trainers.online_configs"),
    "PPOConfig": "contrl.trainers.ppo_config",
    **dict.fromkeys(
        ("CPOConfig", "DPOConfig", "KTOConfig", "ORPOConfig", "RewardConfig", "SFTConfig"),
        "contrl.trainers.configs",
    ),
    **dict.fromkeys(
        ("ModelConfig", "create_reference_model", "get_peft_config", "get_quantization_config"),
        "contrl.models.compat",
    ),
    **dict.fromkeys(
        ("AutoModelForCausalLMWithValueHead", "AutoModelForSeq2SeqLMWithValueHead"),
        "contrl.models.value_models",
    ),
    **dict.fromkeys(
        (
            "apply_chat_template",
            "extract_prompt",
            "is_conversational",
            "maybe_apply_chat_template",
            "maybe_convert_to_chatml",
            "maybe_extract_prompt",
            "maybe_unpair_preference_dataset",
            "pack_dataset",
            "unpair_preference_dataset",
        ),
        "contrl.data.conversion",
    ),
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'contrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
