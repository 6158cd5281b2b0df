"""The policy and the reference of what a trainer was given: a name, or any model object, which is used as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType, get_peft_model
from transformers import AutoTokenizer

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models.classifier import is_classifier_model
from contrl.models.load import Policy, load_tokenizer, policy_from
from contrl.models.pretrained import Reading, read_model
from contrl.models.quantisation import quantisation_of
from contrl.trainers.configs import TrainerConfig

_INIT = ("attn_implementation", "revision", "trust_remote_code")
_BNB = {"load_in_4bit": "load_in_4bit", "load_in_8bit": "load_in_8bit", "bnb_4bit_quant_type": "bnb_4bit_quant_type"}
_BNB |= {"bnb_4bit_use_double_quant": "use_bnb_nested_quant"}


@dataclass
class Given:
    """The models a trainer was given.

    Attributes:
        model: a name or a model object.
        tokenizer: or None for the model's own.
        peft_config: an adapter to put on the model.
        quantization_config: of a model given by name.
        reference: a model object or a name, or None for the weights at the start.
        classifier: whether the method trains a reward model.
    """

    model: Any
    tokenizer: Any = None
    peft_config: Any = None
    quantization_config: Any = None
    reference: Any = None
    classifier: bool = False

    def __post_init__(self) -> None:
        if self.model is None:
            raise UserError("there is no model", fix="give a name or a model object")
        if self.reference is not None and self.reference is self.model and not isinstance(self.model, str):
            raise UserError(
                "model and ref_model are the same object",
                why="it would move with the policy and never disagree with it",
                fix="leave ref_model out (the weights at the start), or give create_reference_model(model)",
            )
        if isinstance(self.model, PeftModel) and self.peft_config is not None:
            raise _second_adapter()
        if self.quantization_config is not None and not isinstance(self.model, str):
            raise UserError("quantization_config goes with a model given by name", fix="load the model quantised")
        if not isinstance(self.model, str) and is_classifier_model(self.model) != self.classifier:
            wanted = "a sequence classifier (num_labels=1)" if self.classifier else "a language model"
            raise UserError(f"the model is a {type(self.model).__name__}, and this trainer takes {wanted}")

    @property
    def name(self) -> str:
        """Of the model, for the output folder and the card."""
        path = self.model if isinstance(self.model, str) else str(getattr(self.model, "name_or_path", "") or "")
        return path or type(self.model).__name__

    def read_tokenizer(self, args: TrainerConfig) -> Any:
        """The tokenizer, without any weights; changed as the configuration says."""
        tokenizer = self.tokenizer
        if tokenizer is not None and not hasattr(tokenizer, "convert_tokens_to_ids"):
            raise UserError(f"processing_class is a {type(tokenizer).__name__}, not a tokenizer")
        if tokenizer is None:
            if not isinstance(self.model, str) and not getattr(self.model, "name_or_path", ""):
                raise UserError(
                    "the model has no tokenizer", why="it was not loaded by a name", fix="give processing_class"
                )
            tokenizer = load_tokenizer(
                _options(self.name, args, None) if isinstance(self.model, str) else ModelConfig(self.name)
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        for which in ("eos_token", "pad_token"):
            token = getattr(args, which)
            if token is not None:
                if token not in tokenizer.get_vocab():
                    raise UserError(f"{which} {token!r} is not in the tokenizer's vocabulary")
                setattr(tokenizer, which, token)
        if args.chat_template_path is not None:
            tokenizer.chat_template = _template(args.chat_template_path)
        return tokenizer

    def load(self, tokenizer: Any, args: TrainerConfig, device: torch.device) -> Policy:
        """The policy on its device. Raises UserError as ``contrl.models.load`` does."""
        model = self.model
        if isinstance(model, str):
            config = _options(model, args, self.quantization_config)
            quantisation = quantisation_of(config, has_adapter=self.peft_config is not None)
            model = read_model(model, Reading(config, args.seed, device, self.classifier, quantisation))
            if isinstance(model, PeftModel) and self.peft_config is not None:
                raise _second_adapter()
        if self.peft_config is not None:
            model = _adapted(model, self.peft_config, args.seed)
        return replace(policy_from(model, tokenizer, seed=args.seed, device=device), source=self.name)

    def load_reference(self, args: TrainerConfig, device: torch.device) -> Any:
        """The frozen model to compare with, or None where the weights at the start serve."""
        if self.reference is None:
            return None
        model = self.reference
        if isinstance(model, str):
            model = read_model(model, Reading(_options(model, args, None), args.seed, device, self.classifier))
        return model if {p.device for p in model.parameters()} == {device} else model.to(device)


def _second_adapter() -> UserError:
    return UserError(
        "the model has an adapter already, and peft_config asks for another",
        why="a second one would start from the base again and lose what the first has learnt",
        fix="leave peft_config out to continue this adapter, or merge it first: model.merge_and_unload()",
    )


def _adapted(model: Any, peft_config: Any, seed: int) -> Any:
    config = copy.deepcopy(peft_config)
    kind = TaskType.SEQ_CLS if is_classifier_model(model) else TaskType.CAUSAL_LM
    if getattr(config, "task_type", None) != kind:
        config.task_type = kind
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(
                f"no adapter can be put on {type(model).__name__}", why=str(error).strip().splitlines()[0]
            ) from error


def _options(name: str, args: TrainerConfig, quantization: Any) -> ModelConfig:
    """contrl's options of a model given by name, from ``model_init_kwargs`` and ``quantization_config``."""
    given = dict(args.model_init_kwargs) if isinstance(args.model_init_kwargs, Mapping) else {}
    quantization = given.pop("quantization_config", None) or quantization
    values: dict[str, Any] = {key: given.pop(key) for key in _INIT if key in given}
    dtype = given.pop("dtype", given.pop("torch_dtype", None))
    if dtype is not None:
        values["dtype"] = str(dtype).removeprefix("torch.")
    if args.trust_remote_code:
        values["trust_remote_code"] = True
    unknown = sorted(set(given) - {"use_cache", "device_map", "low_cpu_mem_usage"})
    if unknown:
        raise UserError(
            f"model_init_kwargs has {', '.join(unknown)}", fix="load the model yourself and give the object"
        )
    if quantization is not None:
        values |= {
            mine: getattr(quantization, theirs) for theirs, mine in _BNB.items() if hasattr(quantization, theirs)
        }
        compute = getattr(quantization, "bnb_4bit_compute_dtype", None)
        if values.get("load_in_4bit") and compute is not None and "dtype" not in values:
            values["dtype"] = str(compute).removeprefix("torch.")
    return ModelConfig(name, **values)


def _template(path: str) -> str:
    """The chat template in a file, or of a tokenizer in a folder or on the hub."""
    file = Path(path)
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        found: Any = AutoTokenizer.from_pretrained(path, local_files_only=file.is_dir())
    except (OSError, ValueError) as error:
        raise UserError(f"there is no chat template at {path}", fix="give a .jinja file, or a tokenizer") from error
    if not found.chat_template:
        raise UserError(f"the tokenizer at {path} has no chat template")
    return str(found.chat_template)
