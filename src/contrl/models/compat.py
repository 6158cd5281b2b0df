"""TRL's model helpers under their own names: for programs written for it, over what contrl already has.

``ModelConfig`` here is TRL's dataclass with TRL's spellings and defaults; ``settings`` turns it into contrl's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, TaskType
from torch import nn
from transformers import BitsAndBytesConfig

from contrl import config as contrl_config
from contrl.errors import UserError
from contrl.models.value_models import language_model


@dataclass
class ModelConfig:
    """The model's options as TRL spells them; the meaning of each is that of contrl's key of nearly the same name."""

    model_name_or_path: str | None = None
    model_revision: str = "main"
    dtype: str | None = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: list[str] | str | None = None
    lora_target_parameters: list[str] | None = None
    lora_modules_to_save: list[str] | None = None
    lora_task_type: str = "CAUSAL_LM"
    use_rslora: bool = False
    use_dora: bool = False
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False
    bnb_4bit_quant_storage: str | None = None
    torch_dtype: str | None = field(default=None, metadata={"help": "dtype, as it was called until 2025"})

    def __post_init__(self) -> None:
        if self.torch_dtype is not None:
            self.dtype = self.torch_dtype
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("load_in_4bit and load_in_8bit are both given", fix="give one of them")
        names = self.lora_target_modules
        if isinstance(names, list) and len(names) == 1:
            # One word may be a pattern or all-linear, which peft takes as text.
            self.lora_target_modules = names[0]


def settings(model_args: ModelConfig) -> contrl_config.ModelConfig:
    """The same options as contrl's own configuration.

    Raises:
        UserError: without a model's name.
    """
    if not model_args.model_name_or_path:
        raise UserError("no model is named", fix="give model_name_or_path")
    names = model_args.lora_target_modules
    options: dict[str, Any] = {
        "revision": None if model_args.model_revision == "main" else model_args.model_revision,
        "dtype": model_args.dtype or "auto",
        "lora_target_modules": (names,) if isinstance(names, str) else tuple(names) if names else None,
        "lora_modules_to_save": tuple(model_args.lora_modules_to_save or ()) or None,
        # CAUSAL_LM is what everyone has who gave nothing; contrl sets the type by the method.
        "lora_task_type": "SEQ_CLS" if model_args.lora_task_type == "SEQ_CLS" else None,
    }
    same = ["attn_implementation", "trust_remote_code", "use_peft", "lora_r", "lora_alpha", "lora_dropout"]
    same += ["use_rslora", "use_dora", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"]
    options |= {name: getattr(model_args, name) for name in same}
    return contrl_config.ModelConfig(model_args.model_name_or_path, **options)


def get_peft_config(model_args: Any) -> LoraConfig | None:
    """The LoRA adapter that the options describe, or None without ``use_peft``."""
    if not model_args.use_peft:
        return None
    further: dict[str, Any] = {}
    names = model_args.lora_target_modules
    if not isinstance(names, str | None):
        names = names[0] if len(names) == 1 else list(names)
    if getattr(model_args, "lora_target_parameters", None) is not None:
        further["target_parameters"] = model_args.lora_target_parameters
    return LoraConfig(
        task_type=TaskType(model_args.lora_task_type or "CAUSAL_LM"),
        r=model_args.lora_r,
        target_modules=names,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        bias="none",
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        modules_to_save=list(model_args.lora_modules_to_save) if model_args.lora_modules_to_save else None,
        **further,
    )


def get_quantization_config(model_args: Any) -> BitsAndBytesConfig | None:
    """How the weights are quantised, for ``from_pretrained``; None when they are not."""
    if model_args.load_in_4bit:
        dtype = None if model_args.dtype == "auto" else model_args.dtype
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
            bnb_4bit_quant_storage=getattr(model_args, "bnb_4bit_quant_storage", None),
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_args.load_in_8bit else None


def create_reference_model(model: nn.Module, num_shared_layers: int | None = None) -> Any:
    """A frozen copy of ``model`` as it is now, in eval mode.

    An adapted (PEFT) model is copied with its adapter, so the reference is the policy at this moment and not the base
    below it; for the base leave ``ref_model`` out, and the adapter is switched off instead of anything copied.

    Args:
        model: a transformers or PEFT model, with or without a value head around it.
        num_shared_layers: the first so many decoder layers, and all before them, are not copied but shared; they are
            frozen in ``model`` too, for which they save memory and time. None copies everything.

    Raises:
        UserError: for more layers than the model has.
    """
    shared = _shared_parameters(model, num_shared_layers) if num_shared_layers is not None else {}
    for parameter in shared.values():
        parameter.requires_grad_(False)
    # What the memo already holds is not copied: the two models then have the same tensors.
    reference: Any = copy.deepcopy(model, {id(parameter): parameter for parameter in shared.values()})
    for module in (reference, language_model(reference)):
        for name in ("forward", "_original_forward"):
            # An instance-level forward is a closure over the original; the copy must run its own weights.
            module.__dict__.pop(name, None)
    return reference.requires_grad_(False).eval()


def _shared_parameters(model: nn.Module, num_layers: int) -> dict[str, torch.nn.Parameter]:
    stack = max((m for m in model.named_modules() if isinstance(m[1], nn.ModuleList)), key=lambda m: len(m[1]))
    prefix, layers = stack
    if not 0 < num_layers <= len(layers):
        raise UserError(
            f"num_shared_layers is {num_layers}, the model has {len(layers)} layers", fix=f"give 1 to {len(layers)}"
        )
    shared = {}
    for name, parameter in model.named_parameters():
        if name.startswith(f"{prefix}.") and int(name[len(prefix) + 1 :].partition(".")[0]) >= num_layers:
            break
        shared[name] = parameter
    return shared
