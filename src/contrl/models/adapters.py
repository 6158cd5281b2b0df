"""LoRA adapters by peft: a new one, or the one a folder already holds, continued; never one on top of another.

Continuing the same adapter is what makes the weights of task k+1, or of DPO after SFT, start where the one before
ended: a second fresh adapter would start from the base again, in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from safetensors.torch import load_file

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models.classifier import is_classifier_model
from contrl.models.folders import is_adapter

__all__ = ["add_lora", "is_adapter", "load_adapter", "lora_config", "merged", "num_labels", "unused_settings"]


def lora_config(config: ModelConfig, *, classifier: bool) -> LoraConfig:
    """The adapter that the options describe.

    Raises:
        UserError: for a task type that is not the model's.
    """
    kind = "SEQ_CLS" if classifier else "CAUSAL_LM"
    if config.lora_task_type not in (None, kind):
        raise UserError(
            f"lora_task_type {config.lora_task_type} does not go with this method, which trains a "
            f"{'classifier' if classifier else 'language model'}",
            fix=f"leave it out: {kind} is set by itself",
        )
    modules = config.lora_target_modules
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if modules == ("all-linear",) else list(modules) if modules else None,
        modules_to_save=list(config.lora_modules_to_save) if config.lora_modules_to_save else None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        task_type=TaskType(kind),
    )


def add_lora(model: Any, config: ModelConfig) -> Any:
    """Wrap ``model`` with a fresh LoRA adapter; a model that already has one is returned as it is.

    Raises:
        UserError: when no layer has one of the names given, or peft knows none for this family.
    """
    if isinstance(model, PeftModel):
        return model
    try:
        return get_peft_model(model, lora_config(config, classifier=is_classifier_model(model)))
    except ValueError as error:
        raise UserError(
            f"no LoRA adapter can be put on {type(model).__name__}",
            why=str(error).strip().splitlines()[0],
            fix="give lora_target_modules: names of its linear layers, or all-linear",
        ) from error


def load_adapter(model: Any, folder: Path) -> Any:
    """The adapter in ``folder`` on top of its base, trainable.

    A language model's adapter on a classifier is continued too, and its head trained and saved with it.

    Raises:
        UserError: when adapter and base do not fit each other.
    """
    saved: Any = PeftConfig.from_pretrained(str(folder))
    of_classifier = saved.task_type == TaskType.SEQ_CLS
    if of_classifier and not is_classifier_model(model):
        raise UserError("the folder holds a classifier's adapter, not a language model's", where=str(folder))
    try:
        if is_classifier_model(model) and not of_classifier:
            saved.task_type, saved.inference_mode = TaskType.SEQ_CLS, False
            adapted: Any = get_peft_model(model, saved)
            head = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            set_peft_model_state_dict(adapted, head | load_file(folder / "adapter_model.safetensors"))
        else:
            with warnings.catch_warnings():
                # An error here, see _require_whole.
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                # The folder may have been moved with its base; what does not fit is an error below.
                warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
                adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "the adapter does not fit its base model",
            where=str(folder),
            why=str(error).strip().splitlines()[-1].strip(),
            fix="name the base it was trained on; a vocabulary differs when tokens were added to one of them",
        ) from error
    _require_whole(adapted, folder)
    for config in adapted.peft_config.values():
        # Saved again it must name the base it was loaded on; the folder may have been moved since it was written.
        config.base_model_name_or_path = model.name_or_path
    return adapted


def merged(model: Any) -> Any:
    """The base model with the adapter's change added to its weights; the wrapper is gone."""
    name = model.name_or_path
    whole = model.merge_and_unload()
    whole.name_or_path = name
    return whole


def unused_settings(model: Any, config: ModelConfig) -> str:
    """Which given LoRA options the continued adapter does not follow, in words; empty when there is none."""
    adapter = next(iter(model.peft_config.values()))
    names = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "use_dora": "use_dora"}
    names |= {"use_rslora": "use_rslora", "lora_target_modules": "target_modules"}
    told = []
    for option, name in names.items():
        given, has = getattr(config, option), getattr(adapter, name, None)
        if isinstance(given, tuple):
            given, has = sorted(given), sorted(has) if isinstance(has, set | list | tuple) else [has]
        if given != has and getattr(config, option) != ModelConfig.__dataclass_fields__[option].default:
            told.append(f"{option} {given} (it has {has})")
    return f"not used: {', '.join(told)}" if told else ""


def num_labels(folder: Path) -> int:
    """How many labels the head saved with a classifier's adapter has; 1 when none was saved."""
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        return 1
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        heads = [name for name in names if name.endswith((".score.weight", ".classifier.weight"))]
        return int(file.get_slice(heads[0]).get_shape()[0]) if heads else 1


def _require_whole(adapted: Any, folder: Path) -> None:
    """Refuse an adapter with layers that its base lacks, or without some of its own; peft would only warn."""
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        return
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    lies_there = {name for name in names if ".lora_" in name}
    wanted = set(_lora_names(adapted))
    if lies_there and lies_there != wanted:
        wrong = sorted(lies_there ^ wanted)
        raise UserError(
            f"the adapter does not fit its base model: {', '.join(wrong[:3])}",
            where=str(folder),
            fix="name the base it was trained on",
        )


def _lora_names(adapted: Any) -> Iterator[str]:
    for name, _ in adapted.named_parameters():
        if ".lora_" in name:
            yield name.replace(".default", "")
